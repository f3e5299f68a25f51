"""Artefacts as people deploy them: a Triton repository, an .ort file, an engine script, options when loading."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import joulec
from joulec.backends import artefact, backend
from joulec.backends.deploy import edge, triton
from joulec.backends.triton_config import config
from joulec.backends.triton_schema import parsed
from joulec.cli import main
from joulec.errors import InputError, UnavailableError
from joulec.ir.onnx_file import read as read_model
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


@pytest.mark.parametrize(("target", "accelerator"), [("cpu", None), ("cuda", "cuda"), ("tensorrt", "tensorrt")])
def test_a_triton_repository_is_read_back(built, tmp_path, target, accelerator):
    files = triton(built / target, tmp_path / "models", "digits")
    assert [str(file.relative_to(tmp_path / "models")) for file in files] == ["digits/1/model.onnx", "digits/config.pbtxt"]
    read = parsed((tmp_path / "models" / "digits" / "config.pbtxt").read_text())
    assert (read["name"], read["backend"], read.get("max_batch_size", 0)) == ("digits", "onnxruntime", 0)
    names = [(one["name"], one["data_type"], one["dims"]) for one in (*read["input"], *read["output"])]
    batch = "-1" if target == "cpu" else "1"
    assert names == [("x", "TYPE_FP32", [batch, "3", "12", "12"]), ("y", "TYPE_FP32", [batch, "5"])]
    optimization = read.get("optimization", {})
    accelerators = optimization.get("execution_accelerators", {}).get("gpu_execution_accelerator", [])
    assert [one["name"] for one in accelerators] == ([] if accelerator is None else [accelerator])
    assert optimization.get("graph") == ({"level": 2} if target == "tensorrt" else None)
    assert ort.InferenceSession(files[0], providers=["CPUExecutionProvider"]).get_inputs()[0].name == "x"


def settings_of(folder, **options):
    return replace(artefact.settings(folder), provider_options=options)


def test_triton_gets_options_where_it_looks_for_them(built):
    module = read_model(built / "cuda" / "model.onnx")
    cuda = parsed(config(module, settings_of(built / "cuda", cudnn_conv_algo_search="HEURISTIC", use_tf32="0"), "m"))
    (accelerator,) = cuda["optimization"]["execution_accelerators"]["gpu_execution_accelerator"]
    assert accelerator["parameters"] == {"use_tf32": "0"}
    assert cuda["parameters"] == {"cudnn_conv_algo_search": {"string_value": "1"}}
    given = {"trt_fp16_enable": "1", "trt_int8_enable": "0", "trt_max_workspace_size": "9"}
    tensorrt = parsed(config(module, settings_of(built / "tensorrt", **given), "m"))
    (accelerator,) = tensorrt["optimization"]["execution_accelerators"]["gpu_execution_accelerator"]
    assert accelerator["parameters"] == {"precision_mode": "FP16", "max_workspace_size_bytes": "9"}
    cpu = replace(artefact.settings(built / "cpu"), arena=False, threads=3)
    values = {key: one["string_value"] for key, one in parsed(config(module, cpu, "m"))["parameters"].items()}
    assert values == {"intra_op_thread_count": "3", "enable_mem_arena": "0"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"trt_op_types_to_exclude": "Conv"}, "has no such parameter"),
        ({"trt_fp16_enable": "1", "trt_int8_enable": "1"}, "one precision_mode, and this is FP16 and INT8"),
    ],
)
def test_options_that_triton_refuses(built, options, said):
    with pytest.raises(InputError, match=said):
        config(read_model(built / "tensorrt" / "model.onnx"), settings_of(built / "tensorrt", **options), "m")


def test_a_scalar_is_a_dimension_of_one():
    module = build("g (float x) => (float y) { y = Relu(x) }", {})
    assert parsed(config(module, backend("cpu").settings(1), "m"))["input"][0]["dims"] == ["1"]


def test_a_server_keeps_engines_where_it_is_told(built, tmp_path, capsys):
    command = ["package", str(built / "tensorrt"), "-o", str(tmp_path / "models"), "--name", "m", "--engines", "/engines"]
    assert main(command) == 0
    optimization = parsed((tmp_path / "models" / "m" / "config.pbtxt").read_text())["optimization"]
    (accelerator,) = optimization["execution_accelerators"]["gpu_execution_accelerator"]
    given = accelerator["parameters"]
    assert (given["trt_engine_cache_enable"], given["trt_engine_cache_path"], given["trt_timing_cache_path"]) == ("1", "/engines", "/engines")
    assert main(["package", str(built / "cuda"), "-o", str(tmp_path), "--name", "n", "--engines", "/engines"]) == 2
    assert main(["package", str(built / "cpu"), "-o", str(tmp_path), "--for", "edge", "--engines", "/engines"]) == 2
    assert "for artefacts for tensorrt" in capsys.readouterr().err


def test_names_are_escaped():
    module = build('g (float[1,2] x) => (float[1,2] y) { y = Relu(x) }', {})
    module.graph.inputs[0].name = 'a"} name: "b\\é\n'
    text = config(module, backend("cpu").settings(1), "m")
    assert parsed(text)["input"][0]["name"] == 'a"} name: "b\\é\n'


def test_what_triton_does_not_take_is_refused(built, tmp_path):
    for name in ("../up", "a/b", "", ".hidden"):
        with pytest.raises(InputError, match="--name"):
            triton(built / "cpu", tmp_path, name)
    triton(built / "cpu", tmp_path, "twice")
    with pytest.raises(InputError, match="is there already"):
        triton(built / "cpu", tmp_path, "twice")
    for kind, said in (("complex64[1,2]", "of types that it knows"), ("bfloat16[2]", "of types"), ("float[0,2]", "size 0")):
        module = build(f"g ({kind} x) => ({kind} y) {{ y = Identity(x) }}", {})
        with pytest.raises(InputError, match=f"input 'x': Triton takes .*{said}"):
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
    assert set(given) == {"trt_builder_optimization_level"}  # a flag of a precision would let TensorRT choose types


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
    assert artefact._kept(found, tmp_path / "c") == {
        "trt_engine_cache_enable": "1", "trt_engine_cache_path": str(tmp_path / "c"),
        "trt_timing_cache_enable": "1", "trt_timing_cache_path": str(tmp_path / "c"),
    }  # fmt: skip
    with pytest.raises(InputError, match="has no 'trt_plugin' here"):
        artefact._allowed(found, {"trt_plugin": "x"})
    with pytest.raises(InputError, match="known: none"):
        joulec.load(built / "cpu", provider_options={"x": "1"})
