"""Opset adapters, numerically: what an old model computes, the upgraded one computes, in bodies and corner cases too."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from fusion_kit import build, feed_of, numbers, ops, run, unchanged

from joulec.ir.module import Module
from joulec.ir.verify import Verifier
from joulec.passes.base import Context
from joulec.passes.target import Target
from joulec.passes.upgrade_opset import UpgradeOpset

CONTEXT = Context(target=Target("cpu", "CPUExecutionProvider", 19, 9, None, "generic-server-cpu"))


def raise_to(module: Module, to: int, feed: dict[str, np.ndarray] | None = None, **extra: np.ndarray) -> None:
    """Upgrade in place; the checker's full check passes, and every output is what it was."""
    given = feed_of(module) | extra if feed is None else feed
    before, verifier = run(module, given), Verifier(module)
    result = UpgradeOpset(to=to).run(module, CONTEXT)
    assert result.refusals == ()
    assert module.opset == to
    verifier.verify(module)
    onnx.checker.check_model(module.to_proto(), full_check=True)
    for name, actual in run(module, given).items():
        assert (actual.shape, actual.dtype) == (before[name].shape, before[name].dtype)
        np.testing.assert_allclose(actual, before[name], rtol=1e-6, atol=1e-6)


X = "(float[2,4,6,6] x) => (float[a,b,c,d] y)"
V = "(float[4] x) => (float[a] y)"
ROI = {"roi": np.zeros(0, np.float32), "none": np.zeros(0, np.float32)}

