"""TensorBoard: which scalars a report gives, and that TensorBoard itself reads what the real command wrote."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from compile_kit import cnn
from report_sample import report

from joulec.report.tensorboard import scalars

INSTALLED = importlib.util.find_spec("tensorboard") is not None


def by_tag(**changes: object) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for tag, value, step in scalars(dataclasses.replace(report(), **changes)):  # type: ignore[arg-type]
        found.setdefault(tag, []).append(value)
        assert tag.startswith("int8/") or len(found[tag]) == step + 1, "steps count up from 0"
    return found


def test_passes_have_a_step_each_from_the_input_model_on():
    found = by_tag()
    assert found["passes/nodes"] == [66, 66, 45, 40, 40, 40, 31], "undone passes are left out"
    assert found["passes/joules"] == [1.15e-3, 1.15e-3, 1.1e-3, 9.6e-4, 9.6e-4, 9.6e-4, 4.49e-4]


def test_the_input_model_stands_beside_the_artefact():
    found = by_tag()
    assert found["build/milliseconds"] == [2.113, 1.402] and found["build/metric"] == [0.9917, 0.9903]
    assert found["int8/drop"] == [0.031, 0.0061, 0.0014, 0.0022, 0.0003] and len(found["int8/speed"]) == 4
    assert found["operators/Conv"] == [9.1e-4, 3.9e-4] and found["operators/Transpose"] == [8e-5, 0.0]
    assert found["build/nodes"] == [66.0, 31.0] and found["build/weight_bytes"] == [1_240_000.0, 331_000.0]


def test_what_was_not_measured_is_not_made_up():
    found = by_tag(latency=None, accuracy=None, energy=None, points=(), steps=())
    assert sorted(found) == ["build/nodes", "build/weight_bytes"]


def optimize(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "joulec", "optimize", "m.onnx", "-o", "out", "--passes", "fold-constants", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, cwd=folder)


@pytest.mark.skipif(INSTALLED, reason="tensorboard is installed here")
def test_without_the_extra_nothing_is_built_and_the_extra_is_named(tmp_path: Path):
    cnn(tmp_path / "m.onnx")
    done = optimize(tmp_path, "--tensorboard", "runs")
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr == "error: --tensorboard needs tensorboard: pip install 'joulec[tensorboard]'\n"
    assert not (tmp_path / "out").exists() and not (tmp_path / "runs").exists()


@pytest.mark.skipif(not INSTALLED, reason="needs the extra `tensorboard`")
def test_tensorboard_reads_what_was_written(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cnn(tmp_path / "m.onnx")
    done = optimize(tmp_path, "--tensorboard", "runs/one")
    assert (done.returncode, done.stderr) == (0, "")
    events = EventAccumulator(str(tmp_path / "runs" / "one"), size_guidance={"scalars": 0}).Reload()
    assert {"passes/joules", "build/joules", "operators/Conv"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("build/joules")] == [0, 1]
