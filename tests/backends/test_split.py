"""A model on a CPU and a GPU: the cheapest placement, a latency limit, and what ONNX Runtime makes of it."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import replace

import numpy as np
import onnx
import pytest

from joulec.backends import artefact, outside
from joulec.backends.split import ANNOTATION, ASSIGNMENT, HOST, Splitter, annotated, named
from joulec.cli import main
from joulec.energy import EnergyModel, load_profile
from joulec.errors import BudgetError
from joulec.placing import place
from tests.passes.int8_kit import build, random

CPU, GPU = EnergyModel(load_profile("generic-server-cpu"), "cpu"), EnergyModel(load_profile("h100"), "cuda")

MIXED = """g (float[N,1024] x) => (float[N,1024] y) {
    a = Relu(x) b = MatMul(a, w) c = Tan(b) d = MatMul(c, w) e = Sigmoid(d) y = Neg(e) }"""


def mixed():
    return build(MIXED, random(w=(1024, 1024)))


def split(rows, seconds=None):
    return Splitter(mixed(), CPU, GPU, {"N": rows}).least(seconds)


def test_a_single_row_stays_on_the_host_and_many_go_to_the_device():
    assert len(split(1).host) == 6
    assert split(4096).host == ("tan2",)  # no kernel for it on the device


@pytest.mark.parametrize("rows", [1, 32, 128, 512, 4096])
def test_no_other_placement_costs_less(rows):
    splitter = Splitter(mixed(), CPU, GPU, {"N": rows})
    stuck = 2
    every = (sides for sides in itertools.product((False, True), repeat=6) if not sides[stuck])
    best = min(splitter._told(list(sides)).joules for sides in every)
    found = splitter.least()
    assert found.joules == pytest.approx(best, rel=1e-6)
    assert found.joules <= min(splitter.everywhere(False).joules, splitter.everywhere(True).joules) * (1 + 1e-9)


def test_a_latency_costs_joules_and_is_kept():
    """A device that is fast and costly, so that time and energy disagree."""
    profile = GPU.profile
    dear = replace(profile, energy={k: replace(v, value=v.value * 40) for k, v in profile.energy.items()})
    splitter = Splitter(mixed(), CPU, replace(GPU, profile=dear), {"N": 512})
    free = splitter.least()
    fastest = splitter._at(float("inf"))
    assert fastest.seconds < free.seconds and fastest.joules > free.joules
    limit = (fastest.seconds + free.seconds) / 2
    bound = splitter.least(limit)
    assert bound.seconds <= limit and free.joules <= bound.joules <= fastest.joules
    assert splitter.least(fastest.seconds / 2) is None


def test_copies_are_counted_with_inputs_and_outputs():
    splitter = Splitter(mixed(), CPU, GPU, {"N": 4096})
    assert splitter.everywhere(False).copies == 0
    assert splitter.everywhere(True).copies == 4  # in, around Tan, out


def test_nodes_without_names_get_some():
    module = mixed()
    for node in module.graph:
        node.name = "same"
    assert len({node.name for node in named(module).graph}) == 6


def test_the_artefact_carries_the_assignment(tmp_path, capsys):
    mixed().save(tmp_path / "model.onnx")
    command = ["place", str(tmp_path / "model.onnx"), "--shape", "N=4096", "-o", str(tmp_path / "both"), "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["placements"]["split"]["host"] == ["tan2"] and found["device"] == "h100"
    nodes = onnx.load(tmp_path / "both" / "model.onnx").graph.node
    marked = [node.name for node in nodes for entry in node.metadata_props if (entry.key, entry.value) == (ANNOTATION, HOST)]
    assert marked == ["tan2"]
    assert artefact.settings(tmp_path / "both").config == dict([ASSIGNMENT])
    assert main(["place", str(tmp_path / "model.onnx"), "--shape", "N=4096"]) == 0
    assert "all on the GPU" in capsys.readouterr().out
    assert main(["place", str(tmp_path / "model.onnx"), "--latency", "1ms", "--shape", "N=100000"]) == 3


def test_a_latency_that_nothing_keeps_is_said(tmp_path):
    with pytest.raises(BudgetError, match="no placement within 1e-09 s is predicted"):
        place(onnx.parser.parse_model('<ir_version: 9, opset_import: ["": 19]> g (float[9] x) => (float[9] y) { y = Neg(x) }'),
              seconds=1e-9)  # fmt: skip


@pytest.mark.gpu_evidence
@pytest.mark.skipif(not os.environ.get(outside.VARIABLE), reason="make test-gpu-evidence runs it")
def test_onnx_runtime_follows_the_assignment(tmp_path):
    module = build("g (float[64,64] x) => (float[64,64] y) { a = Relu(x) b = Sigmoid(a) c = Sin(b) y = Exp(c) }", {})
    found = Splitter(module, CPU, GPU).everywhere(True)
    annotated(module, replace(found, host=("relu0", "exp3"))).save(tmp_path / "model.onnx")
    placed = outside.run("placement", [str(tmp_path / "model.onnx"), "=".join(ASSIGNMENT)]).found
    assert placed["cpu"] == ["Relu relu0", "Exp exp3"]
    assert np.sum(list(placed["providers"].values())) == 4
