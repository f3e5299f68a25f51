"""The examples do what they say, as far as that can be shown without training, Docker or a CI service."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import typer.main

from joulec.data import load_metric

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"


def load_script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands(path: Path) -> list[list[str]]:
    """Every `joulec ...` command line of a Makefile, Dockerfile or workflow."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^(?:RUN|\s*run:|\s*#|\t\$\(BIN\)/|\s+)\s*(joulec [a-z]+ .*)$", text, re.MULTILINE)
    lines += re.findall(r"^\t\$\(BIN\)/(joulec .*)$", text, re.MULTILINE)
    return [shlex.split(re.sub(r"\$\((\w+)\)", r"\1", line).split(" > ")[0])[1:] for line in dict.fromkeys(lines)]


def parse(arguments: list[str]) -> dict[str, Any]:
    """Parse a command line with joulec's real options, without running it; an unknown option raises."""
    from joulec.cli import app

    group = typer.main.get_command(app)
    command = group.get_command(None, arguments[0])  # type: ignore[attr-defined,arg-type]
    assert command is not None, f"joulec has no command {arguments[0]}"
    return command.make_context(arguments[0], arguments[1:], resilient_parsing=False).params


@pytest.mark.parametrize(
    ("path", "count"),
    [(ROOT / "Makefile", 2), (EXAMPLES / "docker/Dockerfile", 1), (EXAMPLES / "ci/github-workflow.yml", 4)],
    ids=lambda value: getattr(value, "name", None),
)
def test_command_lines_use_options_that_exist(path, count):
    found = commands(path)
    assert len(found) == count
    for arguments in found:
        assert parse(arguments)


def test_the_demo_gives_each_model_its_own_data_metric_and_budget():
    small, wide = commands(ROOT / "Makefile")
    for name, arguments in (("small", small), ("wide", wide)):
        assert arguments[1].endswith(f"/{name}.keras")
        assert f"examples/digits/metric.py:accuracy_{name}" in arguments
        assert arguments[arguments.index("--max-drop") + 1] == "1%"


def test_the_example_configuration_is_one_that_optimize_takes():
    from joulec.cli_options import merged

    chosen = merged({"config": EXAMPLES / "joulec.toml"})
    assert chosen["model"] == EXAMPLES / "model.keras"
    assert chosen["metric"] == f"{EXAMPLES}/metric.py:accuracy"
    assert chosen["max_drop"] == 0.005
    text = (EXAMPLES / "joulec.toml").read_text(encoding="utf-8").replace("# decisions =", "decisions =")
    assert tomllib.loads(text)["decisions"] == "decisions.json"


def test_make_help_explains_every_target():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    command = ["make", "--no-print-directory", "help"]  # the tests themselves run under make, which would announce itself
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [line.split()[1] for line in said.splitlines()] == phony.split()


def test_metrics_of_the_demo_count_right_answers(tmp_path, monkeypatch):
    labels = np.arange(130) % 10
    for name, size in (("small", 8), ("wide", 32)):
        images = np.zeros((130, size, size, 1), np.float32)
        images[:, 0, 0, 0] = labels
        np.savez(tmp_path / f"{name}_test.npz", image=images, label=labels)
    monkeypatch.setenv("JOULEC_DEMO", str(tmp_path))

    def infer(feed):
        seen = feed["image"][:, 0, 0, 0].astype(int)
        assert 1 <= len(seen) <= 60
        return {"digit": np.eye(10)[np.where(seen == 3, 4, seen)]}

    for name in ("small", "wide"):
        metric = load_metric(f"{EXAMPLES}/digits/metric.py:accuracy_{name}")
        assert metric(infer) == 0.9


def test_the_summary_reads_a_report(tmp_path, capsys):
    from joulec.report.data import Accuracy, Decision, EnergyChange, Latency, Report, StepReport

    step = StepReport("fold-constants", "exact", "applied", 3, {"fold": 3}, (), 0, (), 20, 17, 4e-6, 3e-6)
    idle = StepReport("fuse-pad", "exact", "unchanged", 0, {}, (), 0, (), 17, 17)
    report = Report(
        "0", "small.keras", "keras", "cpu", "cpu", "written", (), (step, idle),
        (Decision("INT8", False, False, "slower: 0.73 times as fast"),), 20, 17, 2048, 1024,
        Accuracy("metric", 0.98, 0.97, 0.01, 0.01, ""), Latency(0.02, 0.01, 2.0, 1.9, 2.1, 100, 1),
        EnergyChange({}, {}, (("Conv", 3e-6, 2e-6), ("Transpose", 1e-9, None))),
    )  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps({"report": report.to_json()}))
    load_script(EXAMPLES / "digits/summary.py").main(str(tmp_path))
    said = capsys.readouterr().out
    for line in (
        "accuracy   0.9800 -> 0.9700",
        "nodes      20 -> 17",
        "weights    2.0 KiB -> 1.0 KiB",
        "2.00 times as fast, 95 % interval [1.90, 2.10]",
        "Conv 3 uJ -> 2 uJ",
        "Transpose 1 nJ -> -",
        "1 of 2 changed something",
        "fold-constants (applied): rewrites 3, nodes 20 -> 17, energy 4 uJ -> 3 uJ",
        "dropped INT8: slower: 0.73 times as fast",
        f"report     {tmp_path / 'report.html'}",
    ):
        assert line in said


def test_the_runtime_image_starts_with_valid_python_that_needs_only_the_cpu_extra():
    text = (EXAMPLES / "docker/Dockerfile").read_text(encoding="utf-8")
    (command,) = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
    program = json.loads(command)
    assert program[:2] == ["python", "-c"]
    assert "joulec.load('/artefact')" in program[2]
    ast.parse(program[2])
    assert "joulec[cpu]" in text.split("FROM")[-1]


@pytest.mark.slow
def test_training_writes_models_calibration_and_a_disjoint_test_set(tmp_path):
    code = (
        "import sys; sys.argv = ['train.py']\n"
        f"import runpy; names = runpy.run_path({str(EXAMPLES / 'digits/train.py')!r})\n"
        "from pathlib import Path\n"
        f"names['keras'].utils.set_random_seed(names['SEED']); out = Path({str(tmp_path)!r})\n"
        "names['train'](names['small'](), 8, 30, out)\n"
        "names['train'](names['wide'](), 32, 1, out)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    accuracy = re.search(r"small: .* test accuracy ([0-9.]+)", done.stdout)
    assert accuracy and float(accuracy[1]) >= 0.97
    for name, size in (("small", 8), ("wide", 32)):
        assert (tmp_path / f"{name}.keras").is_file()
        with np.load(tmp_path / f"{name}_calibration.npz") as file:
            seen = file["image"]
        with np.load(tmp_path / f"{name}_test.npz") as file:
            images, labels = file["image"], file["label"]
        assert seen.shape == (256, size, size, 1) and seen.dtype == np.float32
        assert images.shape == (360, size, size, 1) and labels.shape == (360,)
        held_out = {image.tobytes() for image in images}
        assert not any(image.tobytes() in held_out for image in seen)
