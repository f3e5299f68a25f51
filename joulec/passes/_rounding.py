"""Closed forms and coordinate descent for weights that become integers: where they are clipped, which way they round.

A weight W that becomes Q = s q errs by D = Q - W, and its output by the mean of |D x|^2 over the data, tr(D G D^T) with
G the mean of x x^T (`_moments`). Where the operator has a bias, it takes the mean error D E[x] away in closed form (M.
Nagel et al., "Data-free quantization through weight equalization and bias correction", ICCV 2019, with means that are
measured), and what is left is tr(D C D^T) with C the covariance of x. Clipping tries a few ranges for each channel.
Rounding is coordinate descent on the integers, from the nearest ones: each step sets one column to its best integers,
given all others, so the error never rises (the objective is that of M. Nagel et al., "Up or down? Adaptive rounding
for post-training quantization", ICML 2020, without its training).
"""

from __future__ import annotations

import numpy as np

from joulec.ir.values import Array
from joulec.passes._correction import damped
from joulec.passes._moments import Moments
from joulec.passes._qdq import TINY

SHRINKS = (1.0, 0.97, 0.94, 0.9, 0.85, 0.8, 0.7, 0.6)
"""Shares of a channel's largest magnitude that clipping tries."""

DAMPING = 0.01
"""Share of the mean diagonal of G that keeps rounding near the nearest integers where the data say little."""

SWEEPS = 3
"""Passes over all columns."""

BLOCK = 64
"""Columns after which the others learn of what was changed: products of matrices are faster than of vectors."""

TRIAL_ROWS = 16
"""Rows of a weight that are tried on one half of the data before all are rounded."""

GAIN = 0.98
"""Share of the error that must be left at most, on the half of the data that was not fitted to."""


def scales(matrix: Array, limit: int) -> Array:
    """float64 (groups, outputs, 1): the scale of each channel, as `quantize` takes it."""
    largest = np.abs(matrix).max(axis=-1, keepdims=True).astype(np.float64)
    scale: Array = np.maximum(largest / limit, TINY).astype(np.float32).astype(np.float64)
    return scale


def nearest(matrix: Array, limit: int) -> Array:
    """What `quantize` makes of the weights when it looks at nothing else."""
    scale = scales(matrix, limit)
    return np.rint(matrix / scale) * scale


def errors(change: Array, gram: Array) -> Array:
    """The mean of |d x|^2 of each row d: `change` (groups, outputs, width), `gram` (groups, width, width)."""
    found: Array = np.einsum("gok,gok->go", change @ gram, change)
    return found


def grams(moments: Moments, centered: bool) -> tuple[Array, Array, Array]:
    """The matrix to minimize over: of all data and of each half; the covariance where a bias takes the mean away."""
    found = []
    for half in (None, 0, 1):
        gram = moments.gram if half is None else moments.half(half)
        mean = moments.mean if half is None else moments.sums[half] / max(moments.rows[half], 1)
        found.append(gram - mean[:, :, None] * mean[:, None, :] if centered else gram)
    return found[0], found[1], found[2]


def clipped(matrix: Array, moments: Moments, limit: int, centered: bool) -> tuple[Array, float]:
    """The weights with each channel clipped where it rounds best; and the share of the error that is left.

    A range is taken where it errs less than the whole one on both halves of the data.
    """
    _, *halves = grams(moments, centered)
    made = [_clipped_to(matrix, share) for share in SHRINKS]
    found = np.array([[errors(nearest(one, limit) - matrix, half) for half in halves] for one in made])
    better = np.all(found < found[0], axis=1)
    total = np.where(better, found.sum(axis=1), np.inf)
    total[0] = found[0].sum(axis=0)
    best = np.argmin(total, axis=0)
    chosen = np.take_along_axis(np.array(made), best[None, ..., None], axis=0)[0]
    return chosen, _share(np.min(total, axis=0), total[0])


def _clipped_to(matrix: Array, share: float) -> Array:
    bound = share * np.abs(matrix).max(axis=-1, keepdims=True)
    return np.clip(matrix, -bound, bound)


def rounded(matrix: Array, moments: Moments, limit: int, centered: bool) -> tuple[Array, float] | None:
    """Weights on the grid that `quantize` lays over `matrix`, and the share of the error of the nearest ones left.

    None where the rounding found on one half of the data, for some of the rows, does not gain on the other.
    """
    whole, *halves = grams(moments, centered)
    part = matrix[:, :: max(1, matrix.shape[1] // TRIAL_ROWS)]
    before = sum(float(errors(nearest(part, limit) - part, half).sum()) for half in halves)
    trials = [_descended(part, damped(half, DAMPING), limit) - part for half in halves]
    after = sum(float(errors(trials[i], halves[1 - i]).sum()) for i in (0, 1))
    if not after < GAIN * before:
        return None
    return _descended(matrix, damped(whole, DAMPING), limit), after / before


def _descended(matrix: Array, gram: Array, limit: int) -> Array:
    """Q = s q for integers q of at most `limit`, none of whose columns can be bettered alone, or nearly so."""
    scale = scales(matrix, limit)
    integers = np.rint(matrix / scale)
    fixed = np.abs(integers) >= limit  # the largest of a channel says what its scale is
    pull = (integers * scale - matrix) @ gram
    order = np.argsort(-np.diagonal(gram, axis1=1, axis2=2).mean(axis=0))
    blocks = [order[start : start + BLOCK] for start in range(0, len(order), BLOCK)]
    for _ in range(SWEEPS):
        moved = [_step(block, integers, pull, gram, scale, fixed) for block in blocks]
        if not any(moved):
            break
    return integers * scale


def _step(block: Array, integers: Array, pull: Array, gram: Array, scale: Array, fixed: Array) -> bool:
    """Set the columns of a block to their best integers, one after the other; what that pulls at the others follows.

    The error in one column is a parabola with its foot at -pull / diagonal.
    """
    limit, near = np.abs(integers).max(), gram[:, block[:, None], block]
    here, moved = pull[..., block], np.zeros((*integers.shape[:2], len(block)))
    for index, column in enumerate(block):
        now = integers[..., column]
        wanted = np.rint(now - here[..., index] / (near[:, None, index, index] * scale[..., 0]))
        steps = np.where(fixed[..., column], 0.0, np.clip(wanted, -limit, limit) - now)
        integers[..., column] += steps
        moved[..., index] = steps * scale[..., 0]
        here += moved[..., index, None] * near[:, None, index]
    if not moved.any():
        return False
    pull += moved @ gram[:, block]
    return True


def _share(after: Array, before: Array) -> float:
    total = float(before.sum())
    return float(after.sum()) / total if total > 0 else 1.0
