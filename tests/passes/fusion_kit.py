"""Graphs in text with seeded numbers, fused, verified, and compared under ONNX Runtime at a stated tolerance."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
from rewrite_kit import TARGET, ops, run

from joulec.ir.module import Module
from joulec.ir.shapes import infer_shapes
from joulec.ir.verify import Verifier
from joulec.passes.base import Context, Pass, PassResult

CLOSE = {np.dtype("float64"): 1e-12, np.dtype("float32"): 2e-6, np.dtype("float16"): 2e-2}
"""Largest deviation, relative to the output's largest magnitude: a few roundings of the type."""

__all__ = ["build", "fuse", "numbers", "ops", "run", "unchanged"]


def numbers(*shape: int, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    """Seeded normal numbers."""
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype)


def build(graph: str, opset: int = 19, functions: str = "", **initializers: np.ndarray) -> Module:
    """A module from a graph in text form whose undefined names are `initializers`."""
    header = f'<ir_version: 9, opset_import: ["" : {opset}]>'
    proto = onnx.parser.parse_model(f"{header}\nagraph {graph}\n{functions}")
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in initializers.items())
    return Module(ir.from_proto(proto))


def feed_of(module: Module, symbol: int = 3) -> dict[str, np.ndarray]:
    """Seeded numbers for every input; symbols count as `symbol`, booleans are True."""
    feed = {}
    for index, value in enumerate(module.inputs()):
        assert value.shape is not None and value.dtype is not None
        dims = [dim if isinstance(dim, int) else symbol for dim in value.shape]
        kind = value.dtype.numpy()
        given = np.ones(dims, kind) if kind.kind == "b" else numbers(*dims, seed=index + 7, dtype=str(kind))
        feed[value.name or ""] = given
    return feed


def fuse(module: Module, one: Pass, feed: Mapping[str, np.ndarray] | None = None) -> PassResult:
    """Run `one` in place, verify, and compare every output with what it was before."""
    infer_shapes(module)
    given = feed_of(module) if feed is None else feed
    before, verifier = run(module, given), Verifier(module)
    result = one.run(module, Context(target=TARGET))
    verifier.verify(module)
    for name, actual in run(module, given).items():
        expected = before[name]
        assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
        largest = float(np.max(np.abs(expected.astype(np.float64)), initial=1e-3))
        np.testing.assert_allclose(
            actual.astype(np.float64), expected.astype(np.float64), rtol=0, atol=CLOSE[actual.dtype] * largest
        )
    return result


def unchanged(module: Module, one: Pass) -> set[str]:
    """Run `one`, demand the very same graph, and return the reasons it gave."""
    infer_shapes(module)
    before = module.to_proto().SerializeToString(deterministic=True)
    result = one.run(module, Context(target=TARGET))
    assert not result.changed
    assert module.to_proto().SerializeToString(deterministic=True) == before
    return {refusal.reason for refusal in result.refusals}
