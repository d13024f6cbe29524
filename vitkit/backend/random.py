"""Random numbers by counting: the same words give the same numbers, in any order, on any worker.

Philox (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3") turns a key and a
counter into random bits without any state. vitkit puts the seed and the purpose in the key, and
indices (step, epoch, sample, ...) in the upper three words of the counter, so streams never
overlap and nothing needs to be replayed after a resume.
"""

from __future__ import annotations

from zlib import crc32

import numpy as np

LARGEST = 2**64 - 1


def philox(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """Return the generator of one stream.

    Parameters
    ----------
    seed : int
        The run's seed, 0 to 2**64 - 1.
    purpose : str
        What the numbers are for, such as ``"dropout"`` or ``"order"``.
    *indices : int
        Up to three indices within the purpose, such as step and layer.

    Returns
    -------
    numpy.random.Generator
        Freshly made; its first numbers depend on the arguments alone.

    Raises
    ------
    ValueError
        If the seed or an index is negative or too large, or there are more than three indices.
    """
    if len(indices) > 3:
        raise ValueError(f"A stream has at most 3 indices; got {len(indices)}: {indices}.")
    for what, value in (("The seed", seed), *(("An index", index) for index in indices)):
        if not isinstance(value, (int, np.integer)) or not 0 <= value <= LARGEST:
            raise ValueError(
                f"{what} must be a whole number between 0 and 2**64 - 1; got {value!r}."
            )
    key = np.array([seed, crc32(purpose.encode())], np.uint64)
    counter = np.zeros(4, np.uint64)
    counter[1 : 1 + len(indices)] = indices
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
