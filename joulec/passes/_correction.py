"""Closed forms for weights under a mask: what a weight is worth, and what those that stay become.

Scores. Removing weight w of column j changes the mean squared output by w^2 G_jj when nothing else moves (the criterion
of Wanda, Sun et al. 2024, squared) and by w^2 / (G^-1)_jj when all others of its row make up for it (optimal brain
surgeon, Hassibi and Stork 1993). Both are divided by the mean square of the layer's output, tr(W G W^T), so that scores
of different layers compare.

Correction. The weights that stay are the least-squares solution for their row, found for all rows at once by
conjugate gradients on the normal equations with the mask applied (as ALPS does, Meng et al. 2024). G is damped by a
share of its mean diagonal, which pulls the solution towards the old weights; the share that errs least on the half of
the data that it was not fitted to is taken, and no correction at all where none helps there.
"""

from __future__ import annotations

import numpy as np

from joulec.ir.values import Array
from joulec.passes._moments import Moments

DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1)
"""Shares of the mean diagonal that are tried."""

TRIAL_ROWS = 16
"""Rows of a weight that dampings are compared on."""

STEPS, TOLERANCE = 40, 1e-3
"""Conjugate gradient steps at most, and the relative residual at which they end."""


def output_energy(matrix: Array, gram: Array) -> float:
    """tr(W G W^T): the mean squared norm of W x. `matrix` (groups, outputs, width), `gram` (groups, width, width)."""
    return float(np.einsum("gok,gkl,gol->", matrix, gram, matrix, optimize=True))


def wanda(matrix: Array, gram: Array) -> Array:
    """w^2 G_jj, as a share of the output's energy; of the shape of `matrix`."""
    return _shared(matrix**2 * np.diagonal(gram, axis1=1, axis2=2)[:, None, :], matrix, gram)


def optimal_brain(matrix: Array, gram: Array) -> Array:
    """w^2 / (G^-1)_jj, as a share of the output's energy; of the shape of `matrix`."""
    inverse = np.linalg.inv(damped(gram, 1e-2))
    return _shared(matrix**2 / np.diagonal(inverse, axis1=1, axis2=2)[:, None, :], matrix, gram)


def _shared(losses: Array, matrix: Array, gram: Array) -> Array:
    return losses / max(output_energy(matrix, gram), np.finfo(np.float64).tiny)


def damped(gram: Array, share: float) -> Array:
    """G plus a share of its mean diagonal; at least something, so that it can be inverted."""
    mean = np.trace(gram, axis1=1, axis2=2) / gram.shape[-1]
    added = np.maximum(mean * share, np.finfo(np.float32).tiny)
    return np.asarray(gram + added[:, None, None] * np.eye(gram.shape[-1]))


def corrected(matrix: Array, mask: Array, moments: Moments) -> tuple[Array, float]:
    """The weights that stay, changed so that the outputs change least.

    Args:
        matrix: the weights before, (groups, outputs, width).
        mask: of the same shape, True where a weight stays.
        moments: of what they are multiplied with.

    Returns:
        The weights, zero outside of the mask, and the share that the squared error has of the one without correction,
        on data not fitted to: 1 where nothing was corrected.
    """
    plain = np.where(mask, matrix, 0.0)
    share, left = _damping(matrix, mask, moments)
    if share is None:
        return plain, 1.0
    return np.where(mask, matrix + _solved(matrix, mask, damped(moments.gram, share)), 0.0), left


def _damping(matrix: Array, mask: Array, moments: Moments) -> tuple[float | None, float]:
    """The damping that errs least on the other half, and its error over that without correction."""
    rows = slice(None, None, max(1, matrix.shape[1] // TRIAL_ROWS))
    part, kept = matrix[:, rows], mask[:, rows]
    gone, halves = np.where(kept, 0.0, -part), (moments.half(0), moments.half(1))
    plain = sum(output_energy(gone, half) for half in halves)
    if plain <= 0:
        return None, 1.0
    errors = [
        sum(output_energy(_solved(part, kept, damped(halves[i], share)), halves[1 - i]) for i in (0, 1))
        for share in DAMPINGS
    ]
    best = int(np.argmin(errors))
    return (DAMPINGS[best], errors[best] / plain) if errors[best] < plain else (None, 1.0)


def _solved(matrix: Array, mask: Array, gram: Array) -> Array:
    """D that minimizes tr(D G D^T) with D = -W where the mask is False: conjugate gradients, each row by itself."""
    change = np.where(mask, 0.0, -matrix).astype(np.float32)
    gram = gram.astype(np.float32)
    diagonal = np.diagonal(gram, axis1=1, axis2=2)[:, None, :]
    residual = np.where(mask, -(change @ gram), np.float32(0))
    first = largest = np.einsum("gok,gok->go", residual, residual)
    towards = preconditioned = residual / diagonal
    size = np.einsum("gok,gok->go", residual, preconditioned)
    for _ in range(STEPS):
        if not np.any(largest > TOLERANCE**2 * first):
            break
        along = np.where(mask, towards @ gram, np.float32(0))
        step = _quotient(size, np.einsum("gok,gok->go", towards, along))
        change += step * towards
        residual = residual - step * along
        preconditioned = residual / diagonal
        before, size = size, np.einsum("gok,gok->go", residual, preconditioned)
        towards = preconditioned + _quotient(size, before) * towards
        largest = np.einsum("gok,gok->go", residual, residual)
    return change.astype(np.float64)


def _quotient(over: Array, under: Array) -> Array:
    found = np.divide(over, under, out=np.zeros_like(over), where=under > 0)
    return found[..., None]