CASES = {
    # resizing, whose form changed in every version
    "upsample-rank-3": (8, "(float[1,2,5] x) => (float[a,b,c] y)", "y = Upsample<mode=\"nearest\", scales=[1.0,1.0,2.6]>(x)"),
    "upsample-9-linear": (9, X, "s = Constant<value=float[4] {1.0,1.0,2.0,3.0}>() y = Upsample<mode=\"linear\">(x, s)"),
    "resize-10-all-kept": (10, X, "s = Constant<value=float[4] {1.0,1.0,1.0,1.0}>() y = Resize(x, s)"),
    **{
        f"resize-11-{mode}-{coordinates}": (
            11, X, f"s = Constant<value=float[4] {{1.0,1.0,1.5,0.7}}>() y = Resize<mode=\"{mode}\", "
            f"coordinate_transformation_mode=\"{coordinates}\">(x, roi, s)",
        )
        for mode in ("nearest", "linear", "cubic")
        for coordinates in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
    },
    "resize-11-sizes": (11, X, "s = Constant<value=int64[4] {2,4,9,4}>() y = Resize<mode=\"linear\">(x, roi, none, s)"),
    "resize-13-sizes": (13, X, "s = Constant<value=int64[4] {2,4,9,4}>() y = Resize<mode=\"nearest\", nearest_mode=\"ceil\">(x, , , s)"),
    "resize-11-cubic": (
        11, X, "s = Constant<value=float[4] {1.0,1.0,2.0,2.0}>() y = Resize<mode=\"cubic\", cubic_coeff_a=-0.5, exclude_outside=1>(x, roi, s)"
    ),
    # attributes that became inputs
    "slice-repeated-bounds": (9, X, "y = Slice<axes=[3,1], starts=[-3,0], ends=[-1,-2]>(x)"),
    "topk-last": (9, X, "y, i = TopK<k=3>(x)"),
    "topk-indices": (9, "(float[2,5] x) => (int64[a,b] y)", "t, y = TopK<k=2, axis=0>(x)"),
    "clip-upper": (9, X, "y = Clip<max=0.3>(x)"),
    "clip-nothing": (9, X, "y = Clip(x)"),
    "clip-half": (10, "(float16[4] x) => (float16[a] y)", "y = Clip<min=-100000.0, max=0.5>(x)"),
    "pad-edge": (9, X, "y = Pad<mode=\"edge\", pads=[0,0,1,2,0,0,0,1]>(x)"),
    "pad-negative": (9, X, "y = Pad<pads=[0,0,-1,2,0,0,0,-2], value=-1.5>(x)"),
    "pad-half-value": (10, "(float16[4] x) => (float16[a] y)", "y = Pad<pads=[1,2], value=0.3>(x)"),
    "split-three": (9, X, "p, y, q = Split<axis=2, split=[1,4,1]>(x)"),
    "split-13-even": (13, X, "p, y = Split<axis=3>(x)"),
    "squeeze-negative": (12, "(float[2,1,3,1] x) => (float[a,b] y)", "y = Squeeze<axes=[-1,1]>(x)"),
    "unsqueeze-negative": (12, "(float[2,3] x) => (float[a,b,c,d] y)", "y = Unsqueeze<axes=[-1,0]>(x)"),
    "reduce-sum-negative": (11, "(float[2,3,4] x) => (float[a,b] y)", "y = ReduceSum<axes=[-2], keepdims=0>(x)"),
    "reduce-mean-all": (11, "(float[2,3,4] x) => (float y)", "y = ReduceMean<keepdims=0>(x)"),
    "reduce-max-12": (12, "(float[2,3,4] x) => (float[a,b,c] y)", "y = ReduceMax<axes=[0,-1]>(x)"),
    # normalization and activation
    "batch-norm-11": (11, X, "y = BatchNormalization<momentum=0.5>(x, v, v, v, v)"),
    "dropout-unused-mask": (9, X, "y, m = Dropout<ratio=0.3>(x)"),
    "softmax-rank-1": (11, V, "y = Softmax<axis=0>(x)"),
    "softmax-one-wide": (9, "(float[2,5,1,1] x) => (float[a,b,c,d] y)", "y = Softmax(x)"),
    "softmax-from-zero": (9, "(float[2,3] x) => (float[a,b] y)", "y = LogSoftmax<axis=0>(x)"),
    "softmax-negative": (11, "(float[2,3,4] x) => (float[a,b,c] y)", "y = Softmax<axis=-2>(x)"),
    "softmax-symbols": (11, "(float[N,M,2] x) => (float[N,M,2] y)", "y = Softmax<axis=1>(x)"),
    "softmax-empty": (11, "(float[0,3,2] x) => (float[a,b,c] y)", "y = Softmax<axis=2>(x)"),
    # nothing to adapt, but a schema of another version reads them afterwards
    "average-pool-same": (7, X, "y = AveragePool<kernel_shape=[3,3], auto_pad=\"SAME_LOWER\">(x)"),
    "average-pool-ceil": (10, X, "y = AveragePool<kernel_shape=[2,2], strides=[3,3], pads=[1,0,0,1], ceil_mode=1>(x)"),
    "max-pool-ceil": (10, X, "y = MaxPool<kernel_shape=[2,2], strides=[3,3], pads=[1,0,0,1], ceil_mode=1>(x)"),
    "max-pool-indices": (8, "(float[1,1,4,4] x) => (int64[a,b,c,d] y)", "p, y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)"),
    "lp-pool": (7, X, "y = LpPool<kernel_shape=[2,2], p=3>(x)"),
    "depth-to-space": (9, X, "y = DepthToSpace<blocksize=2>(x)"),
    "conv-transpose-same": (9, X, "y = ConvTranspose<auto_pad=\"SAME_UPPER\", strides=[2,2]>(x, k)"),
    "flatten-default": (8, "(float[2,3,4] x) => (float[a,b] y)", "y = Flatten(x)"),
    "gemm-scalar": (7, "(float[3,4] x) => (float[a,b] y)", "y = Gemm<alpha=0.5, beta=2.0>(x, g, one)"),
    "arg-max": (8, "(float[3,4] x) => (int64[a,b] y)", "y = ArgMax<axis=-1>(x)"),
    "one-hot": (9, "(float[4] x) => (float[a,b] y)", "i = Cast<to=7>(x) d = Constant<value=int64 {3}>() o = Constant<value=float[2] {0.0,1.0}>() y = OneHot(i, d, o)"),
    "pow": (7, V, "p = Abs(x) y = Pow(p, one)"),
    "cast-float-to-int": (9, "(float[4] x) => (int32[a] y)", "y = Cast<to=6>(x)"),
    "where-equal": (9, V, "c = Greater(x, one) y = Where(c, x, one)"),
    "lrn-and-instance-norm": (7, X, "t = LRN<size=3>(x) y = InstanceNormalization(t, v, v)"),
    "mean-variance": (9, X, "y = MeanVarianceNormalization<axes=[0,2,3]>(x)"),
    "cumsum": (11, "(float[3,4] x) => (float[a,b] y)", "n = Constant<value=int64 {1}>() y = CumSum<reverse=1>(x, n)"),
    "scatter-negative-axis": (
        10, "(float[3,4] x) => (float[a,b] y)",
        "i = Constant<value=int64[1,2] {1,0}>() u = Constant<value=float[1,2] {5.0,6.0}>() y = Scatter(x, i, u)",
    ),
    "quantize-scalar": (
        10, "(float[3,4] x) => (float[a,b] y)", "s = Constant<value=float {0.1}>() z = Constant<value=uint8 {128}>() "
        "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)",
    ),
    # graphs inside nodes
    "loop": (
        9, "(float[2,3] x) => (float[a,b] y)", "n = Constant<value=int64 {3}>() y = Loop (n, , x) <body = g (int64 i, bool k, float[2,3] p) => "
        "(bool k2, float[2,3] r) { k2 = Identity(k) s = ReduceSum<axes=[1]>(p) c = Clip<min=-2.0, max=2.0>(s) r = Sub(p, c) }>",
    ),
    "scan": (
        11, "(float[4,3] x) => (float[a,b] y)", "z = Constant<value=float[1] {0.0}>() f, y = Scan<num_scan_inputs=1, body = g (float[1] p, float[3] q) => "
        "(float[1] r, float[3] o) { s = ReduceSum<axes=[0]>(q) r = Add(p, s) t = Squeeze<axes=[0]>(r) o = Mul(q, t) }>(z, x)",
    ),
    "if": (
        9, "(float[4] x) => (float[a] y)", "c = Constant<value=bool {1}>() y = If (c) <then_branch = tb () => (float[p] u) "
        "{ u = Slice<axes=[0], starts=[-4], ends=[9]>(x) }, else_branch = eb () => (float[q] e) { e = Dropout(x) }>",
    ),
    "if-softmax-output": (
        11, "(float[2,3,4] x) => (float[a,b,c] y)", "c = Constant<value=bool {1}>() y = If (c) <then_branch = tb () => "
        "(float[p,q,r] u) { u = Softmax<axis=1>(x) }, else_branch = eb () => (float[f,h,i] e) { e = Neg(x) }>",
    ),
    "if-in-loop": (
        11, "(float[2,3] x) => (float[a,b] y)", "n = Constant<value=int64 {2}>() y = Loop (n, , x) <body = g (int64 i, bool k, float[2,3] p) => "
        "(bool k2, float[2,3] r) { k2 = Identity(k) r = If (k) <then_branch = tb () => (float[2,3] u) { e = Unsqueeze<axes=[0]>(p) "
        "l, m = Split<axis=0, split=[1,0]>(e) u = Squeeze<axes=[0]>(l) }, else_branch = eb () => (float[2,3] o) { o = Identity(p) }> }>",
    ),
}  # fmt: skip
EXTRA = {
    "v": np.abs(numbers(4)) + 0.5, "k": numbers(4, 2, 3, 3), "g": numbers(4, 2), "one": np.array(0.75, np.float32), **ROI,
}  # fmt: skip


