"""The ladder of evidence: numbers on the CPU, and what other people's compilers say where their environment is there."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import joulec
from joulec.backends import backend, checks, compilers, outside
from joulec.backends.base import Artefact
from joulec.backends.placement import forecast
from joulec.ir.feeds import Feeds
from joulec.ir.kernel_table import kernel_table
from joulec.ir.runner import LocalRunner
from joulec.ir.session import SessionOptions
from joulec.passes.base import Context
from joulec.passes.convert_float16 import ConvertFloat16
from joulec.passes.legalize_qdq import LegalizeQdq
from tests.passes.int8_kit import CNN, CPU, TENSORRT, build, cnn_weights, feeds, quantized, random

DATA = feeds(x=(1, 3, 12, 12))


def emitted(folder: Path, module, reference=None, given=()):
    module.save(folder / "model.onnx")
    return Artefact(module, folder, LocalRunner(), reference=reference, feeds=given)


def answering(folder: Path, monkeypatch, answer: str, code: int = 0) -> None:
    """An environment whose interpreter prints `answer`."""
    python = folder / "gpu" / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\necho 'it broke' >&2\nexit {code}\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv(outside.VARIABLE, str(folder / "gpu"))


# -- numbers on the CPU ----------------------------------------------------------------------------------------------


def test_an_artefact_that_computes_the_same_passes(tmp_path):
    module = build(CNN, cnn_weights())
    rung = checks.numerics(module, emitted(tmp_path, module, module, DATA[:2]), SessionOptions())
    assert (rung.status, rung.detail) == ("passed", "worst output off by 0.0e+00 (at most 0.001; 2 feeds, made-up feeds)")


def test_integers_are_also_run_without_optimizations(tmp_path):
    module = build(CNN, cnn_weights())
    int8, _ = quantized(module, DATA, TENSORRT)
    rung = checks.numerics(int8, emitted(tmp_path, int8, module, DATA[:2]), SessionOptions())
    assert rung.status == "passed" and "unoptimized" in rung.detail


def test_other_numbers_fail(tmp_path):
    module = build(CNN, cnn_weights())
    other = build(CNN, {**cnn_weights(), "b4": np.float32([3, 0, 0, 0, 0])})
    rung = checks.numerics(other, emitted(tmp_path, other, module, DATA[:2]), SessionOptions())
    assert (rung.status, rung.binding) == ("failed", False)


PAIR = "g (float[1,4] x) => (float[1,4] y) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"


@pytest.mark.parametrize(("late", "status", "said"), [(1.0, "passed", "64 feeds"), (2.0, "failed", "64 feeds")])
def test_all_feeds_decide_where_the_first_few_disagree(tmp_path, late, status, said):
    """The integers reach to 1.27: a first feed of 2 weighs much among four, and little among 64."""
    before = build("g (float[1,4] x) => (float[1,4] y) { y = Identity(x) }", {})
    int8 = build(PAIR, {"s": np.float32(0.01), "z": np.int8(0)})
    given = [{"x": np.float32([[2.0 if index == 0 else late, 0, 0, 0]])} for index in range(64)]
    rung = checks.numerics(int8, emitted(tmp_path, int8, before, given), SessionOptions())
    assert (rung.status, said in rung.detail, "; on the first 4: " in rung.detail) == (status, True, True), rung
    again = checks.numerics(int8, emitted(tmp_path, int8, before, given[1:]), SessionOptions())
    assert ("4 feeds" in again.detail) == (late == 1.0), again


def test_sixteen_bits_are_rounded(tmp_path):
    module = build(CNN, cnn_weights())
    half = module.clone()
    target = replace(backend("cuda").target)
    ConvertFloat16().run(half, Context(target, feeds=Feeds.of(DATA), runner=LocalRunner()))
    rung = checks.numerics(half, emitted(tmp_path, half, module, DATA[:2]), SessionOptions())
    off = float(rung.detail.removeprefix("worst output off by ").split(" ")[0])
    assert rung.status == "passed" and 1e-5 < off < 2e-2


def test_without_feeds_nothing_is_compared(tmp_path):
    module = build(CNN, cnn_weights())
    assert checks.numerics(module, emitted(tmp_path, module, module), SessionOptions()).status == "skipped"


def test_lint_errors_show(tmp_path):
    int8, _ = quantized(build(CNN, cnn_weights()), DATA, CPU)
    rung = checks.linted(int8, backend("tensorrt"))
    assert rung.status == "failed" and "unsigned-integers" in rung.detail
    assert checks.linted(int8, backend("cpu")).status == "passed"


# -- other people's compilers ----------------------------------------------------------------------------------------


def test_without_an_environment_they_are_skipped_and_say_how(tmp_path, monkeypatch):
    monkeypatch.delenv(outside.VARIABLE, raising=False)
    rung = compilers.cuda_placement(emitted(tmp_path, build(CNN, cnn_weights())), {})
    assert rung.status == "skipped" and "make gpu-env" in rung.detail
    monkeypatch.setenv(outside.VARIABLE, str(tmp_path / "nothing"))
    assert "no env/bin/python there" in (outside.run("placement", []).skipped or "")


@pytest.mark.parametrize(
    ("answer", "code", "status", "said"),
    [
        ({"providers": {"CUDAExecutionProvider": 4}, "cpu": [], "memcpy": 0}, 0, "passed", "4 of 4 nodes on CUDA, 0 copies"),
        ({"providers": {"CPUExecutionProvider": 1, "CUDAExecutionProvider": 3}, "cpu": ["Tan t"], "memcpy": 2}, 0,
         "failed", "3 of 4 nodes on CUDA, 2 copies (onnxruntime-gpu, no GPU); on the CPU: Tan t"),
        ({"providers": {"CUDAExecutionProvider": 4}, "cpu": [], "memcpy": 1}, 0, "failed", "on the CPU: none"),
        ({}, 3, "failed", "it broke"),
        ("nonsense", 0, "failed", "printed no JSON"),
    ],
)  # fmt: skip
def test_placement_is_read(tmp_path, monkeypatch, answer, code, status, said):
    answering(tmp_path, monkeypatch, answer if isinstance(answer, str) else json.dumps(answer), code)
    rung = compilers.cuda_placement(emitted(tmp_path, build(CNN, cnn_weights())), {})
    assert rung.status == status and said in rung.detail


def int8_names(module):
    return [node.name for node in compilers.quantized_operators(module)]


@pytest.mark.parametrize("lost", [0, 1])
def test_every_quantized_operator_must_be_an_integer_layer(tmp_path, monkeypatch, lost):
    module, _ = quantized(build(CNN, cnn_weights()), DATA, TENSORRT)
    names = int8_names(module)
    assert len(names) == 4
    layers = [{"type": "correlation", "reads": ["Int8", "Int8", "Float"], "makes": ["Half"], "nodes": [n]} for n in names]
    for layer in layers[:lost]:
        layer["reads"] = ["Half", "Int8"]  # a weight alone does not make it one
    answer = {"version": "1", "parsed": True, "built": True, "refused": [], "errors": [], "layers": layers}
    answering(tmp_path, monkeypatch, json.dumps(answer))
    rung = compilers.engine(emitted(tmp_path, module), module, {})
    assert (rung.status, f"INT8 in {4 - lost} of 4" in rung.detail) == ("failed" if lost else "passed", True)


def test_transposed_convolutions_in_float_are_told_and_held_against_nobody(tmp_path, monkeypatch):
    text = """g (float[1,16,4,4] x) => (float[1,16,n,m] y) {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) w = DequantizeLinear(w8, s, z)
        y = ConvTranspose(d, w) }"""
    module = build(text, {"s": np.float32(0.1), "z": np.int8(0), "w8": np.ones((16, 16, 2, 2), np.int8)})
    layers = [{"type": "deconv", "reads": ["Float", "Float"], "makes": ["Float"], "nodes": int8_names(module)}]
    answer = {"version": "1", "parsed": True, "built": True, "refused": [], "errors": [], "layers": layers}
    answering(tmp_path, monkeypatch, json.dumps(answer))
    rung = compilers.engine(emitted(tmp_path, module), module, {})
    assert (rung.status, "INT8 in 0 of 0 quantized operators, 1 ConvTranspose in float" in rung.detail) == ("passed", True), rung


def test_a_model_that_does_not_parse_is_binding(tmp_path, monkeypatch):
    answer = {"version": "1", "parsed": False, "built": False, "refused": ["n: zero-point"], "errors": [], "layers": []}
    answering(tmp_path, monkeypatch, json.dumps(answer))
    module = build(CNN, cnn_weights())
    rung = compilers.engine(emitted(tmp_path, module), module, {})
    assert (rung.status, rung.binding, rung.detail) == ("failed", True, "not parsed: n: zero-point")


def test_what_the_compiler_refuses_of_the_input_too_is_not_held_against_the_artefact(tmp_path, monkeypatch):
    answer = {"version": "1", "parsed": True, "built": False, "refused": [], "errors": ["assertion"], "layers": []}
    answering(tmp_path, monkeypatch, json.dumps(answer))
    module = build(CNN, cnn_weights())
    rung = compilers.engine(emitted(tmp_path, module, module), module, {})
    assert (rung.status, rung.binding) == ("failed", False)
    assert rung.detail == "parsed, not built: assertion; it refuses the input model too"


def test_profiles_are_handed_on():
    options = {f"trt_profile_{which}_shapes": f"x:{n}x3,y:{n}x8" for which, n in [("min", 1), ("opt", 8), ("max", 32)]}
    assert compilers._spans(options) == ["x=1x3/8x3/32x3", "y=1x8/8x8/32x8"]
    assert compilers._spans({}) == []


# -- the compilers themselves ----------------------------------------------------------------------------------------

needs_compilers = [
    pytest.mark.gpu_evidence,
    pytest.mark.skipif(not os.environ.get(outside.VARIABLE), reason="make test-gpu-evidence runs it"),
]


def evidence(mark):
    for one in needs_compilers:
        mark = one(mark)
    return mark


@evidence
def test_one_command_gives_artefacts_that_the_compilers_take(tmp_path):
    module = build(CNN.replace("float[N", "float[1"), cnn_weights())
    module.save(tmp_path / "model.onnx")
    reports = joulec.optimize(
        tmp_path / "model.onnx", tmp_path / "out", target=["cpu", "cuda", "tensorrt"], int8=True, max_drop=None,
        float16=True, data=DATA,
    ).reports  # fmt: skip
    rungs = {(name, rung.name): (rung.status, rung.detail) for name, one in reports.items() for rung in one.checks}
    assert rungs["cuda", "CUDA placement"][0] == "passed"
    assert rungs["tensorrt", "TensorRT-RTX engine"][0] == "passed"
    assert {status for status, _ in rungs.values()} <= {"passed", "skipped"}, rungs


@evidence
def test_the_forecast_is_what_onnx_runtime_does(tmp_path):
    module = build("g (float[1,256] x) => (float[1,256] y) { a = Relu(x) b = Tan(a) c = Sigmoid(b) y = Tan(c) }", {})
    said = forecast(module, kernel_table("cuda"))
    found = outside.run("placement", [str(emitted(tmp_path, module).directory / "model.onnx")]).found
    assert [f"{one.op_type} {one.node}" for one in said.fallbacks] == found["cpu"] == ["Tan tan1", "Tan tan3"]
    assert len(said.copies) == found["memcpy"] == 3


@evidence
def test_a_recurrent_layer_is_placed(tmp_path):
    weights = {"w": np.ones((1, 16, 3), np.float32), "r": np.ones((1, 16, 4), np.float32)}
    module = build("g (float[5,1,3] x) => (float[5,1,1,4] y) { y = LSTM<hidden_size=4>(x, w, r) }", weights)
    rung = compilers.cuda_placement(emitted(tmp_path, module), {})
    assert rung.status == "passed", rung.detail


@evidence
def test_what_the_cpu_wants_tensorrt_refuses_until_it_is_legalized(tmp_path):
    module, _ = quantized(build(CNN.replace("float[N", "float[1"), cnn_weights()), DATA, CPU)
    refused = compilers.engine(emitted(tmp_path, module), module, {})
    assert refused.status == "failed" and "not parsed" in refused.detail
    LegalizeQdq().run(module, Context(TENSORRT, runner=LocalRunner()))
    taken = compilers.engine(emitted(tmp_path, module), module, {})
    assert taken.status == "passed", taken.detail


def test_feeds_are_put_together_where_the_batch_is_fixed(tmp_path):
    module = build(CNN, cnn_weights())
    module.save(tmp_path / "model.onnx")
    report = joulec.optimize(
        tmp_path / "model.onnx", tmp_path / "out", target="cuda", data=feeds(10, x=(1, 3, 12, 12)), shape={"N": 4}
    ).reports["cuda"]
    rung = next(one for one in report.checks if one.name == "CPU numerics")
    assert (rung.status, "2 feeds, data (10 feeds)" in rung.detail) == ("passed", True), rung


def test_data_of_any_size_are_the_feeds_where_the_file_says_minus_one(tmp_path):
    """Paddle writes -1 for any size: the user's rows are what the numbers are compared on, not made-up ones."""
    module = build(CNN, cnn_weights())
    module.save(tmp_path / "model.onnx")
    proto = onnx.load(tmp_path / "model.onnx")
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    onnx.save(proto, tmp_path / "model.onnx")
    report = joulec.optimize(
        tmp_path / "model.onnx", tmp_path / "out", target="cpu", data=feeds(10, x=(1, 3, 12, 12)), int8=False,
    ).reports["cpu"]  # fmt: skip
    rung = next(one for one in report.checks if one.name == "CPU numerics")
    assert (rung.status, "4 feeds, data (10 feeds)" in rung.detail) == ("passed", True), rung


@pytest.mark.parametrize(("rows", "kept"), [(1, False), (8, True)])
def test_int8_of_which_the_rules_leave_nothing_is_not_said_to_be_kept(tmp_path, rows, kept):
    """A product with a single row is better in float on TensorRT, and how many rows there are is known at the end."""
    weights = random(w=(64, 64), v=(64, 32))
    build("g (float[N,64] x) => (float[N,32] y) { h = Gemm(x, w) r = Relu(h) y = Gemm(r, v) }", weights).save(tmp_path / "m.onnx")
    report = joulec.optimize(
        tmp_path / "m.onnx", tmp_path / "out", target="tensorrt", int8=True, max_drop=None, data=feeds(16, x=(1, 64)),
        shape={"N": rows},
    ).reports["tensorrt"]  # fmt: skip
    (choice,) = [one for one in report.decisions if one.what == "INT8"]
    assert (choice.kept, "better in float at these sizes" in choice.reason) == (kept, not kept), choice
