"""The arithmetic of INT8: scales, zero-points and rounding; nothing here knows a graph.

A real number r is stored as q = clip(round(r / scale) + zero_point), rounded half to even, as QuantizeLinear says.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from joulec.ir.module import Range
from joulec.ir.values import Array

TINY = 2.0**-100
"""Smallest product of two scales; below it float32 loses precision."""

WIDEST = 1e30
"""Largest magnitude that is quantized; beyond it products of scales overflow float32."""

BIAS_LIMIT = 2.0**30
"""Largest quantized bias: half of int32, so that the accumulator it is added to keeps room for the products."""

Bounds = tuple[float, float]


@dataclass(frozen=True)
class Parameters:
    """Scale and zero-point of one tensor: float32 and (u)int8, both scalar, or both (channels,)."""

    scale: Array
    zero_point: Array


def activation_parameters(seen: Range, dtype: Literal["uint8", "int8"], within: Bounds | None = None) -> Parameters:
    """Per-tensor parameters that cover `seen` and represent zero exactly.

    Args:
        seen: the calibrated range.
        dtype: `uint8` for asymmetric, `int8` for symmetric with zero-point 0.
        within: bounds that the integers must not exceed (those of a Clip or Relu that they replace); they hold 0.
    """
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    if within is not None:
        low, high = max(low, within[0]), min(high, within[1])
    if dtype == "int8":
        scale = np.float32(_positive(max(-low, high) / 127))
        return Parameters(np.asarray(scale), np.zeros((), np.int8))
    scale = np.float32(_positive((high - low) / 255))
    zero_point = int(np.clip(np.rint(-low / float(scale)), 0, 255))
    if within is not None:
        scale = _inside(scale, zero_point, within)
    return Parameters(np.asarray(scale), np.asarray(zero_point, np.uint8))


def _positive(scale: float) -> float:
    """A tensor that was zero throughout gets a harmless scale."""
    return scale if scale > TINY else 1.0 / 255


def _inside(scale: np.float32, zero_point: int, within: Bounds) -> np.float32:
    """Shrink `scale` until the smallest and the largest integer lie within the bounds, in float32."""
    low, high = np.float32(within[0]), np.float32(within[1])
    limits = [(-zero_point, low)] if zero_point > 0 else []
    limits += [(255 - zero_point, high)] if zero_point < 255 else []
    for steps, bound in limits:
        if abs(np.float32(steps) * scale) > abs(bound):
            scale = np.float32(abs(float(bound) / steps))
        while abs(np.float32(steps) * scale) > abs(bound):
            scale = np.nextafter(scale, np.float32(0))
    return scale


def weight_parameters(weight: Array, axis: int | None, limit: int, floor: Array | float = 0.0) -> Parameters:
    """Symmetric int8 parameters of a weight, zero-point 0.

    Args:
        weight: float32, finite.
        axis: the output-channel axis for one scale a channel, None for one in all.
        limit: largest integer used: 127, or 63 where the CPU adds pairs of products in 16 bits.
        floor: smallest scale allowed, scalar or (channels,).
    """
    axes = None if axis is None else tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.asarray(np.max(np.abs(weight), axis=axes), np.float64)
    scale = np.asarray(np.maximum(np.maximum(largest / limit, floor), TINY), np.float32)
    return Parameters(scale, np.zeros(scale.shape, np.int8))


def bias_floor(bias: Array | None, input_scale: float) -> Array | float:
    """The smallest weight scale, scalar or (channels,), with which the bias fits int32 and products of scales hold.

    A channel whose weights are (nearly) all zero would otherwise get a scale so small that its bias overflows.
    """
    smallest = TINY / input_scale
    if bias is None:
        return smallest
    floor: Array = np.maximum(np.abs(bias.astype(np.float64)) / (input_scale * BIAS_LIMIT), smallest)
    return floor


def bias_parameters(input_scale: Array, weight_scale: Array) -> Parameters:
    """Parameters of an int32 bias: scale x * scale w, of the shape of scale w, in float32."""
    scale = np.asarray(input_scale * weight_scale, np.float32)
    return Parameters(scale, np.zeros(scale.shape, np.int32))


def quantized(array: Array, parameters: Parameters, axis: int | None = None) -> Array:
    """Integers of `array`, in the dtype of the zero-point. `axis` is the one that the scales run along."""
    scale, zero_point = parameters.scale.astype(np.float64), parameters.zero_point
    if scale.ndim:
        shape = [1] * array.ndim
        shape[axis or 0] = -1
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    kind = np.iinfo(parameters.zero_point.dtype)
    exact = np.rint(array.astype(np.float64) / scale) + zero_point
    result: Array = np.asarray(np.clip(exact, kind.min, kind.max), parameters.zero_point.dtype)
    return result


def needs_reduced_range(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU multiplies u8 x s8 with 16-bit sums that saturate: x86 without VNNI.

    ONNX Runtime's kernels add two products in int16 there, so weights must keep to 7 bits. ARM sums in 32 bits. Where
    the flags cannot be read, x86 is taken to be without VNNI: correct everywhere, at the price of one bit.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686"):
        return False
    try:
        text = cpuinfo.read_text(errors="replace")
    except OSError:
        return True
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return not {"avx512_vnni", "avx_vnni", "amx_int8"} & set(line.split())
