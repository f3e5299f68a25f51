"""fuse-pooling: spatial means become GlobalAveragePool where that is the same for every input."""

from __future__ import annotations

import numpy as np
import pytest
from fusion_kit import build, fuse, ops, unchanged

from joulec.passes.fuse_pooling import FusePooling

IMAGE = "(float[N,6,5,4] x) => (float[N,6,1,1] y)"
OTHER = "(float[N,6,5,4] x) => (float[A,B,C,D] y)"
AXES = np.array([2, 3])
TARGETS = {"minus": np.array([-1, 6, 1, 1]), "zero": np.array([0, 6, 1, 1])}


@pytest.mark.parametrize(
    ("opset", "body", "constants"),
    [
        (17, "y = ReduceMean<axes=[2,3]>(x)", {}),
        (17, "y = ReduceMean<axes=[-1,-2]>(x)", {}),
        (18, "y = ReduceMean(x, a)", {"a": AXES}),
        (17, "m = ReduceMean<axes=[2,3], keepdims=0>(x) y = Reshape(m, t)", {"t": TARGETS["minus"]}),
        (17, "m = ReduceMean<axes=[2,3], keepdims=0>(x) y = Reshape(m, t)", {"t": TARGETS["zero"]}),
        (18, "m = ReduceMean<keepdims=0>(x, a) y = Unsqueeze(m, a)", {"a": AXES}),
    ],
)
def test_a_spatial_mean_becomes_a_pooling(opset: int, body: str, constants: dict[str, np.ndarray]) -> None:
    module = build(f"{IMAGE} {{ {body} }}", opset=opset, **constants)
    fuse(module, FusePooling())
    assert ops(module) == ["GlobalAveragePool"]


@pytest.mark.parametrize(
    ("graph", "constants"),
    [
        ("(float[N,6,5,4] x) => (float[N,6,1,4] y) { y = ReduceMean<axes=[2]>(x) }", {}),
        ("(float[N,6,5,4] x) => (float[N,6] y) { y = ReduceMean<axes=[2,3], keepdims=0>(x) }", {}),
        ("(float[N,6,5] x) => (float[N,6,1] y) { y = ReduceMean<axes=[2]>(x) }", {}),  # as in a layer normalization
        ("(double[N,6,5,4] x) => (double[N,6,1,1] y) { y = ReduceMean<axes=[2,3]>(x) }", {}),
        ("(float[N,6] x) => (float[N,1] y) { y = ReduceMean<axes=[1]>(x) }", {}),
        (f"{OTHER} {{ m = ReduceMean<axes=[2,3], keepdims=0>(x) y = Reshape(m, t) }}", {"t": np.array([-1, 3, 1, 1])}),
        (f"{OTHER} {{ m = ReduceMean<axes=[2,3], keepdims=0>(x) y = Reshape(m, t) }}", {"t": np.array([-1, 1, 1, 6])}),
        (f"{IMAGE} {{ y = ReduceMean(x, a) }}", {"a": np.zeros(0, np.int64)}),
    ],
)
def test_other_means_stay(graph: str, constants: dict[str, np.ndarray]) -> None:
    opset = 18 if "a" in constants else 17
    assert unchanged(build(graph, opset=opset, **constants), FusePooling()) == set()


def test_means_that_are_read_twice_stay() -> None:
    body = "m = ReduceMean<axes=[2,3], keepdims=0>(x) y = Reshape(m, t) }"
    graph = f"(float[N,6,5,4] x) => (float[A,B,C,D] y, float[N,6] m) {{ {body}"
    assert unchanged(build(graph, opset=17, t=TARGETS["zero"]), FusePooling()) == set()


def test_an_image_of_unknown_size_stays() -> None:
    graph = "(float[N,6,H,4] x) => (float[N,6,1,1] y) { y = ReduceMean<axes=[2,3]>(x) }"
    reason = "the image's size is not known; an empty one has no mean that all kernels agree on"
    assert unchanged(build(graph, opset=17), FusePooling()) == {reason}
