"""The order of an epoch, counted instead of remembered."""

from __future__ import annotations

import numpy as np

from vitkit.backend import philox


def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """Return the order in which an epoch visits its samples.

    Nothing is remembered between epochs, so a resumed run needs only the epoch and its position.

    Parameters
    ----------
    seed : int
        The run's seed.
    epoch : int
        Which epoch, from 0.
    n : int
        How many samples there are.

    Returns
    -------
    numpy.ndarray, int64 (n,)
        A permutation of 0 to n - 1.
    """
    return philox(seed, "order", epoch).permutation(n).astype(np.int64)
