"""fuse-affine: scales and shifts pass Transposes and other movements on their way to a linear operator."""

from __future__ import annotations

import numpy as np
import pytest
from fusion_kit import build, fuse, numbers, ops, unchanged

from joulec.passes.fuse_affine import FuseAffine
from joulec.passes.fuse_gemm import FuseGemm

W = numbers(4, 3, 3, 3)
IMAGE = "(float[N,8,8,3] x) => (float[N,4,8,8] y)"
INPUT = {"s": np.abs(numbers(3, seed=1)) + 0.5, "t": numbers(3, seed=2), "w": W}
PADDED = "y = Conv<pads=[1,1,1,1]>(d, w)"


def test_a_normalized_channels_last_image_keeps_only_its_shift() -> None:
    """The scale goes into the Conv, the shift stays because of the border, behind the Transpose."""
    body = f"a = Mul(x, s) b = Add(a, t) d = Transpose<perm=[0,3,1,2]>(b) {PADDED}"
    module = build(f"{IMAGE} {{ {body} }}", **INPUT)
    fuse(module, FuseAffine())
    assert ops(module) == ["Transpose", "Add", "Conv"]


def test_a_normalization_in_many_steps_too() -> None:
    body = f"a = Div(x, k) b = Sub(a, t) c = Div(b, s) d = Transpose<perm=[0,3,1,2]>(c) {PADDED}"
    module = build(f"{IMAGE} {{ {body} }}", k=np.array(255.0, np.float32), **INPUT)
    fuse(module, FuseAffine())
    assert ops(module) == ["Transpose", "Add", "Conv"]


def test_without_padding_nothing_is_left() -> None:
    body = "a = Div(x, s) b = Sub(t, a) d = Transpose<perm=[0,3,1,2]>(b) y = Conv(d, w)"
    module = build(f"(float[N,8,8,3] x) => (float[N,4,6,6] y) {{ {body} }}", **INPUT)
    fuse(module, FuseAffine())
    assert ops(module) == ["Transpose", "Conv"]


def test_a_shift_from_a_constant_turns_the_sign_over() -> None:
    body = f"a = Mul(x, s) b = Sub(t, a) d = Transpose<perm=[0,3,1,2]>(b) {PADDED}"
    module = build(f"{IMAGE} {{ {body} }}", **INPUT)
    fuse(module, FuseAffine())
    assert ops(module) == ["Transpose", "Add", "Conv"]


def test_scalars_too() -> None:
    body = f"a = Div(x, k) d = Sub(a, k) {PADDED}"
    module = build(f"(float[N,3,8,8] x) => (float[N,4,8,8] y) {{ {body} }}", k=np.array(127.5, np.float32), w=W)
    fuse(module, FuseAffine())
    assert ops(module) == ["Add", "Conv"]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"s": np.array([1, 0, 2], np.float32)}, "the scale is zero or so small that the shift would overflow"),
        ({"s": np.array([1, 1e-30, 2], np.float32)}, "the scale is zero or so small that the shift would overflow"),
    ],
)
def test_a_scale_that_cannot_be_taken_out_stays(changed: dict[str, np.ndarray], reason: str) -> None:
    given = {name: array.reshape(-1, 1, 1) if array.ndim == 1 else array for name, array in (INPUT | changed).items()}
    body = f"a = Mul(x, s) d = Add(a, t) {PADDED}"
    assert reason in unchanged(build(f"(float[N,3,8,8] x) => (float[N,4,8,8] y) {{ {body} }}", **given), FuseAffine())


def test_a_scaled_image_that_is_also_shown_stays() -> None:
    body = f"a = Mul(x, s) d = Add(a, t) {PADDED}"
    graph = f"(float[N,3,8,8] x) => (float[N,4,8,8] y, float[N,3,8,8] a) {{ {body} }}"
    given = {"s": numbers(3, 1, 1), "t": numbers(3, 1, 1), "w": W}
    assert "the scale or the shift before it is used elsewhere too" in unchanged(build(graph, **given), FuseAffine())


def test_a_constant_that_widens_stays_before_its_transpose() -> None:
    body = f"b = Add(x, t) d = Transpose<perm=[0,3,1,2]>(b) {PADDED}"
    module = build(f"(float[N,8,8,1] x) => (float[N,4,8,8] y) {{ {body} }}", t=INPUT["t"], w=W)
    assert "its constant may widen what it is combined with" in unchanged(module, FuseAffine())


C = numbers(4, 3, 1, 1, seed=5)
BEHIND = "(float[N,3,7,1] x) => (float[A,B,C] y)"


