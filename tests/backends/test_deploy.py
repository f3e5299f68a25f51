"""Artefacts as people deploy them: a Triton repository, an .ort file, an engine script, options when loading."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

import joulec
from joulec.backends import artefact, backend
from joulec.backends.deploy import config, edge, triton
from joulec.cli import main
from joulec.errors import InputError, UnavailableError
from tests.passes.int8_kit import CNN, build, cnn_weights, feeds

DATA = feeds(x=(1, 3, 12, 12))


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """One artefact a target, from one command."""
    folder = tmp_path_factory.mktemp("deploy")
    build(CNN, cnn_weights()).save(folder / "model.onnx")
    joulec.optimize(
        folder / "model.onnx", folder / "out", target=["cpu", "cuda", "tensorrt"], int8=True, float16=True,
        max_drop=None, data=DATA, shape={"N": 1},
    )  # fmt: skip
    return folder / "out"


def model_config():
    """Triton's ModelConfig, as far as joulec writes it: names, numbers and types of its published definition."""
    field = descriptor_pb2.FieldDescriptorProto
    text, integer, nested, enum = field.TYPE_STRING, field.TYPE_INT64, field.TYPE_MESSAGE, field.TYPE_ENUM
    messages = {
        "Entry": [("key", 1, text, None, 1), ("value", 2, text, None, 1)],
        "Text": [("string_value", 1, text, None, 1)],
        "Parameter": [("key", 1, text, None, 1), ("value", 2, nested, "Text", 1)],
        "Tensor": [("name", 1, text, None, 1), ("data_type", 2, enum, "Type", 1), ("dims", 3, integer, None, 3)],
        "Group": [("count", 2, integer, None, 1), ("kind", 4, enum, "Kind", 1)],
        "Accelerator": [("name", 1, text, None, 1), ("parameters", 2, nested, "Entry", 3)],
        "Accelerators": [("gpu_execution_accelerator", 1, nested, "Accelerator", 3)],
        "Graph": [("level", 1, integer, None, 1)],
        "Optimization": [("graph", 1, nested, "Graph", 1), ("execution_accelerators", 5, nested, "Accelerators", 1)],
        "ModelConfig": [
            ("name", 1, text, None, 1), ("backend", 17, text, None, 1), ("max_batch_size", 4, integer, None, 1),
            ("input", 5, nested, "Tensor", 3), ("output", 6, nested, "Tensor", 3),
            ("instance_group", 7, nested, "Group", 3), ("optimization", 12, nested, "Optimization", 1),
            ("parameters", 14, nested, "Parameter", 3),
        ],
    }  # fmt: skip
    file = descriptor_pb2.FileDescriptorProto(name="config.proto", package="t", syntax="proto3")
    for name, values in {"Type": ["TYPE_INVALID", "TYPE_FP32", "TYPE_INT64"], "Kind": ["KIND_AUTO", "KIND_GPU", "KIND_CPU"]}.items():
        made = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            made.value.add(name=value, number=number)
    for name, fields in messages.items():
        made = file.message_type.add(name=name)
        for called, number, kind, type_name, label in fields:
            made.field.add(name=called, number=number, type=kind, label=label, type_name=type_name and f".t.{type_name}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.ModelConfig"))()


@pytest.mark.parametrize(("target", "accelerator"), [("cpu", None), ("cuda", "cuda"), ("tensorrt", "tensorrt")])
def test_a_triton_repository_is_read_back(built, tmp_path, target, accelerator):
    files = triton(built / target, tmp_path / "models", "digits")
    assert [str(file.relative_to(tmp_path / "models")) for file in files] == ["digits/1/model.onnx", "digits/config.pbtxt"]
    read = text_format.Parse((tmp_path / "models" / "digits" / "config.pbtxt").read_text(), model_config())
    assert (read.name, read.backend, read.max_batch_size) == ("digits", "onnxruntime", 0)
    names = [(one.name, one.data_type, list(one.dims)) for one in (*read.input, *read.output)]
    assert names == [("x", 1, [-1 if target == "cpu" else 1, 3, 12, 12]), ("y", 1, [-1 if target == "cpu" else 1, 5])]
    accelerators = read.optimization.execution_accelerators.gpu_execution_accelerator
    assert [one.name for one in accelerators] == ([] if accelerator is None else [accelerator])
    written = {one.key: one.value for item in accelerators for one in item.parameters}
    assert written == dict(artefact.settings(built / target).provider_options)
    assert read.optimization.graph.level == (2 if target == "tensorrt" else 0)
    assert ort.InferenceSession(files[0], providers=["CPUExecutionProvider"]).get_inputs()[0].name == "x"


