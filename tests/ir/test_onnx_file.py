"""Reading ONNX files that nobody vouches for: what is kept, what is said, what is refused and why."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as onh
import pytest

from joulec.errors import InputError
from joulec.ir.onnx_file import external_files, read
from joulec.ir.precision import precision_of

FLOAT = onnx.TensorProto.FLOAT


def model(nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto] = [], **extra: object) -> onnx.ModelProto:  # noqa: B006
    graph = oh.make_graph(
        nodes,
        "g",
        [oh.make_tensor_value_info("x", FLOAT, [2])],
        [oh.make_tensor_value_info("y", FLOAT, [2])],
        initializers,
    )
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 18)], ir_version=9, **extra)


def add(name: str = "add") -> onnx.NodeProto:
    return oh.make_node("Add", ["x", "w"], ["y"], name=name)


def external(location: str, offset: int = 0, length: int | None = 8, dims: tuple[int, ...] = (2,)) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name="w", data_type=FLOAT, dims=dims, data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def saved(folder: Path, proto: onnx.ModelProto) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def nested(tensor: onnx.TensorProto) -> onnx.ModelProto:
    """An If whose branches hold `tensor` as an initializer."""
    branch = oh.make_graph(
        [oh.make_node("Add", ["x", "w"], ["r"])], "b", [], [oh.make_tensor_value_info("r", FLOAT, [2])], [tensor]
    )
    node = oh.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    return model([node], [onh.from_array(np.array(True), "c")])


def test_external_data_stays_mapped_also_in_subgraphs(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(np.array([9, 1, 2], np.float32).tobytes())
    for proto in (model([add()], [external("w.bin", 4)]), nested(external("w.bin", 4))):
        path = saved(tmp_path, proto)
        module = read(path)
        graphs = [module.graph, *module.graph.subgraphs()]
        found = [g.initializers["w"].const_value for g in graphs if "w" in g.initializers]
        assert found
        assert all(tensor.numpy().tolist() == [1, 2] for tensor in found)
        assert external_files(path) == [tmp_path / "w.bin"]


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (external("../w.bin"), "outside the model's folder"),
        (external("sub/../../w.bin"), "outside the model's folder"),
        (external("/etc/passwd"), "outside the model's folder"),
        (external("link.bin"), "outside the model's folder"),
        (external("pipe"), "not a regular file"),
        (external("missing.bin"), "does not exist"),
        (external(""), "without a location"),
        (external("w.bin", 8), "beyond the end of 'w.bin'"),
        (external("w.bin", -4), "beyond the end of 'w.bin'"),
        (external("w.bin", 0, 4), "needs 8 bytes, its external data has length 4"),
        (external("w.bin", 0, None, (1 << 40,)), "beyond the end of 'w.bin'"),
    ],
)
@pytest.mark.parametrize("shape", [lambda t: model([add()], [t]), nested], ids=["graph", "subgraph"])
def test_external_data_outside_is_refused(tmp_path: Path, tensor: onnx.TensorProto, reason: str, shape) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for where in (folder, tmp_path):
        (where / "w.bin").write_bytes(bytes(12))
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    os.mkfifo(folder / "pipe")
    with pytest.raises(InputError, match=reason):
        read(saved(folder, shape(tensor)))


def test_a_hard_link_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(8))
    os.link(tmp_path / "w.bin", tmp_path / "w2.bin")
    with pytest.raises(InputError, match="several hard links: copy it"):
        read(saved(tmp_path, model([add()], [external("w.bin")])))


def test_dimensions_that_the_bytes_do_not_fill_are_refused() -> None:
    tensor = onnx.TensorProto(name="w", data_type=FLOAT, dims=[1 << 40], raw_data=bytes(8))
    with pytest.raises(InputError, match=r"tensor 'w' \(1099511627776\) needs 4398046511104 .*, has 8"):
        read(model([add()], [tensor]))


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9, 0.99])
def test_truncated_files_are_refused_by_name(tmp_path: Path, keep: float) -> None:
    data = model([add()], [onh.from_array(np.ones(2, np.float32), "w")]).SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(InputError, match=r"cut\.onnx: "):
        read(path)


@pytest.mark.parametrize(
    "data", [b"", b"hello, this is a text file\n", bytes(64), onnx.ModelProto().SerializeToString()]
)
def test_what_is_no_model_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "no.onnx"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"no\.onnx: "):
        read(path)


def test_misordered_nodes_are_sorted_and_a_cycle_is_named() -> None:
    relu, neg = oh.make_node("Relu", ["x"], ["a"], name="r"), oh.make_node("Neg", ["a"], ["y"], name="n")
    module = read(model([neg, relu]))
    assert [node.name for node in module.graph] == ["r", "n"]
    assert module.origin.notes == ("the nodes were not in topological order: sorted",)
    loop = oh.make_node("Add", ["x", "y"], ["a"], name="r")
    with pytest.raises(InputError, match=r"cycle through (Add 'r'|Neg 'n')"):
        read(model([loop, neg]))


def test_a_split_into_more_than_it_declares_is_refused() -> None:
    """ONNX's shape inference would end the process."""
    text = (
        '<ir_version: 8, opset_import: ["": 18]> g (float[6] x) => (float[3] a, float[3] b, float[3] c) '
        "{ a, b, c = Split<num_outputs = 2>(x) }"
    )
    with pytest.raises(InputError, match="Split 'Split_0' declares 2 outputs and has 3"):
        read(onnx.parser.parse_model(text))


def test_an_undefined_value_is_named() -> None:
    with pytest.raises(InputError, match="Add 'add' uses 'w', which is not defined"):
        read(model([add()]))


