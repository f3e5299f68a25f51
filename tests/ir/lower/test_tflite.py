"""TFLite flatbuffers: weights in the sparse format, and models that keep state."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulec.errors import InputError
from joulec.ir import walk
from joulec.ir.lower.tflite_sparse import coordinates, densify
from joulec.ir.lower.worker import lower_file
from joulec.ir.module import Module
from joulec.ir.onnx_file import read
from joulec.ir.values import Array, constant

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
pytest.importorskip("tensorflow")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

from tensorflow.lite.python import schema_py_generated as schema  # noqa: E402


def packed(model: Any, path: Path) -> Path:
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def encoded(dense: Array, order: Sequence[int], blocks: dict[int, int], compressed: set[int]) -> tuple[Any, Array]:
    """A tensor in TFLite's sparse format, by its definition: level by level, over all coordinates.

    Args:
        dense: the tensor.
        order: of the levels: a permutation of its dimensions, then one of its blocks.
        blocks: dimension -> size of the blocks in it, ascending.
        compressed: positions in `order` of the levels that list what is there; no two in a row need to be.
    """
    sizes = [size // blocks.get(axis, 1) for axis, size in enumerate(dense.shape)] + list(blocks.values())
    split = dense.reshape([part for axis in range(dense.ndim) for part in (sizes[axis], blocks.get(axis, 1))])
    axes = [2 * axis for axis in range(dense.ndim)] + [2 * axis + 1 for axis in blocks]
    rest = [axis for axis in range(split.ndim) if axis not in axes]
    levels = split.transpose([axes[level] for level in order] + rest).reshape([sizes[level] for level in order])
    metadata, positions = [], [()]
    for depth, level in enumerate(order):
        entry = schema.DimensionMetadataT(denseSize=sizes[level])
        wanted = [
            [c for c in range(sizes[level]) if depth not in compressed or levels[(*p, c)].any()] for p in positions
        ]
        if depth in compressed:
            entry = schema.DimensionMetadataT(
                1, 0, schema.SparseIndexVector.Int32Vector,
                schema.Int32VectorT(np.cumsum([0, *map(len, wanted)]).astype(np.int32)),
                schema.SparseIndexVector.Uint16Vector,
                schema.Uint16VectorT(np.array([c for found in wanted for c in found], np.uint16)),
            )  # fmt: skip
        metadata.append(entry)
        positions = [(*p, c) for p, found in zip(positions, wanted, strict=True) for c in found]
    values = np.array([levels[position] for position in positions], dense.dtype)
    return schema.SparsityParametersT(list(order), list(blocks) or None, metadata), values


@st.composite
def tensors(draw: st.DrawFn) -> tuple[Array, list[int], dict[int, int], set[int]]:
    rank = draw(st.integers(1, 4))
    blocks = {axis: draw(st.integers(2, 3)) for axis in range(rank) if draw(st.booleans())}
    shape = [draw(st.integers(1, 3)) * blocks.get(axis, 1) for axis in range(rank)]
    dense = np.array(draw(st.lists(st.sampled_from([0, 0, 0, 1, 2]), min_size=(n := int(np.prod(shape))), max_size=n)))
    order = [*draw(st.permutations(range(rank))), *(rank + b for b in range(len(blocks)))]
    compressed = {depth for depth in range(rank) if draw(st.booleans())}
    return dense.reshape(shape).astype(np.float32), order, blocks, compressed


@settings(max_examples=60, deadline=None)
@given(tensors())
def test_coordinates_invert_the_format(drawn: tuple[Array, list[int], dict[int, int], set[int]]) -> None:
    dense, order, blocks, compressed = drawn
    sparsity, values = encoded(dense, order, blocks, compressed)
    found = np.zeros_like(dense)
    found[coordinates(sparsity, dense.ndim)] = values
    np.testing.assert_array_equal(found, dense)


@pytest.fixture(scope="module")
def dense_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One matrix product whose weights are mostly zeros."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    layer = keras.layers.Dense(8)
    model = keras.Sequential([keras.Input((16,), name="x"), layer])
    weights = np.random.default_rng(0).normal(size=(16, 8)) * (np.random.default_rng(1).random((16, 8)) < 0.2)
    layer.set_weights([weights, np.ones(8)])
    path = tmp_path_factory.mktemp("tflite") / "dense.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    return path


def sparse_copy(source: Path, target: Path, converter: bool) -> Any:
    """The file with its matrix in the sparse format, read by the product itself or by a DENSIFY before it."""
    model = schema.ModelT.InitFromPackedBuf(source.read_bytes(), 0)
    (graph,) = model.subgraphs
    (index,) = [i for i, tensor in enumerate(graph.tensors) if list(tensor.shape) == [8, 16]]
    weight = graph.tensors[index]
    dense = np.asarray(model.buffers[weight.buffer].data).view(np.float32).reshape(8, 16)
    weight.sparsity, values = encoded(dense, [0, 1], {}, {1})
    model.buffers[weight.buffer].data = values.view(np.uint8)
    if converter:
        graph.tensors.append(schema.TensorT(list(weight.shape), weight.type, 0, b"dense"))
        model.operatorCodes.append(schema.OperatorCodeT(deprecatedBuiltinCode=124, builtinCode=124, version=1))
        for operator in graph.operators:
            operator.inputs = [len(graph.tensors) - 1 if i == index else i for i in operator.inputs]
        made = schema.OperatorT(len(model.operatorCodes) - 1, [index], [len(graph.tensors) - 1])
        graph.operators.insert(0, made)
    packed(model, target)
    return dense


def test_sparse_weights_are_written_out(dense_file: Path, tmp_path: Path) -> None:
    dense = sparse_copy(dense_file, tmp_path / "sparse.tflite", converter=True)
    answer = lower_file(str(tmp_path / "sparse.tflite"), "tflite", str(tmp_path), False)
    assert max(answer["parity"]["outputs"].values()) < 1e-5
    found = weights(read(tmp_path / "model.onnx"))
    assert any(np.array_equal(array, dense) or np.array_equal(array, dense.T) for array in found)


def test_weights_that_an_operator_reads_in_the_sparse_format_are_written_out_too(
    dense_file: Path, tmp_path: Path
) -> None:
    dense = sparse_copy(dense_file, tmp_path / "sparse.tflite", converter=False)
    model = schema.ModelT.InitFromPackedBuf((tmp_path / "sparse.tflite").read_bytes(), 0)
    assert densify(model, schema)
    (weight,) = [tensor for tensor in model.subgraphs[0].tensors if list(tensor.shape) == [8, 16]]
    assert weight.sparsity is None
    np.testing.assert_array_equal(np.asarray(model.buffers[weight.buffer].data).view(np.float32), dense.reshape(-1))


def weights(module: Module) -> list[Array]:
    values = [value for node in walk.nodes(module.model) for value in node.inputs if value is not None]
    return [found for value in values if (found := constant(value)) is not None]


def test_a_file_whose_sparsity_lies_is_damaged(dense_file: Path, tmp_path: Path) -> None:
    sparse_copy(dense_file, tmp_path / "sparse.tflite", converter=False)
    model = schema.ModelT.InitFromPackedBuf((tmp_path / "sparse.tflite").read_bytes(), 0)
    (sparse,) = [t for t in model.subgraphs[0].tensors if t.sparsity is not None]
    indices = sparse.sparsity.dimMetadata[1].arrayIndices
    indices.values = np.where(np.arange(len(indices.values)) == 0, 99, indices.values)
    packed(model, tmp_path / "lies.tflite")
    with pytest.raises(InputError, match=r"lies\.tflite: a damaged TFLite file"):
        lower_file(str(tmp_path / "lies.tflite"), "tflite", str(tmp_path), False)


def test_a_model_that_keeps_state_is_refused_with_the_reason(dense_file: Path, tmp_path: Path) -> None:
    model = schema.ModelT.InitFromPackedBuf(dense_file.read_bytes(), 0)
    assert not densify(model, schema), "nothing to do"
    code = schema.BuiltinOperator.VAR_HANDLE
    model.operatorCodes.append(schema.OperatorCodeT(deprecatedBuiltinCode=127, builtinCode=code, version=1))
    packed(model, tmp_path / "state.tflite")
    with pytest.raises(InputError, match=r"keeps state from one run to the next \(VAR_HANDLE\)"):
        lower_file(str(tmp_path / "state.tflite"), "tflite", str(tmp_path), False)


def test_operators_of_other_programs_are_named(dense_file: Path, tmp_path: Path) -> None:
    model = schema.ModelT.InitFromPackedBuf(dense_file.read_bytes(), 0)
    mine = {"deprecatedBuiltinCode": 32, "builtinCode": 32, "customCode": b"MyConv", "version": 1}
    model.operatorCodes[0] = schema.OperatorCodeT(**mine)
    packed(model, tmp_path / "custom.tflite")
    with pytest.raises(InputError, match=r"custom\.tflite: tf2onnx knows no ONNX operators for MyConv"):
        lower_file(str(tmp_path / "custom.tflite"), "tflite", str(tmp_path), False)


def test_operators_that_open_files_run_only_when_trusted(dense_file: Path, tmp_path: Path) -> None:
    model = schema.ModelT.InitFromPackedBuf(dense_file.read_bytes(), 0)
    model.operatorCodes[0].customCode = b"FlexReadFile"
    packed(model, tmp_path / "flex.tflite")
    with pytest.raises(InputError, match="'FlexReadFile' reads or writes files; --trust-code allows it"):
        lower_file(str(tmp_path / "flex.tflite"), "tflite", str(tmp_path), False)
