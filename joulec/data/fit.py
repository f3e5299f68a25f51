"""Does an array fit a model input: names, shapes, element types, and the casts that lose nothing that matters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from joulec.errors import InputError
from joulec.ir.shapes import first_line
from joulec.ir.values import Array

Dim = int | str | None
"""A fixed size, a symbol, or a size about which nothing is said."""

Shapes = Mapping[str, int | tuple[int, ...]]
"""Symbol, `input[axis]` -> size, or input name -> all its dimensions."""


@dataclass(frozen=True)
class Slot:
    """A model input as a feed must fill it.

    Attributes:
        name: the input's name.
        dtype: its element type in numpy (object for strings).
        dims: its dimensions, or None where even the rank is unknown.
    """

    name: str
    dtype: np.dtype[np.generic]
    dims: tuple[Dim, ...] | None

    def describe(self) -> str:
        """E.g. `float32[batch,8,8,1]`."""
        inside = "..." if self.dims is None else ",".join("?" if dim is None else str(dim) for dim in self.dims)
        return f"{'string' if self.dtype.hasobject else self.dtype}[{inside}]"


@dataclass
class Notes:
    """What had to be done to the data, in the order in which it was found, each thing once."""

    lines: dict[str, None] = field(default_factory=dict)

    def add(self, line: str) -> None:
        """Remember `line` unless it is known."""
        self.lines.setdefault(line)


def slots(inputs: Iterable[ir.Value]) -> dict[str, Slot]:
    """What a feed must hold for these model inputs.

    Raises:
        InputError: an input is not a tensor, so that no array can fill it.
    """
    return {slot.name: slot for slot in map(_slot, inputs)}


def _slot(value: ir.Value) -> Slot:
    if value.name is None or value.dtype is None or not isinstance(value.type, ir.TensorType):
        raise InputError(f"model input '{value.name}' is not a tensor; joulec can only feed tensors")
    dims = None if value.shape is None else tuple(_dim(dim) for dim in value.shape)
    dtype = np.dtype(object) if value.dtype == ir.DataType.STRING else value.dtype.numpy()
    return Slot(value.name, dtype, dims)


def _dim(dim: int | ir.SymbolicDim) -> Dim:
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    return dim.value if dim.value is not None and dim.value.strip("?") else None


def check_names(names: Iterable[str], wanted: Mapping[str, Slot], where: str, notes: Notes) -> None:
    """Every input must be there; more than that (labels, mostly) is noted and left out.

    Raises:
        InputError: an input is missing.
    """
    found = list(names)
    missing = [name for name in wanted if name not in found]
    if missing:
        raise InputError(
            f"{where}: no array for model input {_quoted(missing)}; "
            f"it holds {_quoted(found) or 'nothing'}, the model's inputs are {_quoted(wanted)}"
            f"{_unnamed(found, missing[0])}"
        )
    for name in found:
        if name not in wanted:
            notes.add(f"'{name}' is no input of the model and left out")


def _unnamed(found: Sequence[str], missing: str) -> str:
    """numpy names an array that nobody named `arr_0`."""
    return f"; save it with numpy.savez(path, {missing}=array)" if found[:1] == ["arr_0"] else ""


def fit_feed(feed: Mapping[str, object], wanted: Mapping[str, Slot], where: str, notes: Notes) -> dict[str, Array]:
    """The arrays of one feed, in the model's input order, checked and cast.

    Raises:
        InputError: an array is missing, its shape or element type does not fit, or all arrays are empty.
    """
    check_names(feed, wanted, where, notes)
    bound: dict[str, tuple[int, str]] = {}
    fitted = {}
    for name, slot in wanted.items():
        array = _as_array(feed[name], name, where)
        check_shape(array.shape, slot, where)
        _bind(array.shape, slot, where, bound)
        fitted[name] = cast(array, slot, where, notes)
    if fitted and not any(array.size for array in fitted.values()):
        shapes = ", ".join(f"'{name}' {list(array.shape)}" for name, array in fitted.items())
        raise InputError(f"{where}: holds no numbers: {shapes}")
    return fitted


def _as_array(value: object, name: str, where: str) -> Array:
    try:
        return np.asarray(value)
    except Exception as error:
        raise InputError(f"{where}: '{name}' cannot be read as an array: {first_line(error)}") from error


def check_shape(shape: Sequence[int], slot: Slot, where: str) -> None:
    """Refuse a shape that contradicts the input's.

    Raises:
        InputError: another rank, or another size of a fixed dimension.
    """
    if not shape_fits(shape, slot.dims):
        raise InputError(f"{where}: array '{slot.name}' has shape {list(shape)}, the model wants {slot.describe()}")


def shape_fits(shape: Sequence[int], dims: Sequence[Dim] | None) -> bool:
    """Whether an array of `shape` fills an input of these dimensions."""
    if dims is None:
        return True
    return len(shape) == len(dims) and all(
        not isinstance(dim, int) or dim == size for size, dim in zip(shape, dims, strict=True)
    )


def _bind(shape: Sequence[int], slot: Slot, where: str, bound: dict[str, tuple[int, str]]) -> None:
    """One symbol has one size within a feed."""
    for size, dim in zip(shape, slot.dims or (), strict=slot.dims is not None):
        if not isinstance(dim, str) or not dim.isidentifier():
            continue
        seen, owner = bound.setdefault(dim, (size, slot.name))
        if seen != size:
            raise InputError(f"{where}: dimension '{dim}' is {seen} in '{owner}' but {size} in '{slot.name}'")


def check_dtype(dtype: np.dtype[np.generic], slot: Slot, where: str) -> str | None:
    """Whether an array of `dtype` can fill the input.

    Returns:
        None where it fits as it is, else a note about the cast.

    Raises:
        InputError: a cast would change what the data means.
    """
    want = slot.dtype
    if dtype == want:
        return None
    if want.hasobject:
        if dtype.kind in "USO":
            return None
    elif (dtype.kind in "iub" and (want.kind in "iu" or _is_float(want))) or (_is_float(dtype) and _is_float(want)):
        return f"'{slot.name}' cast from {dtype} to {want}"
    raise InputError(f"{where}: array '{slot.name}' is {dtype}, the model wants {slot.describe()}")


def cast(array: Array, slot: Slot, where: str, notes: Notes) -> Array:
    """`array` in the input's element type; numbers that would not survive are refused, odd ones noted.

    Raises:
        InputError: the element types cannot be reconciled, or an integer is out of range.
    """
    note = check_dtype(array.dtype, slot, where)
    if note is not None:
        notes.add(note)
        _check_range(array, slot, where)
        array = array.astype(slot.dtype)
    if slot.dtype.hasobject:
        return array.astype(object)
    if _is_float(slot.dtype) and not np.isfinite(array).all():
        notes.add(f"'{slot.name}' holds NaN or infinity")
    return array


def _check_range(array: Array, slot: Slot, where: str) -> None:
    if slot.dtype.kind not in "iu" or array.dtype.kind == "b" or not array.size:
        return
    limits = np.iinfo(slot.dtype.name)
    low, high = int(array.min()), int(array.max())
    if low < limits.min or high > limits.max:
        worst = low if low < limits.min else high
        raise InputError(f"{where}: array '{slot.name}' holds {worst}, which {slot.dtype} cannot")


def _is_float(dtype: np.dtype[np.generic]) -> bool:
    """numpy's floats, and the small ones of ml_dtypes, which numpy files under `V`."""
    return dtype.kind == "f" or (dtype.kind == "V" and "float" in dtype.name)