@pytest.mark.parametrize(
    ("body", "constants", "left"),
    [
        (
            "c = Conv(x, w) s = Squeeze(c, a) y = Add(s, b)",
            {"a": np.array([3]), "b": numbers(1, 4, 1)},
            ["Conv", "Squeeze"],
        ),
        (
            "c = Conv(x, w) s = Squeeze(c, a) y = Mul(b, s)",
            {"a": np.array([-1]), "b": numbers(4, 1)},
            ["Conv", "Squeeze"],
        ),
        (
            "c = Conv(x, w) s = Squeeze(c, a) t = Transpose<perm=[0,2,1]>(s) y = Add(t, b)",
            {"a": np.array([3]), "b": numbers(4)},
            ["Conv", "Squeeze", "Transpose"],
        ),
        (
            "c = Conv(x, w) t = Transpose<perm=[0,2,3,1]>(c) r = Reshape(t, a) y = Sub(b, r)",
            {"a": np.array([-1, 7, 4]), "b": numbers(4)},
            ["Conv", "Transpose", "Reshape"],
        ),
        (
            "c = Conv(x, w) s = Squeeze(c, a) t = Slice(s, k, e, k2) y = Div(t, b)",
            {"a": np.array([3]), "k": np.array([1]), "e": np.array([5]), "k2": np.array([2]), "b": numbers(4, 1) + 9},
            ["Conv", "Squeeze", "Slice"],
        ),
    ],
)
def test_a_constant_behind_movements_goes_into_the_conv(
    body: str, constants: dict[str, np.ndarray], left: list[str]
) -> None:
    module = build(f"{BEHIND} {{ {body} }}", w=C, **constants)
    fuse(module, FuseAffine())
    assert ops(module) == left


def test_the_bias_of_a_reshaped_product_goes_into_a_gemm() -> None:
    graph = "(float[N,6] x) => (float[N,1,4] y) { c = MatMul(x, w) r = Reshape(c, a) y = Add(r, b) }"
    module = build(graph, w=numbers(6, 4), a=np.array([-1, 1, 4]), b=numbers(4))
    fuse(module, FuseAffine())
    fuse(module, FuseGemm())
    assert ops(module) == ["Gemm", "Reshape"]


@pytest.mark.parametrize(
    ("body", "constants", "reason"),
    [
        (
            "c = Conv(x, w) s = Squeeze(c, a) y = Add(s, b)", {"a": np.array([3]), "b": numbers(1, 1, 7)},
            "its constant is not per channel of the linear operator",
        ),
        (
            "c = Conv(x, w) s = Slice(c, k, e, k) q = Squeeze(s, a) y = Add(q, b)",
            {"a": np.array([3]), "k": np.array([1]), "e": np.array([3]), "b": numbers(2, 1)},
            "the channels are sliced before it",
        ),
        (
            "c = Conv(x, w) r = Reshape(c, a) y = Add(r, b)", {"a": np.array([-1, 7, 4]), "b": numbers(4)},
            "it is reshaped before, and its constant does not run along a last axis that stays",
        ),
        (
            "c = Conv(x, w) s = Squeeze(c, a) y = Add(s, b)", {"a": np.array([3]), "b": numbers(1, 1, 4, 1)},
            "its constant may raise the rank",
        ),
    ],
)  # fmt: skip
def test_what_is_no_constant_of_a_channel_stays(body: str, constants: dict[str, np.ndarray], reason: str) -> None:
    outputs = (
        "(float[N,3,7,1] x) => (float[A,B,C] y)"
        if constants["b"].ndim < 4
        else "(float[N,3,7,1] x) => (float[A,B,C,D] y)"
    )
    assert reason in unchanged(build(f"{outputs} {{ {body} }}", w=C, **constants), FuseAffine())


def test_a_normalization_behind_a_conv_of_unknown_rank_is_taken() -> None:
    """The rank of what a Conv makes is that of its weight, also where inference lost it."""
    norm = {name: np.abs(numbers(4, seed=i)) + 0.1 for i, name in enumerate("gbmv")}
    graph = "(float[N,3,7,1] x, int64[4] d) => (float[A,B,C,D] y)"
    body = "r = Reshape(x, d) c = Conv(r, w) y = BatchNormalization(c, g, b, m, v)"
    module = build(f"{graph} {{ {body} }}", w=C, **norm)
    conv = next(node for node in module.graph if node.op_type == "Conv")
    feed = {"x": numbers(2, 3, 7, 1), "d": np.array([2, 3, 7, 1])}
    fuse(module, _Forgetful(), feed)
    assert conv.outputs[0].name == "y"


class _Forgetful(FuseAffine):
    """The pass on a module whose Conv has no inferred shape."""

    def run(self, module, context):  # type: ignore[no-untyped-def]
        for node in module.graph:
            for output in node.outputs:
                if not output.is_graph_output():
                    output.shape = None
        return super().run(module, context)
