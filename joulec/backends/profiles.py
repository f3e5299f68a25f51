"""Optimization profiles: which sizes a TensorRT engine must take, in the form of ONNX Runtime's provider options."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from joulec.energy.bind import is_named, sizes_of, still_open
from joulec.ir.module import Module
from joulec.shapespec import SizeRange, span_of

Shapes = Mapping[str, int | tuple[int, ...]]

PROFILE_OPTIONS = ("trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes")


def fixed_sizes(module: Module, shapes: Shapes) -> dict[str, int]:
    """The dimensions that `shapes` gives one size; those that it gives a range stay open."""
    return {name: size for name, size in sizes_of(module, shapes).items() if not isinstance(size, SizeRange)}


def profile(module: Module, shapes: Shapes) -> dict[str, str]:
    """`trt_profile_{min,opt,max}_shapes` for the inputs of `module` that have open dimensions.

    Args:
        module: as it is emitted.
        shapes: sizes and ranges by symbol or input.

    Returns:
        Empty where every dimension is fixed, or where one is neither fixed nor given: TensorRT then builds for the
        sizes that it meets first, and again for others.
    """
    known = sizes_of(module, still_open(module, shapes))
    opened = [value for value in module.inputs() if value.shape is None or not value.shape.is_static()]
    spans = [(str(value.name), _spans(value, known)) for value in opened]
    if not spans or any(found is None or not _plain(name) for name, found in spans):
        return {}
    texts = []
    for which in range(3):
        shaped = (f"{name}:{'x'.join(str(span[which]) for span in found or ())}" for name, found in spans)
        texts.append(",".join(shaped))
    return dict(zip(PROFILE_OPTIONS, texts, strict=True))


def _dim_name(value: ir.Value, axis: int, dim: int | ir.SymbolicDim) -> str:
    return str(dim.value) if not isinstance(dim, int) and is_named(dim) else f"{value.name}[{axis}]"


def _spans(value: ir.Value, known: Mapping[str, int]) -> list[tuple[int, int, int]] | None:
    """(Smallest, best, largest) of every dimension; None where one is not known."""
    if value.shape is None:
        return None
    found = []
    for axis, dim in enumerate(value.shape):
        size = dim if isinstance(dim, int) else known.get(_dim_name(value, axis, dim))
        if size is None:
            return None
        found.append(span_of(size))
    return found


def _plain(name: str) -> bool:
    """Whether a name can stand in the option's text, where `:` and `,` separate."""
    return not set(name) & set(":,")