def concrete_shapes(wanted: Mapping[str, Slot], shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Input name -> shape, with sizes from `shapes` (by symbol, input name or `name[axis]`), else 1.

    Raises:
        InputError: an input declares no rank and `shapes` does not give its dimensions.
    """
    sizes = {name: size for name, size in shapes.items() if isinstance(size, int)}
    for slot in wanted.values():
        given = _given(slot, shapes)
        for size, dim in zip(given or (), slot.dims or (), strict=False):
            if isinstance(dim, str):
                sizes.setdefault(dim, size)
    return {slot.name: _concrete(slot, sizes, _given(slot, shapes)) for slot in wanted.values()}


def _given(slot: Slot, shapes: Shapes) -> tuple[int, ...] | None:
    """All dimensions of this input, where `shapes` names the input itself."""
    given = shapes.get(slot.name)
    if isinstance(given, int):
        return (given,) if slot.dims is None or len(slot.dims) == 1 else None
    return given


def _concrete(slot: Slot, sizes: Mapping[str, int], given: tuple[int, ...] | None) -> tuple[int, ...]:
    if given is not None:
        return given
    if slot.dims is None:
        raise InputError(f"model input '{slot.name}' declares no shape; give it with --shape {slot.name}=1x...")
    return tuple(_size(dim, f"{slot.name}[{axis}]", sizes) for axis, dim in enumerate(slot.dims))


def _size(dim: Dim, place: str, sizes: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    return sizes.get(place if dim is None else dim, 1)


def feed_bytes(feed: Mapping[str, Array]) -> int:
    """Memory of one feed."""
    return sum(array.nbytes for array in feed.values())


def _quoted(names: Iterable[str], limit: int = 8) -> str:
    listed = [f"'{name}'" for name in names]
    rest = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + rest
