"""smooth-quant: outlier channels of activations move into the weights that read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import onnx_ir as ir

from joulec.ir.module import Module
from joulec.ir.rewrite import Rewriter
from joulec.ir.values import Array
from joulec.passes._absorb import absorber, power_of_two
from joulec.passes._layers import (
    Layer,
    decibel,
    layers,
    restored_matrix,
    restored_rows,
    windows,
)
from joulec.passes._patterns import first_match
from joulec.passes.base import Context, Pass, PassResult, option
from joulec.passes.calibrate import not_quantizable
from joulec.passes.equalize_weights import channels_of, divide, readers

STRENGTHS = (0.3, 0.5, 0.7, 0.85)
"""What is tried where the user names no strength; more moves more of the outliers into the weights."""

GAIN = 0.5
"""Decibel that smoothing must gain at an activation."""


@dataclass(frozen=True)
class SmoothQuant(Pass):
    """Divide outlier channels of activations and multiply the weights behind them; the function stays. Needs data.

    The factor of a channel is max|x|^a / max|w|^(1-a) (G. Xiao et al., "SmoothQuant", ICML 2023), rounded to a power
    of two, with which nothing is rounded. What makes the activation must take the division in: a LayerNormalization,
    the constants of a spelled-out one, or a layer. For each activation the strength a is the one with which 8 bits
    err least in the products that read it, measured on samples of the data; where none gains, it stays as it is.
    """

    strength: float = cast(float, option(0.0, "a, between 0 and 1; 0 searches one for each activation"))
    keep_float: tuple[str, ...] = cast(
        "tuple[str, ...]", option((), "operators left alone: patterns of node names or operator types")
    )

    def __post_init__(self) -> None:
        if not 0 <= self.strength < 1:
            raise ValueError(f"strength must lie in [0, 1), not {self.strength}")

    def run(self, module: Module, context: Context) -> PassResult:
        """Smooth every activation where that gains.

        Raises:
            InputError: the data do not fit the model.
        """
        if context.feeds is None or context.feeds.kind == "synthetic" or context.runner is None:
            return PassResult.nothing("no data: what outliers there are only data can show")
        if (reason := not_quantizable(module)) is not None:
            return PassResult.nothing(reason)
        rewriter = Rewriter(module, self.pass_name())
        values = self._candidates(module, rewriter)
        form = "uint8" if context.target.quantization is None else context.target.quantization.activation
        gained: list[tuple[float, float]] = []
        for part in windows(module, context, {v.name or "": axis for v, axis in values.items()}):
            for value in values:
                if value.name in part:
                    self._smooth(rewriter, value, part[value.name], form, gained)
        return PassResult.of(rewriter, _notes(gained, len(values)))

    def _candidates(self, module: Module, rewriter: Rewriter) -> dict[ir.Value, int]:
        """Activations that could be smoothed, with the axis of their channels."""
        found: dict[ir.Value, int] = {}
        for layer in layers(module):
            behind = readers(layer.data)
            reason = behind if isinstance(behind, str) else None
            if (pattern := first_match(layer.node, self.keep_float)) is not None:
                reason = f"left alone by keep-float={pattern}"
            made = absorber(layer.data, layer.input_axis, channels_of(layer))
            if reason is None and isinstance(made, str):
                reason = made
            if reason is not None:
                rewriter.refuse(self.pass_name(), layer.node, reason)
            else:
                found[layer.data] = layer.input_axis
        return found

    def _smooth(
        self, rewriter: Rewriter, value: ir.Value, samples: Sequence[Array], form: str,
        gained: list[tuple[float, float]],
    ) -> None:  # fmt: skip
        behind = readers(value)
        if isinstance(behind, str):
            return
        # Anew, because what makes one activation may have been changed for another.
        made = absorber(value, behind[0].input_axis, channels_of(behind[0]))
        if isinstance(made, str):
            return
        axis = behind[0].input_axis
        largest = np.max([np.abs(one).max(axis=_others(one, axis)) for one in samples], axis=0).astype(np.float64)
        weights = np.max([one.by_input(one.numbers()) for one in behind], axis=0)
        plain = quality(behind, samples, np.ones(largest.size), form)
        tried = [_factors(largest, weights, a) for a in ([self.strength] if self.strength else STRENGTHS)]
        qualities = [quality(behind, samples, factors, form) for factors in tried]
        best = int(np.argmax(qualities))
        if qualities[best] < plain + GAIN or np.all(tried[best] == 1):
            return
        with rewriter.rewriting("smooth", behind[0].node):
            divide(rewriter, made, behind, tried[best])
        gained.append((plain, qualities[best]))


def _others(array: Array, axis: int) -> tuple[int, ...]:
    return tuple(i for i in range(array.ndim) if i != axis % array.ndim)


def _factors(largest: Array, weights: Array, strength: float) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = power_of_two(largest**strength / weights ** (1 - strength))
    factors[(largest <= 0) | (weights <= 0)] = 1.0
    return np.asarray(factors / np.exp2(np.rint(np.median(np.log2(factors)))))  # what all share changes nothing


def quality(behind: Sequence[Layer], samples: Sequence[Array], factors: Array, form: str, limit: int = 127) -> float:
    """Signal to noise, in decibel, of the products of 8-bit activations and weights under `factors`."""
    signal = error = 0.0
    for layer in behind:
        wide = factors.astype(np.float32).reshape(-1, *[1] * (samples[0].ndim - 2 if layer.input_axis == 1 else 0))
        divided = [one / wide for one in samples]
        low, high = min(float(d.min()) for d in divided), max(float(d.max()) for d in divided)
        groups = layer.rows(divided)
        matrix = layer.matrix(layer.scaled(factors))
        for rows, cells in zip(groups, np.split(matrix, layer.groups), strict=False):
            exact = rows.astype(np.float64) @ cells.T.astype(np.float64)
            held = restored_rows(np.append(rows.ravel(), [low, high]).astype(np.float32), form)[:-2].reshape(rows.shape)
            found = held @ restored_matrix(cells, limit).T
            signal, error = signal + float(np.sum(exact**2)), error + float(np.sum((found - exact) ** 2))
    return decibel(signal, error)


def _notes(gained: list[tuple[float, float]], candidates: int) -> Iterator[str]:
    if not gained:
        yield f"none of {candidates} activations gains from it"
        return
    before, after = np.mean(gained, axis=0)
    yield (
        f"{len(gained)} of {candidates} activations smoothed; "
        f"products of 8 bits there hold {after:.1f} dB, before {before:.1f} dB"
    )
