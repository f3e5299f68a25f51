"""fit-kernels: what a target has no kernel for is written with what it has."""

from __future__ import annotations

import numpy as np
import pytest
from fusion_kit import build, ops, run

from joulec.backends import backend
from joulec.ir.module import Module
from joulec.ir.shapes import infer_shapes
from joulec.ir.verify import Verifier
from joulec.passes.base import Context
from joulec.passes.fit_kernels import FitKernels

BOUNDS = {"low": np.int32(0), "high": np.int32(9)}


def fitted(module: Module, target: str) -> set[str]:
    """Run the pass in place for `target`; the reasons that it gave."""
    infer_shapes(module)
    verifier = Verifier(module)
    result = FitKernels().run(module, Context(backend(target).target))
    verifier.verify(module)
    return {one.reason for one in result.refusals}


@pytest.mark.parametrize(
    ("given", "expected"), [("low, high", ["Max", "Min"]), ("low", ["Max"]), (", high", ["Min"]), (", ", ["Clip"])]
)
def test_indices_are_clipped_on_the_gpu(given: str, expected: list[str]) -> None:
    """CUDA has kernels for Clip of int64 and floats, not of int32: Magika's tokens would go to the CPU and back."""
    text = f"(int32[N,4] x) => (int32[N,4] y) {{ y = Clip(x, {given}) }}"
    module = build(text, **{name: array for name, array in BOUNDS.items() if name in given})
    feed = {"x": np.array([[-3, 0, 9, 12]], np.int32)}
    before = run(module, feed)
    assert fitted(module, "cuda") == set()
    assert ops(module) == expected
    np.testing.assert_array_equal(run(module, feed)["y"], before["y"])


def test_what_has_a_kernel_stays() -> None:
    integers = build("(int32[N,4] x) => (int32[N,4] y) { y = Clip(x, low, high) }", **BOUNDS)
    assert fitted(integers, "cpu") == set() and ops(integers) == ["Clip"]
    floats = build("(float[N,4] x) => (float[N,4] y) { y = Clip(x, low, high) }", low=np.float32(0), high=np.float32(9))
    assert fitted(floats, "cuda") == set() and ops(floats) == ["Clip"]


def test_where_the_others_have_none_either_it_is_said() -> None:
    module = build("(int16[N,4] x) => (int16[N,4] y) { y = Clip(x, low) }", low=np.int16(0))
    assert fitted(module, "cuda") == {"there is no kernel for Max of int16 either"}
    assert ops(module) == ["Clip"]


def test_cuda_artefacts_are_fitted() -> None:
    assert FitKernels() in backend("cuda").fitting() and FitKernels() in backend("tensorrt").fitting()
