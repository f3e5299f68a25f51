"""Work of operators that move, make or look up data."""

from __future__ import annotations

from joulec.energy.view import Cost, View, at


def view_only(view: View) -> Cost:
    """Reshape, Squeeze, Unsqueeze, Flatten, Identity, Dropout at inference: the runtime reuses the buffer, no bytes."""
    return Cost(touched=dict.fromkeys(range(len(view.node.inputs)), 0), write=0)


def copy(view: View) -> Cost:
    """Concat, Split, DepthToSpace, Trilu, ...: every input byte read, every output byte written once."""
    return Cost()


def transpose(view: View) -> Cost:
    """Transpose: a copy; free of bytes where it only moves dimensions of size 1 (the runtime reshapes instead)."""
    dims = view.dims(0)
    perm = view.attr("perm") or range(len(dims) - 1, -1, -1)
    moved = [axis for axis in perm if at(dims, axis) != 1]
    return view_only(view) if dims and moved == sorted(moved) else Cost()


def produce(view: View) -> Cost:
    """Shape, Size, ConstantOfShape, EyeLike, Range, OneHot, ...: only what is written (and small inputs) counts."""
    return Cost(touched={0: min(view.nbytes(0), 64)} if view.has(0) else {})


def window(view: View) -> Cost:
    """Slice, CenterCropPad, Compress: reads as many bytes of the data as it writes."""
    return Cost(touched={0: min(view.nbytes(0), view.out_bytes())})


def pad(view: View) -> Cost:
    """Pad, Expand, Tile: the input read once, the output written."""
    return Cost()


def gather(view: View) -> Cost:
    """Gather, GatherElements, GatherND, ArrayFeatureExtractor: only the rows looked up are read."""
    return Cost(touched={0: min(view.nbytes(0), view.out_bytes())})


def scatter(view: View) -> Cost:
    """ScatterElements, ScatterND, Scatter, TensorScatter: the data copied, updates read and written over it."""
    updates = 2
    return Cost({view.vector: view.n(updates)}, write=view.out_bytes() + view.nbytes(updates))


def resize(view: View) -> Cost:
    """Resize, Upsample: per output 1 (nearest), 2^d taps (linear) or 4^d (cubic) over the d resized axes, 2 each."""
    mode = str(view.attr("mode", "nearest"))
    resized = sum(a != b for a, b in zip(view.dims(0), view.out_dims(), strict=False)) or 1
    taps = {"linear": 2, "bilinear": 2, "cubic": 4}.get(mode, 0) ** min(resized, 4) if mode != "nearest" else 0
    return Cost({view.vector: view.m() * (2 * taps if taps else 1)}, touched={0: min(view.nbytes(0), _seen(view))})


def _seen(view: View) -> int:
    """Bytes of X that a Resize reads: all of them, fewer when it shrinks without filtering."""
    return max(view.out_bytes(), 1) * 16


def grid_sample(view: View) -> Cost:
    """GridSample: per output, bilinear 4 taps (12 operations), bicubic 16 (48), nearest 2."""
    mode = str(view.attr("mode", "linear"))
    return view.cost(view.m() * (2 if mode == "nearest" else 48 if "cubic" in mode else 12))


def affine_grid(view: View) -> Cost:
    """AffineGrid: a (d x d+1) matrix times a point per grid position; the last output dimension is d."""
    return view.cost(view.m() * 2 * (at(view.out_dims(), -1) + 1))


def gather_quantized(view: View) -> Cost:
    """GatherBlockQuantized: rows looked up and dequantized, 2 per output element."""
    return Cost({"fp32": 2 * view.m()}, touched={0: min(view.nbytes(0), view.out_bytes())})


def non_max_suppression(view: View) -> Cost:
    """NonMaxSuppression: a sort per class, and an overlap (15) against the kept boxes; how many is not known, so
    max_output_boxes where it is constant, else 1 per box. boxes (B, N, 4), scores (B, C, N)."""
    batch, classes, boxes = view.dim(1, 0), view.dim(1, 1), view.dim(1, 2)
    limit = view.integers(2)
    kept = min(max(limit[0], 1), boxes) if limit else 1
    return view.cost(batch * classes * boxes * (max(boxes, 1).bit_length() + 15 * kept))


def non_zero(view: View) -> Cost:
    """NonZero: one comparison per input element."""
    return view.cost(view.n())


def accumulate(view: View) -> Cost:
    """Col2Im: one add per input element."""
    return view.cost(view.n())


TABLE = {
    **dict.fromkeys(["Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Dropout", "Optional",
                     "OptionalGetElement", "SequenceConstruct"], view_only),
    **dict.fromkeys(["Concat", "Split", "DepthToSpace", "SpaceToDepth", "Trilu", "ReverseSequence",
                     "ConcatFromSequence", "SplitToSequence", "SequenceInsert", "SequenceErase", "SequenceAt",
                     "MemcpyFromHost", "MemcpyToHost"], copy),
    **dict.fromkeys(["Shape", "Size", "ConstantOfShape", "EyeLike", "Range", "OneHot", "SequenceLength",
                     "SequenceEmpty", "OptionalHasElement", "MelWeightMatrix", "Constant"], produce),
    **dict.fromkeys(["Slice", "CenterCropPad", "Compress", "Crop", "DynamicSlice"], window),
    **dict.fromkeys(["Pad", "Expand", "Tile"], pad),
    **dict.fromkeys(["Gather", "GatherElements", "GatherND"], gather),
    **dict.fromkeys(["Scatter", "ScatterElements", "ScatterND", "TensorScatter"], scatter),
    "Transpose": transpose, "Resize": resize, "Upsample": resize, "GridSample": grid_sample, "AffineGrid": affine_grid,
    "NonMaxSuppression": non_max_suppression, "NonZero": non_zero, "Col2Im": accumulate,
}  # fmt: skip
MICROSOFT = {
    "ExpandDims": view_only, "GatherND": gather, "GatherBlockQuantized": gather_quantized, "GridSample": grid_sample,
    "Pad": pad, "Range": produce, "Trilu": copy, "UnfoldTensor": copy,
}  # fmt: skip
NCHWC = {"ReorderInput": copy, "ReorderOutput": copy, "Upsample": resize}
