"""Muon from its definition, in float64, for the conformance kit to compare with.

Newton-Schulz is a polynomial in the singular values, so it is applied to those of the singular
value decomposition: other mathematics than the matrix products of ``muon.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def muon_reference(
    w: np.ndarray,
    g: np.ndarray,
    state: dict[str, Any],
    *,
    lr: float,
    step: int,
    weight_decay: float,
) -> np.ndarray:
    """Return the weights of one parameter after an update with Muon's defaults.

    Parameters
    ----------
    w, g : numpy.ndarray, float64
        The parameter and its gradient.
    state : dict
        Empty at first; the moments.
    lr, weight_decay : float
        As the optimizer is given them.
    step : int
        Which update this is, from 1.

    Returns
    -------
    numpy.ndarray, float64
        The new weights.
    """
    if w.ndim in (2, 4):
        momentum = state["m"] = 0.95 * state.get("m", 0.0) + g
        u, s, vt = np.linalg.svd((g + 0.95 * momentum).reshape(len(g), -1), full_matrices=False)
        s = s / max(float(np.linalg.norm(s)), 1e-300)
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        direction = (u * s) @ vt
        scale = max(1.0, direction.shape[0] / direction.shape[1]) ** 0.5
        return np.asarray(w - lr * weight_decay * w - lr * scale * direction.reshape(w.shape))
    lr = 0.1 * lr
    m = state["m"] = 0.9 * state.get("m", 0.0) + 0.1 * g
    v = state["v"] = 0.95 * state.get("v", 0.0) + 0.05 * g**2
    direction = m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.95**step)) + 1e-8)
    return np.asarray(w - lr * weight_decay * w - lr * direction)