@pytest.mark.parametrize("to", [13, 19, 21])
@pytest.mark.parametrize("case", CASES)
def test_upgraded_computes_the_same(case: str, to: int) -> None:
    opset, head, body = CASES[case]
    if opset >= to:
        return
    used = {name: array for name, array in EXTRA.items() if f" {name}," in f" {body}".replace("(", " ").replace(")", ",")}
    raise_to(build(f"{head} {{ {body} }}", opset, **used), to)


@pytest.mark.parametrize("to", [14, 19, 21])
@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
def test_recurrent_operators(op: str, to: int) -> None:
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[op]
    arrays = {"w": numbers(1, gates * 5, 3), "r": numbers(1, gates * 5, 5), "b": numbers(1, gates * 10)}
    attributes = "hidden_size=5" + (", linear_before_reset=1" if op == "GRU" else "")
    module = build(f"(float[4,2,3] x) => (float[a,b,c,d] y, float[e,f,g] h) {{ y, h = {op}<{attributes}>(x, w, r, b) }}", 7, **arrays)
    raise_to(module, to)


def test_step_by_step_equals_at_once() -> None:
    graph = f"{X} {{ a1 = Clip<min=0.0>(x) b1 = Pad<pads=[0,0,1,0,0,0,0,1]>(a1) y = Softmax<axis=2>(b1) }}"
    once, steps = build(graph, 8), build(graph, 8)
    raise_to(once, 21)
    for to in range(9, 22):
        raise_to(steps, to)
    given = feed_of(once)
    np.testing.assert_array_equal(run(once, given)["y"], run(steps, given)["y"])


