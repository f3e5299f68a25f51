"""How labels of channels pass operators that move numbers, and what of those must follow when channels go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.rewrite import Rewriter
from joulec.ir.values import Array, attribute, constant, input_at
from joulec.passes._label_rules import Rule, Visit
from joulec.passes._labels import Axes, Edit, Kept

MAX_COMPUTED = 1 << 20
"""Channels of a computed weight, all axes together, beyond which it is left alone."""

Dim = int | str | None
"""A dimension: its size, the symbol for it, or None where nothing is known."""


def transpose(visit: Visit) -> None:
    axes = visit.all(0)
    perm = attribute(visit.node, "perm", list(range(len(axes)))[::-1])
    visit.give([axes[int(at)] for at in perm])


def _axes_given(visit: Visit, rank: int) -> list[int] | None:
    """The axes of Squeeze, Unsqueeze and Slice: an attribute in old opsets, an input since."""
    given = attribute(visit.node, "axes")
    value = input_at(visit.node, 1)
    if given is None and value is None:
        return None
    found = constant(value) if given is None else np.asarray(given)
    if found is None:
        raise LookupError("axes not known")
    return [int(axis) % rank for axis in found.reshape(-1)]


def squeeze(visit: Visit) -> None:
    axes = visit.all(0)
    gone = _axes_given(visit, len(axes))
    if gone is None:
        gone = [at for at in range(len(axes)) if visit.size(0, at) == 1]
    visit.give([one for at, one in enumerate(axes) if at not in gone])


def unsqueeze(visit: Visit) -> None:
    axes = visit.all(0)
    given = attribute(visit.node, "axes")
    count = len(given) if given is not None else visit.size(1, 0)
    if count is None:
        raise LookupError("axes not known")
    new = _axes_given(visit, len(axes) + count) or []
    rest = iter(axes)
    visit.give([None if at in new else next(rest) for at in range(len(axes) + count)])


def concat(visit: Visit) -> None:
    """Along its axis one after the other; all other axes agree."""
    every = [visit.all(slot) for slot in range(len(visit.node.inputs))]
    rank = len(every[0])
    axis = attribute(visit.node, "axis", 1) % rank
    result: Axes = []
    for at in range(rank):
        if at == axis:
            result.append(_joined(visit, [axes[at] for axes in every], at))
            continue
        found = every[0][at]
        for axes in every[1:]:
            found = visit.unite(found, axes[at]) if found is not None or axes[at] is not None else None
        result.append(found)
    visit.give(result)


def _joined(visit: Visit, parts: Sequence[Array | None], axis: int) -> Array | None:
    if all(part is None for part in parts):
        return None
    return np.concatenate([_whole(visit, slot, axis, part) for slot, part in enumerate(parts)])


def _whole(visit: Visit, slot: int, axis: int, labels: Array | None) -> Array:
    """Labels for a part that has none: new ones that may not go."""
    size = visit.size(slot, axis)
    if labels is not None:
        return labels
    if size is None:
        raise LookupError("size not known")
    fresh = visit.labels.fresh(size)
    visit.labels.freeze([fresh], f"{walk.label(visit.node)} joins them with channels that nobody here makes")
    return fresh


def split(visit: Visit) -> None:
    node, axes = visit.node, visit.all(0)
    axis = attribute(node, "axis", 0) % len(axes)
    labels = axes[axis]
    if labels is None:
        for output in range(len(node.outputs)):
            visit.give([None if at == axis else one for at, one in enumerate(axes)], output)
        return
    parts = np.split(labels, np.cumsum(_split_sizes(visit, labels.size))[:-1])
    if sum(part.size for part in parts) != labels.size or len(parts) != len(node.outputs):
        raise LookupError("sizes do not fit")
    for output, part in enumerate(parts):
        visit.give([part if at == axis else one for at, one in enumerate(axes)], output)
    visit.labels.edits.append(Edit(node, labels, lambda r, kept: _resplit(node, parts, r, kept, visit.module.opset)))


def _split_sizes(visit: Visit, size: int) -> list[int]:
    node = visit.node
    given = attribute(node, "split")
    if given is None and input_at(node, 1) is not None:
        found = constant(node.inputs[1])
        if found is None:
            raise LookupError("sizes not known")
        given = found.reshape(-1).tolist()
    if given is not None:
        return [int(one) for one in given]
    each = -(-size // len(node.outputs))
    return [each] * (len(node.outputs) - 1) + [size - each * (len(node.outputs) - 1)]


def _resplit(node: ir.Node, parts: Sequence[Array], rewriter: Rewriter, kept: Kept, opset: int) -> None:
    sizes = [int(kept(part).sum()) for part in parts]
    if opset < 13:
        rewriter.set_attribute(node, "split", sizes)
        return
    rewriter.set_attribute(node, "num_outputs", None)
    rewriter.set_input(node, 1, rewriter.constant(np.array(sizes, np.int64), f"{node.name}_split", at=node))


def slice_(visit: Visit) -> None:
    """Constant bounds of step 1 along labelled axes; others may be anything."""
    node, axes = visit.node, visit.all(0)
    bounds = [_vector(visit, name, slot) for name, slot in (("starts", 1), ("ends", 2), ("axes", 3), ("steps", 4))]
    starts, ends, given, steps = bounds
    if given is None and (attribute(node, "axes") is not None or input_at(node, 3) is not None):
        raise LookupError("axes not known")
    count = len(starts or ends or ())
    along = [int(at) % len(axes) for at in given] if given is not None else list(range(count))
    result = list(axes)
    for index, at in enumerate(along):
        labels = axes[at]
        if labels is None:
            continue
        if starts is None or ends is None or (steps is None and input_at(node, 4) is not None):
            raise LookupError("bounds not known")
        if steps is not None and steps[index] != 1:
            raise LookupError("steps")
        result[at] = labels[slice(starts[index], ends[index])]
        visit.labels.edits.append(Edit(node, labels, _reslice(node, labels, index, starts, ends)))
    visit.give(result)


def _vector(visit: Visit, name: str, slot: int) -> list[int] | None:
    given = attribute(visit.node, name)
    if given is not None:
        return [int(one) for one in given]
    found = constant(input_at(visit.node, slot))
    return None if found is None else [int(one) for one in found.reshape(-1)]


def _reslice(
    node: ir.Node, labels: Array, index: int, starts: list[int], ends: list[int]
) -> Callable[[Rewriter, Kept], None]:
    first, last, _ = slice(starts[index], ends[index]).indices(labels.size)

    def apply(rewriter: Rewriter, kept: Kept) -> None:
        stays = kept(labels)
        starts[index], ends[index] = int(stays[:first].sum()), int(stays[:last].sum())
        for name, slot, numbers in (("starts", 1, starts), ("ends", 2, ends)):
            if name in node.attributes:
                rewriter.set_attribute(node, name, list(numbers))
            else:
                old = constant(node.inputs[slot])
                array = np.array(numbers, np.int64 if old is None else old.dtype)
                rewriter.set_input(node, slot, rewriter.constant(array, f"{node.name}_{name}", at=node))

    return apply


def gather(visit: Visit) -> None:
    """Constant positions along a labelled axis; along others any."""
    node, axes = visit.node, visit.axes(0)
    axis = attribute(node, "axis", 0) % len(axes)
    indices = node.inputs[1]
    lead = [visit.take(0, at) if at != axis else None for at in range(len(axes))]
    labels, picked = axes[axis], constant(indices)
    rank = (
        picked.ndim if picked is not None else None if indices is None or indices.shape is None else len(indices.shape)
    )
    if rank is None:
        raise LookupError("rank not known")
    inner: Axes = [None] * rank
    if labels is not None and picked is not None and rank == 1 and picked.size > 1:
        visit.take(0, axis)
        visit.take(1, 0)
        at = picked.astype(np.int64) % labels.size
        inner = [labels[at]]
        visit.labels.edits.append(Edit(node, labels, lambda r, kept: _repick(node, labels, at, r, kept)))
    visit.give([*lead[:axis], *inner, *lead[axis + 1 :]])


def _repick(node: ir.Node, labels: Array, picked: Array, rewriter: Rewriter, kept: Kept) -> None:
    stays = kept(labels)
    places = np.cumsum(stays) - 1
    found = places[picked[stays[picked]]].astype(np.int64)
    rewriter.set_input(node, 1, rewriter.constant(found, f"{node.name}_indices", at=node))


def pad(visit: Visit) -> None:
    """Axes that are not padded stay; on padded ones nothing may go."""
    axes = visit.axes(0)
    pads = _vector(visit, "pads", 1)
    given = constant(input_at(visit.node, 3))
    if pads is None or (given is None and input_at(visit.node, 3) is not None):
        raise LookupError("pads not known")
    along = list(range(len(axes))) if given is None else [int(at) % len(axes) for at in given.reshape(-1)]
    padded = {at for index, at in enumerate(along) if pads[index] or pads[index + len(along)]}
    visit.give([None if at in padded else visit.take(0, at) for at in range(len(axes))])


def expand(visit: Visit) -> None:
    """Axes that are there already."""
    axes = visit.axes(0)
    target = constant(visit.node.inputs[1])
    if target is None or target.size < len(axes):
        raise LookupError("target not known")
    new = target.size - len(axes)
    result: Axes = [*[None] * new, *visit.all(0)]
    visit.give(result)
    _retarget(visit, 1, [int(one) for one in target], result, keep=1)


def tile(visit: Visit) -> None:
    repeats = constant(visit.node.inputs[1])
    if repeats is None:
        raise LookupError("repeats not known")
    visit.give([visit.take(0, at) if int(repeats[at]) == 1 else None for at in range(repeats.size)])


def resize(visit: Visit) -> None:
    """Only scales of 1, and sizes that say what is there already, leave an axis alone."""
    node, rank = visit.node, len(visit.axes(0))
    scales = attribute(node, "scales")
    if scales is None:
        last = len(node.inputs) - 1
        found = constant(input_at(node, min(last, 2)))
        scales = None if found is None or not found.size else found.astype(np.float64).tolist()
    if "axes" in node.attributes or scales is None or len(scales) != rank:
        raise LookupError("scales not known")
    visit.give([visit.take(0, at) if scales[at] == 1 else None for at in range(rank)])


def shape(visit: Visit) -> None:
    """Sizes that nobody asks for may change."""
    node, axes = visit.node, visit.axes(0)
    whole = range(len(axes))[slice(attribute(node, "start", 0), attribute(node, "end"))]
    asked = {whole[at] for at in _asked(node.outputs[0], len(whole))}
    for at in range(len(axes)):
        if at not in asked:
            visit.take(0, at)


def _asked(vector: ir.Value, size: int) -> set[int]:
    """Which entries of a vector of sizes anybody reads, as far as that is known; all where it is not."""
    asked: set[int] = set(range(size)) if vector.is_graph_output() else set()
    for usage in vector.uses():
        asked |= _picked(usage.node, size)
    return asked


def _picked(reader: ir.Node, size: int) -> set[int]:
    every = set(range(size))
    if walk.is_onnx(reader, "Cast", "Identity"):
        return _asked(reader.outputs[0], size)
    if walk.is_onnx(reader, "Gather"):
        found = constant(reader.inputs[1])
        return every if found is None or not size else {int(one) % size for one in found.reshape(-1)}
    if walk.is_onnx(reader, "Slice") and len(reader.inputs) >= 3:
        bounds = [constant(value) for value in reader.inputs[1:3]]
        steps = constant(input_at(reader, 4))
        plain = input_at(reader, 4) is None or (steps is not None and steps.tolist() == [1])
        if plain and all(bound is not None and bound.size == 1 for bound in bounds):
            start, end = (int(bound.reshape(-1)[0]) for bound in bounds if bound is not None)
            return set(range(size)[start:end])
    return every


def constant_of_shape(visit: Visit) -> None:
    """A weight that is computed at load: every axis has labels, and its shape follows them."""
    target = _vector(visit, "", 0)
    if target is None or sum(target) > MAX_COMPUTED:
        raise LookupError("shape not known")
    axes: Axes = [visit.labels.fresh(size) if size > 1 else None for size in target]
    visit.take(0, 0)
    visit.give(axes)
    if visit.node.outputs[0].is_graph_output():
        visit.labels.freeze(axes, "they are an output of the model")
    _retarget(visit, 0, target, axes, keep=-1)


# -- Reshape ----------------------------------------------------------------------------------------------------------


def reshape(visit: Visit) -> None:
    """Axes merge and split. Of merged axes one may be labelled; of a split axis one of the parts carries the labels on.

    A grouped shuffle of images (n, c, h, w) to (n, groups, c', h, w) keeps whole groups, so c' carries them; elsewhere
    the parts are heads and what is in them, and whole heads go.
    """
    node, axes, output = visit.node, visit.axes(0), visit.node.outputs[0]
    if all(one is None for one in axes):
        return
    before, after = [_dim(visit, at) for at in range(len(axes))], _dims(output)
    result: Axes = [None] * len(after)
    for inner, outer in _matched(before, after):
        _carry(visit, inner, outer, after, result)
    visit.give(result)
    target = _vector(visit, "shape", 1) or _guess(before, after)
    if attribute(node, "allowzero", 0) and 0 in target:
        raise LookupError("sizes of zero")
    _retarget(visit, 1, target, result)


def flatten(visit: Visit) -> None:
    axes, output = visit.axes(0), visit.node.outputs[0]
    axis = attribute(visit.node, "axis", 1)
    axis += len(axes) if axis < 0 else 0
    after = _dims(output)
    result: Axes = [None, None]
    for column, inner in ((0, list(range(axis))), (1, list(range(axis, len(axes))))):
        _carry(visit, inner, [column], after, result)
    visit.give(result)


def _dim(visit: Visit, axis: int) -> Dim:
    value = visit.node.inputs[0]
    size = visit.size(0, axis)
    return size if size is not None or value is None else _dims(value)[axis]


def _dims(value: ir.Value) -> list[Dim]:
    if value.shape is None:
        raise LookupError("shape not known")
    return [dim if isinstance(dim, int) else dim.value for dim in value.shape]


def _guess(before: Sequence[Dim], after: Sequence[Dim]) -> list[int]:
    """A constant target that says what a computed one does: 0 where a size stays in its place, one -1."""
    open_ = [at for at, dim in enumerate(after) if not isinstance(dim, int)]
    stays = [at for at in open_ if at < len(before) and before[at] == after[at] is not None]
    rest = [at for at in open_ if at not in stays]
    if len(rest) > 1:
        raise LookupError("target not known")
    return [dim if isinstance(dim, int) else 0 if at in stays else -1 for at, dim in enumerate(after)]


def _matched(before: Sequence[Dim], after: Sequence[Dim]) -> list[tuple[list[int], list[int]]]:
    """Runs of axes on both sides that hold the same numbers, from both ends as far as that is certain."""
    right = [
        ([len(before) - 1 - at for at in one][::-1], [len(after) - 1 - at for at in other][::-1])
        for one, other in _runs(before[::-1], after[::-1])
    ]
    used = sum(len(one) for one, _ in right), sum(len(other) for _, other in right)
    left = _runs(before[: len(before) - used[0]], after[: len(after) - used[1]])
    return left + right


def _runs(before: Sequence[Dim], after: Sequence[Dim]) -> list[tuple[list[int], list[int]]]:
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) and j < len(after):
        if before[i] == after[j] is not None:
            found.append(([i], [j]))
            i, j = i + 1, j + 1
            continue
        run = _run(before[i:], after[j:])
        if run is None:
            break
        found.append((list(range(i, i + run[0])), list(range(j, j + run[1]))))
        i, j = i + run[0], j + run[1]
    return found


def _run(before: Sequence[Dim], after: Sequence[Dim]) -> tuple[int, int] | None:
    """How many leading axes of both sides have the same product, if those are known sizes."""
    a, b, i, j = before[0], after[0], 1, 1
    while isinstance(a, int) and isinstance(b, int):
        if a == b:
            return i, j
        if a < b:
            if i == len(before) or not isinstance(more := before[i], int):
                return None
            a, i = a * more, i + 1
        else:
            if j == len(after) or not isinstance(more := after[j], int):
                return None
            b, j = b * more, j + 1
    return None


def _carry(visit: Visit, inner: Sequence[int], outer: Sequence[int], after: Sequence[Dim], result: Axes) -> None:
    axes = visit.axes(0)
    labelled = [at for at in inner if axes[at] is not None]
    if len(labelled) != 1 or any(not isinstance(after[at], int) for at in outer):
        return  # nothing there, or more than one: what is there is frozen, because nobody took it
    (at,) = labelled
    wide = [visit.size(0, one) for one in inner]
    if None in wide:
        return
    labels = axes[at]
    shape = [size if one == at else 1 for one, size in zip(inner, wide, strict=True)]
    spread = np.broadcast_to(np.asarray(labels).reshape([size or 1 for size in shape]), [size or 0 for size in wide])
    visit.take(0, at)
    parts = [one for one in outer if after[one] != 1]
    if len(parts) == 1:
        result[parts[0]] = np.ascontiguousarray(spread).reshape(-1)
    elif len(wide) > 1 and sum(size != 1 for size in wide) > 1:
        visit.taken.discard((0, at))
    else:
        _spread(visit, np.ascontiguousarray(spread).reshape(-1), parts, after, result)


def _spread(visit: Visit, labels: Array, parts: Sequence[int], after: Sequence[Dim], result: Axes) -> None:
    image = len(visit.axes(0)) == 4 and len(after) == 5
    carrier = parts[-1] if image else parts[-2]
    whole = labels.reshape([size for one in parts if isinstance(size := after[one], int)])
    rows = np.moveaxis(whole, list(parts).index(carrier), 0).reshape(int(after[carrier] or 0), -1)
    visit.unite(np.repeat(rows[:, 0], rows.shape[1]), rows.reshape(-1))
    result[carrier] = rows[:, 0]


def _retarget(visit: Visit, slot: int, target: list[int], axes: Axes, keep: int = 0) -> None:
    """When labelled axes shrink, the sizes in input `slot` must; 0 and -1 (and `keep`) stay."""
    node = visit.node
    for labels in axes:
        if labels is not None:
            visit.labels.edits.append(
                Edit(node, labels, lambda r, kept: _resize(node, slot, target, axes, keep, r, kept))
            )


def _resize(node: ir.Node, slot: int, target: list[int], axes: Axes, keep: int, rewriter: Rewriter, kept: Kept) -> None:
    sizes = [
        int(kept(labels).sum()) if labels is not None and old not in (0, -1, keep) else old
        for old, labels in zip(target, axes, strict=True)
    ]
    if "shape" in node.attributes:
        rewriter.set_attribute(node, "shape", sizes)
        return
    present = constant(node.inputs[slot])
    if present is not None and present.tolist() == sizes:
        return
    rewriter.set_input(node, slot, rewriter.constant(np.array(sizes, np.int64), f"{node.name}_shape", at=node))


def dequantize(visit: Visit) -> None:
    """Scales and zero-points of one number per channel follow their axis."""
    axes = visit.all(0)
    axis = attribute(visit.node, "axis", 1) % max(len(axes), 1)
    for slot in range(1, len(visit.node.inputs)):
        if visit.node.inputs[slot] is not None and len(visit.axes(slot)) == 1 and visit.size(slot, 0) != 1:
            visit.unite(visit.take(slot, 0), axes[axis])
    visit.give(axes)


MOVES: Mapping[str, Rule] = {
    "Transpose": transpose, "Squeeze": squeeze, "Unsqueeze": unsqueeze, "Concat": concat, "Split": split,
    "Slice": slice_, "Gather": gather, "Pad": pad, "Expand": expand, "Tile": tile, "Resize": resize,
    "ConstantOfShape": constant_of_shape, "Upsample": resize, "Shape": shape, "Reshape": reshape, "Flatten": flatten,
    "DequantizeLinear": dequantize, "QuantizeLinear": dequantize,
}  # fmt: skip