def test_names_are_kept_and_missing_ones_are_deterministic() -> None:
    nodes = [oh.make_node("Relu", ["x"], ["a"], name="same"), oh.make_node("Neg", ["a"], ["b"], name="same")]
    nodes += [oh.make_node("Relu", ["b"], ["c"]), oh.make_node("Relu", ["c"], ["y"])]
    names = [node.name for node in read(model(nodes)).graph]
    assert names[:2] == ["same", "same"]
    assert names == [node.name for node in read(model(nodes)).graph]
    assert len(set(names[2:])) == 2


def test_nan_weights_are_noted_by_name() -> None:
    for dtype in (np.float32, np.float64, np.float16):
        tensor = onh.from_array(np.array([1, np.nan], dtype), "w")
        proto = model([oh.make_node("Identity", ["x"], ["y"])], [tensor])
        assert read(proto).origin.notes == ("the model's weights contain NaN: 'w'",)
    infinite = onh.from_array(np.array([np.inf, -np.inf], np.float16), "w")
    assert read(model([oh.make_node("Identity", ["x"], ["y"])], [infinite])).origin.notes == ()


def test_a_sparse_initializer_becomes_dense_and_is_noted() -> None:
    proto = model([add()])
    values, indices = onh.from_array(np.array([5], np.float32), "w"), onh.from_array(np.array([1], np.int64), "i")
    proto.graph.sparse_initializer.append(oh.make_sparse_tensor(values, indices, [2]))
    module = read(proto)
    assert module.graph.initializers["w"].const_value.numpy().tolist() == [0, 5]
    assert module.origin.notes == ("sparse initializer 'w' is stored dense",)
    assert len(proto.graph.sparse_initializer) == 1, "the caller's model is left alone"
    proto.graph.sparse_initializer[0].dims[0] = 1 << 40
    with pytest.raises(InputError, match="beyond 256 MiB"):
        read(proto)


def test_metadata_documentation_and_functions_survive() -> None:
    function = oh.make_function(
        "local", "Twice", ["a"], ["b"], [oh.make_node("Add", ["a", "a"], ["b"])], [oh.make_opsetid("", 18)]
    )
    node = oh.make_node("Twice", ["x"], ["y"], domain="local", doc_string="a node")
    proto = model([node], functions=[function], doc_string="a model", producer_name="p")
    proto.opset_import.append(oh.make_opsetid("local", 1))
    proto.metadata_props.add(key="k", value="v")
    proto.graph.doc_string = "a graph"
    again = read(proto).to_proto()
    assert (again.doc_string, again.graph.doc_string, again.graph.node[0].doc_string) == (
        "a model",
        "a graph",
        "a node",
    )
    assert [(p.key, p.value) for p in again.metadata_props] == [("k", "v")]
    assert [(f.domain, f.name) for f in again.functions] == [("local", "Twice")]


def test_precision_is_told_without_running() -> None:
    half = model([oh.make_node("Identity", ["x"], ["y"])], [onh.from_array(np.ones(2, np.float16), "w")])
    assert precision_of(read(half)) == "float16"
    scale, zero = onh.from_array(np.float32(1), "s"), onh.from_array(np.int8(0), "z")
    nodes = [
        oh.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        oh.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    assert precision_of(read(model(nodes, [scale, zero]))) == "quantized"
    assert precision_of(read(model([oh.make_node("Relu", ["x"], ["y"])]))) == "float32"


def test_an_input_that_is_an_output_keeps_its_own_declaration():
    graph = oh.make_graph(
        [], "g", [oh.make_tensor_value_info("x", FLOAT, ["N", 4])], [oh.make_tensor_value_info("x", FLOAT, [None, None])]
    )
    module = read(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 18)], ir_version=9))
    assert str(module.graph.inputs[0].shape) == "[N,4]"


def test_two_initializers_of_one_name_must_be_the_same():
    """Runtimes differ, and one of them by size, in which of them they take."""
    ones, twos = (onh.from_array(np.full(2, number, np.float32), "w") for number in (1, 2))
    assert list(read(model([add()], [ones, ones])).graph.initializers) == ["w"]
    with pytest.raises(InputError, match="initializer 'w' of graph 'g' is there twice, with different numbers"):
        read(model([add()], [ones, twos]))


def test_a_dict_of_classes_for_each_row_is_refused_with_what_to_do() -> None:
    """As skl2onnx and onnxmltools write classifiers unless they are told not to."""
    zipped = oh.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1])
    proto = model([zipped])
    proto.opset_import.append(oh.make_opsetid("ai.onnx.ml", 3))
    dicts = oh.make_sequence_type_proto(oh.make_map_type_proto(7, oh.make_tensor_type_proto(FLOAT, [])))
    proto.graph.output[0].type.CopyFrom(dicts)
    with pytest.raises(InputError, match=r"'y' holds maps, .*\{'zipmap': False\}") as caught:
        read(proto)
    assert "malformed" not in str(caught.value)


def test_a_size_of_minus_one_is_any_size(tmp_path: Path) -> None:
    """Paddle's exporter writes -1; taken for a number, data of any size would not fit."""
    made = model([add()], [onh.from_array(np.zeros(2, np.float32), "w")])
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    onnx.save(made, tmp_path / "m.onnx")
    module = read(tmp_path / "m.onnx")
    assert [isinstance(value.shape[0], int) for value in (*module.inputs(), *module.graph.outputs)] == [False, False]
    module.save(tmp_path / "out.onnx")
    assert not onnx.load(tmp_path / "out.onnx").graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")