@pytest.mark.parametrize("opset", [9, 11, 13])
def test_outputs_that_nobody_uses_put_batch_normalization_in_training_mode(opset: int) -> None:
    """ONNX Runtime normalizes with the batch's own statistics there, so nothing may take it for inference."""
    module = build(f"{X} {{ y, a1, a2, a3, a4 = BatchNormalization(x, v, v, v, v) }}", opset, v=EXTRA["v"])
    assert unchanged(module, UpgradeOpset(to=19)) == {"it is in training mode, whose statistics changed"}


REFUSED = {
    "upsample-linear-rank-3": (9, "(float[1,2,5] x) => (float y)", "s = Constant<value=float[3] {1.0,1.0,2.0}>() y = Upsample<mode=\"linear\">(x, s)", "linear Upsample of this rank has no counterpart"),
    "upsample-linear-unknown-rank": (9, "(float[1,2,5,5] x) => (float y)", "u = own.f(x) s = Constant<value=float[3] {1.0,1.0,2.0}>() y = Upsample<mode=\"linear\">(u, s)", "linear Upsample of this rank has no counterpart"),
    "dropout-mask": (9, "(float[4] x) => (float y, float m)", "y, m = Dropout(x)", "its mask is used, and changed its type"),
    "dropout-mask-10": (10, "(float[4] x) => (float y, bool m)", "y, m = Dropout(x)", "its mask is used, and changed its meaning"),
    "batch-norm-training": (13, "(float[2,4,3,3] x) => (float y, float m)", "y, m = BatchNormalization(x, v, v, v, v)", "it is in training mode, whose statistics changed"),
    "resize-tf-half-pixel": (11, "(float[1,1,4,4] x) => (float y)", "s = Constant<value=float[4] {1.0,1.0,2.0,2.0}>() y = Resize<coordinate_transformation_mode=\"tf_half_pixel_for_nn\">(x, x, s)", "coordinate mode tf_half_pixel_for_nn ended with opset 12"),
    "clip-unknown-type": (10, "(float[4] x) => (float y)", "u = own.f(x) y = Clip<min=0.0>(u)", "the element type of its input is not known"),
    "quantize-per-axis": (12, "(uint8[2,3] x) => (float y)", "s = Constant<value=float[3] {0.1,0.2,0.3}>() y = DequantizeLinear(x, s)", "its scale is not a scalar"),
    "group-norm-computed": (18, "(float[2,4,3] x) => (float y)", "s = Constant<value=float[2] {1.0,2.0}>() t = Neg(s) y = GroupNormalization<num_groups=2>(x, t, s)", "its channels, scale or bias are not constant"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_counterpart_keeps_its_opset(case: str) -> None:
    opset, head, body, reason = REFUSED[case]
    module = build(f"{head} {{ {body} }}", opset, v=EXTRA["v"])
    assert unchanged(module, UpgradeOpset(to=21)) == {reason}
    assert module.opset == opset


def test_a_scan_of_opset_8_stays() -> None:
    module = build(
        "(float[1,4,3] x) => (float y) { f, y = Scan<num_scan_inputs=1, body = g (float[3] p, float[3] q) => "
        "(float[3] r, float[3] o) { r = Add(p, q) o = Identity(r) }>( , x, x) }", 8,
    )  # fmt: skip
    assert unchanged(module, UpgradeOpset(to=19)) == {"Scan of opset 8 carries a batch dimension that later versions lack"}


def test_names_made_in_sibling_branches_do_not_meet() -> None:
    body = "{{ {0} = Clip<min=0.0>(x) {1} = Clip<max=0.0>({0}) }}"
    module = build(
        "(bool c, float[4] x) => (float[a] y) { y = If (c) <then_branch = tb () => (float[4] u) " + body.format("t", "u")
        + ", else_branch = eb () => (float[4] v) " + body.format("s", "v") + "> }", 9,
    )  # fmt: skip
    raise_to(module, 19)
    assert ops(module) == ["If"]