def test_tritons_own_definition_reads_it(built, tmp_path):
    service = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="pip install 'tritonclient[grpc]'")
    for target in ("cpu", "cuda", "tensorrt"):
        triton(built / target, tmp_path / "models", target)
        text = (tmp_path / "models" / target / "config.pbtxt").read_text()
        assert text_format.Parse(text, service.ModelConfig()).name == target


def test_names_are_escaped():
    module = build('g (float[1,2] x) => (float[1,2] y) { y = Relu(x) }', {})
    module.graph.inputs[0].name = 'a"} name: "b\\é\n'
    text = config(module, backend("cpu").settings(1), "m")
    assert text_format.Parse(text, model_config()).input[0].name == 'a"} name: "b\\é\n'


def test_what_triton_does_not_take_is_refused(built, tmp_path):
    for name in ("../up", "a/b", "", ".hidden"):
        with pytest.raises(InputError, match="--name"):
            triton(built / "cpu", tmp_path, name)
    triton(built / "cpu", tmp_path, "twice")
    with pytest.raises(InputError, match="is there already"):
        triton(built / "cpu", tmp_path, "twice")
    module = build("g (complex64[1,2] x) => (complex64[1,2] y) { y = Identity(x) }", {})
    with pytest.raises(InputError, match="input 'x': Triton takes"):
        config(module, backend("cpu").settings(1), "m")


def test_an_edge_file_runs_and_lists_its_operators(built, tmp_path):
    files = edge(built / "cpu", tmp_path, "digits")
    assert [file.name for file in files][:1] == ["digits.ort"] and len(files) == 2
    operators = files[1].read_text()
    assert "ai.onnx;" in operators and "Softmax" in operators
    before = ort.InferenceSession(built / "cpu" / "model.onnx", providers=["CPUExecutionProvider"]).run(None, DATA[0])
    after = ort.InferenceSession(tmp_path / "digits.ort", providers=["CPUExecutionProvider"]).run(None, DATA[0])
    assert after[0] == pytest.approx(before[0], abs=1e-4)
    with pytest.raises(InputError, match="made for CUDAExecutionProvider"):
        edge(built / "cuda", tmp_path, "other")


def test_the_command_line(built, tmp_path, capsys):
    assert main(["package", str(built / "cuda"), "-o", str(tmp_path / "models"), "--name", "m", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"][1].endswith("m/config.pbtxt")
    assert main(["package", str(built / "cuda"), "-o", str(tmp_path), "--for", "toaster"]) == 2
    assert main(["package", str(tmp_path), "-o", str(tmp_path / "models")]) == 2


def test_a_changed_artefact_is_not_packaged(built, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in (built / "cpu").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "session.json").write_text((copy / "session.json").read_text().replace('"threads": 1', '"threads": 2'))
    with pytest.raises(InputError, match="is not the file"):
        triton(copy, tmp_path / "models", "m")


def test_settings_follow_what_is_in_the_graph(built):
    assert artefact.settings(built / "cuda").provider_options["prefer_nhwc"] == "1"
    given = artefact.settings(built / "tensorrt").provider_options
    assert (given["trt_fp16_enable"], given["trt_int8_enable"]) == ("1", "1")
    assert not {"trt_bf16_enable", "trt_sparsity_enable"} & set(given)


def test_two_zeros_in_four_switch_sparse_kernels_on():
    weights = cnn_weights()
    module = build(CNN, {**weights, "w4": weights["w4"] * np.float32([1, 0, 0, 1, 0, 1, 1, 0])})
    assert backend("tensorrt").settings_for(module, 1, {}).provider_options["trt_sparsity_enable"] == "1"


def test_the_engine_script_says_what_is_missing(built, tmp_path):
    script = built / "tensorrt" / "build_engine.py"
    done = subprocess.run([sys.executable, str(script), str(tmp_path / "e")], capture_output=True, text=True, check=False)
    assert done.returncode == 5 and "TensorrtExecutionProvider is not in this onnxruntime" in done.stderr
    assert "build_engine.py" in json.loads((built / "tensorrt" / "manifest.json").read_text())["files"]


def test_options_of_the_caller_are_on_the_lists(built, tmp_path):
    with pytest.raises(UnavailableError):
        joulec.load(built / "tensorrt", cache=tmp_path / "cache")
    found = artefact.settings(built / "tensorrt")
    assert artefact._cached(found, tmp_path / "c") == {
        "trt_engine_cache_enable": "1", "trt_engine_cache_path": str(tmp_path / "c"),
        "trt_timing_cache_enable": "1", "trt_timing_cache_path": str(tmp_path / "c"),
    }  # fmt: skip
    with pytest.raises(InputError, match="has no 'trt_plugin' here"):
        artefact._allowed(found, {"trt_plugin": "x"})
    with pytest.raises(InputError, match="known: none"):
        joulec.load(built / "cpu", provider_options={"x": "1"})
