"""Masks by the source model's names: tracked through the passes, and put back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from joulec.backends.artefact import write_arrays
from joulec.errors import InputError
from joulec.ir.lower.names import _transposition, weights_of
from joulec.ir.module import Module, NamedWeight, Origin
from joulec.ir.onnx_file import read
from joulec.ir.sources import source_masks, tracked
from joulec.passes.base import Context
from joulec.passes.default import exact_passes
from joulec.passes.pipeline import Pipeline
from joulec.passes.prune_magnitude import PruneMagnitude
from joulec.passes.target import Target
from joulec.training.masks import apply_masks

TARGET = Target("cpu", "CPUExecutionProvider", 19, 9, None, "generic-server-cpu")


class Variable:
    """What the masks need of a Keras variable."""

    dtype = "float32"

    def __init__(self, path: str, array: np.ndarray) -> None:
        self.path, self.array = path, array

    def numpy(self) -> np.ndarray:
        return self.array

    def assign(self, array: np.ndarray) -> None:
        self.array = np.asarray(array)


class Model:
    """What the masks need of a Keras model."""

    def __init__(self, **weights: np.ndarray) -> None:
        self.weights = [Variable(name.replace("__", "/"), array) for name, array in weights.items()]


def lowered(kernel: np.ndarray) -> Module:
    """A dense layer as tf2onnx might store it: transposed, scaled, behind a Transpose."""
    import onnx
    from onnx import helper, numpy_helper, parser

    proto = onnx.ModelProto(ir_version=8, opset_import=[helper.make_opsetid("", 17)])
    text = "g (float[N, 8] x) => (float[N, 12] y) { t = Transpose(w) h = MatMul(x, t) s = Mul(h, c) y = Add(s, b) }"
    proto.graph.CopyFrom(parser.parse_graph(text))
    arrays = {"w": kernel.T * 2, "c": np.linspace(1, 2, 12, dtype="f"), "b": np.ones(12, "f")}
    proto.graph.initializer.extend(numpy_helper.from_array(np.ascontiguousarray(a), n) for n, a in arrays.items())
    return read(proto)


def test_masks_find_their_way_back_through_transposes_and_fusions() -> None:
    kernel = np.random.default_rng(0).standard_normal((8, 12)).astype(np.float32)
    module = lowered(kernel)
    keras = Model(dense__kernel=kernel, dense__bias=np.ones(12, "f"))
    found = weights_of(keras, module)
    assert found == {"w": NamedWeight("dense/kernel", (8, 12), (1, 0))}
    module.origin = Origin("keras", weights=found)
    outcome = Pipeline([*exact_passes(), PruneMagnitude(sparsity=0.5)]).run(tracked(module), Context(target=TARGET))
    masks = source_masks(outcome.module)
    (stored,) = (v for n, v in outcome.module.graph.initializers.items() if n in outcome.module.masks)
    scaled = kernel * 2 * np.linspace(1, 2, 12, dtype="f")
    assert set(masks) == {"dense/kernel"}
    assert masks["dense/kernel"].sum() == 48
    assert np.allclose(stored.const_value.numpy(), np.where(masks["dense/kernel"], scaled, 0), rtol=1e-6)
    apply_masks(keras, masks)
    assert np.array_equal(keras.weights[0].array, np.where(masks["dense/kernel"], kernel, 0))


def test_kernels_of_equal_sizes_are_told_apart_by_their_numbers() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.standard_normal((2, 3, 3, 4, 4)).astype(np.float32)
    assert _transposition(one, one.transpose(3, 2, 0, 1) * np.arange(1, 5, dtype="f")[:, None, None, None]) == (
        3,
        2,
        0,
        1,
    )
    assert _transposition(one, other.transpose(3, 2, 0, 1)) is None


def test_masks_from_files(tmp_path: Path) -> None:
    write_arrays(tmp_path / "masks.npz", {"dense_scaled": np.eye(3, dtype=bool)})
    write_arrays(tmp_path / "masks_source.npz", {"dense/kernel": np.eye(3, dtype=bool)})
    for place in (tmp_path, tmp_path / "masks.npz", tmp_path / "masks_source.npz"):
        model = apply_masks(Model(dense__kernel=np.ones((3, 3), "f")), place)
        assert np.array_equal(model.weights[0].array, np.eye(3))


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        ({"other/kernel": np.ones((3, 3), bool)}, "names no weight of the model; it has dense/kernel"),
        ({"dense/kernel": np.ones((3, 2), bool)}, "the weight is"),
        ({"dense/kernel": np.ones((3, 3))}, "is float64"),
    ],
)
def test_masks_that_do_not_fit(masks: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(InputError, match=said):
        apply_masks(Model(dense__kernel=np.ones((3, 3), "f")), masks)


def test_kernels_that_are_stored_as_matrices_are_found_by_their_numbers() -> None:
    """MultiHeadAttention's kernels have an axis of heads, which tf2onnx flattens."""
    kernel = np.random.default_rng(0).standard_normal((8, 3, 4)).astype(np.float32)
    module = lowered(kernel.reshape(8, 12))
    held = module.graph.initializers["w"]
    held.const_value = ir.tensor(np.ascontiguousarray(kernel.reshape(8, 12)))
    assert weights_of(Model(query__kernel=kernel), module) == {"w": NamedWeight("query/kernel", (8, 3, 4), (0, 1, 2))}
    assert weights_of(Model(query__kernel=kernel + 1), module) == {}
