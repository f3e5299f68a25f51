"""The rung that reads an artefact's config.pbtxt back, by joulec's copy of Triton's definition and by Triton's own."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import onnx
import pytest

from joulec.backends import backend, outside, triton_config
from joulec.backends.base import Artefact
from joulec.backends.triton_schema import parsed
from joulec.errors import InputError
from joulec.ir.runner import LocalRunner
from joulec.shapespec import parse_shapes
from tests.passes.int8_kit import CNN, build, cnn_weights

MIXED = "g (float[N,3] x, int64 k, string[M] s, bool[2] b) => (float[N,3] y, int64 l, string[M] t, bool[2] c) { y = Relu(x) l = Identity(k) t = Identity(s) c = Not(b) }"
TARGETS = ("cpu", "cuda", "tensorrt")


def rung(folder: Path, module, target: str = "cpu"):
    backend(target).emit(module, folder, 1, parse_shapes(["N=1:4:8"]))
    emitted = Artefact(module, folder, LocalRunner())
    return triton_config.read_back(emitted, module, backend(target))


@pytest.fixture
def alone(monkeypatch):
    monkeypatch.delenv(outside.VARIABLE, raising=False)


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_written_is_what_is_read(tmp_path, alone, target):
    found = rung(tmp_path, build(CNN, cnn_weights()), target)
    assert (found.status, "1 inputs, 1 outputs and all options" in found.detail) == ("passed", True), found


def test_every_kind_of_tensor(tmp_path, alone):
    found = rung(tmp_path, build(MIXED, {}))
    assert (found.status, "4 inputs, 4 outputs" in found.detail) == ("passed", True), found


def test_what_triton_does_not_take_is_skipped_with_the_reason(tmp_path, alone):
    found = rung(tmp_path, build("g (bfloat16[2] x) => (bfloat16[2] y) { y = Relu(x) }", {}))
    assert found.status == "skipped" and "input 'x'" in found.detail


@pytest.mark.parametrize(
    ("written", "instead", "said"),
    [
        ("dims: [ -1, 3, 12, 12 ]", "dims: [ 1, 3, 12, 12 ]", "inputs"),
        ("TYPE_FP32", "TYPE_FP16", "inputs"),
        ('name: "y"', 'name: "z"', "outputs"),
        ('"tensorrt"', '"cuda"', "accelerators"),
        ('"trt_builder_optimization_level"', '"trt_auxiliary_streams"', "options that are lost: trt_builder"),
        ('value: "x:4x3x12x12"', 'value: "x:8x3x12x12"', "options that are lost: trt_profile_opt_shapes"),
        ("backend:", "backends:", "not a model configuration"),
    ],
)  # fmt: skip
def test_another_configuration_fails(tmp_path, alone, monkeypatch, written, instead, said):
    plain = triton_config.config

    def changed(*args):
        text = plain(*args)
        assert written in text
        return text.replace(written, instead)

    monkeypatch.setattr(triton_config, "config", changed)
    found = rung(tmp_path, build(CNN, cnn_weights()), "tensorrt")
    assert found.status == "failed" and said in found.detail, found


def test_what_is_no_configuration_is_an_input_error():
    with pytest.raises(InputError, match="not a model configuration"):
        parsed("name: 3")


@pytest.mark.parametrize(
    ("answer", "code", "status", "said"),
    [
        ({"missing": "No module named 'tritonclient'"}, 0, "passed", "by joulec's copy of its definition"),
        ({"version": "2", "config": {"name": "m"}}, 0, "failed", "(read by tritonclient 2)"),
        ({}, 1, "failed", "tritonclient: it broke"),
    ],
)
def test_tritons_own_reading_counts(tmp_path, monkeypatch, answer, code, status, said):
    python = tmp_path / "gpu" / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(answer)}\nEND\necho 'it broke' >&2\nexit {code}\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv(outside.VARIABLE, str(tmp_path / "gpu"))
    found = rung(tmp_path, build(CNN, cnn_weights()))
    assert found.status == status and said in found.detail, found


@pytest.mark.gpu_evidence
@pytest.mark.skipif(not os.environ.get(outside.VARIABLE), reason="make test-gpu-evidence runs it")
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("graph", [CNN, MIXED])
def test_tritons_own_definition_reads_it(tmp_path, target, graph):
    found = rung(tmp_path, build(graph, cnn_weights() if graph is CNN else {}), target)
    assert found.status == "passed" and "tritonclient" in found.detail, found
    assert onnx.load(tmp_path / "model.onnx").graph.input
