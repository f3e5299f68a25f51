"""The search for blocks: what changes nothing goes first, what breaks the budget stays, and a rebuild repeats it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from compile_kit import write

import joulec
from joulec.compile import removal
from joulec.ir.module import Module
from joulec.passes.prune_blocks import PruneBlocks
from joulec.passes.prune_channels import PruneChannels
from joulec.payoff import Paired

BLOCK = "h{0} = Gemm(x{0}, u{0}, b) r{0} = Relu(h{0}) f{0} = MatMul(r{0}, v{0}) x{1} = Add(x{0}, f{0})"
HALF = "{ c = Gemm(x, e, b) x0 = Relu(c) " + " ".join(BLOCK.format(i, i + 1) for i in range(4)) + " y = MatMul(x4, w) }"
GRAPH = f"g (float[N, 32] x) => (float[N, 5] y) {HALF}"
STRONG = 2
"""The block that the model needs; the others whisper."""


@pytest.fixture(autouse=True)
def fewer_layers_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    paired = Paired(1.5, 1.49, 1.51, 1.0, 1 / 1.5, 100, 1)
    monkeypatch.setattr("joulec.compile.bench.time_pair", lambda *arguments: paired)


def blocks(folder: Path) -> dict[str, Any]:
    """A model of four residual blocks, one of which matters, and data for it."""
    generator = np.random.default_rng(0)
    weights = {"e": generator.standard_normal((32, 32)) / 5, "b": np.zeros(32), "w": generator.standard_normal((32, 5))}
    for index in range(4):
        weights[f"u{index}"] = generator.standard_normal((32, 32)) / 5
        weights[f"v{index}"] = generator.standard_normal((32, 32)) * (0.3 if index == STRONG else 0.001)
    path = write(folder / "model.onnx", GRAPH, {name: np.asarray(a, np.float32) for name, a in weights.items()})
    np.savez(folder / "data.npz", x=generator.standard_normal((160, 32)).astype(np.float32))
    return {"model": path, "data": folder / "data.npz", "passes": "prune-blocks"}


def walk_along(monkeypatch: pytest.MonkeyPatch, path: Callable[..., Any]) -> None:
    """Another path for the search."""
    monkeypatch.setitem(removal.KINDS, PruneBlocks, replace(removal.KINDS[PruneBlocks], path=path))


def decision(result: joulec.Result) -> Any:
    return next(one for one in result.reports["cpu"].decisions if one.what == "blocks")


def layers(folder: Path) -> set[str]:
    return {one.name for one in onnx.load(folder / "model.onnx").graph.initializer if one.name.startswith("u")}


def test_what_whispers_goes_and_what_matters_stays(tmp_path: Path) -> None:
    result = joulec.optimize(**blocks(tmp_path), out=tmp_path / "out", max_drop=0.02)
    assert layers(tmp_path / "out") == {f"u{STRONG}"}
    assert decision(result).kept
    assert decision(result).drop <= 0.02
    assert "3 of 4 residual blocks left out" in decision(result).reason


def test_the_search_goes_on_behind_a_block_that_breaks_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Were the strong block first on the path, those behind it would still go."""
    names = tuple(f"x{1 + index}" for index in (STRONG, 0, 1, 3))
    path = [PruneBlocks(blocks=names[:count]) for count in range(1, 5)]
    walk_along(monkeypatch, lambda *arguments: path)
    result = joulec.optimize(**blocks(tmp_path), out=tmp_path / "out", max_drop=0.02)
    assert layers(tmp_path / "out") == {f"u{STRONG}"}
    assert decision(result).kept


def test_a_rebuild_repeats_the_blocks_and_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = blocks(tmp_path) | {"passes": "prune-blocks,prune-channels{multiple=8}"}
    joulec.optimize(**case, out=tmp_path / "one", max_drop=0.05)
    walk_along(monkeypatch, lambda *arguments: pytest.fail("searched again"))
    joulec.optimize(**case, out=tmp_path / "two", max_drop=0.05, decisions=tmp_path / "one")
    assert (tmp_path / "one" / "model.onnx").read_bytes() == (tmp_path / "two" / "model.onnx").read_bytes()


def test_without_data_nothing_is_removed_and_said(tmp_path: Path) -> None:
    found = decision(joulec.optimize(blocks(tmp_path)["model"], passes="prune-blocks", max_drop=0.02))
    assert (found.kept, "no calibration data" in found.reason, "a count" in found.reason) == (False, True, True)


def test_at_the_prompt(tmp_path: Path) -> None:
    case = blocks(tmp_path)
    command = ["optimize", str(case["model"]), "-o", str(tmp_path / "out"), "--data", str(case["data"])]
    done = subprocess.run(
        [sys.executable, "-m", "joulec", *command, "--passes", "prune-blocks{count=2}", "--max-drop", "none"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))["report"]
    step = next(one for one in report["steps"] if one["spelling"].startswith("prune-blocks"))
    assert any(note.startswith("2 of 4 residual blocks left out") for note in step["notes"])
    assert f"u{STRONG}" in layers(tmp_path / "out")
    assert len(layers(tmp_path / "out")) == 2


def test_channels_get_the_budget_where_they_make_more_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that goes first leaves nothing to the channels; without it they save more."""

    def time_pair(runner: object, base: Module, other: Module, *more: object) -> Paired:
        ratio = base.weight_bytes() / other.weight_bytes()
        return Paired(ratio, ratio * 0.999, ratio * 1.001, 1.0, 1.0 / ratio, 100, 1)

    def narrower(bench: object, module: Module, order: PruneChannels) -> list[PruneChannels]:
        return [replace(order, ratio=0.5)] if "u0" in module.graph.initializers else []

    monkeypatch.setattr("joulec.compile.bench.time_pair", time_pair)
    walk_along(monkeypatch, lambda *arguments: [PruneBlocks(blocks=("x1",))])
    found = replace(removal.KINDS[PruneChannels], path=narrower)
    monkeypatch.setitem(removal.KINDS, PruneChannels, found)
    case = blocks(tmp_path) | {"passes": "prune-blocks,prune-channels{multiple=1}"}
    result = joulec.optimize(**case, out=tmp_path / "out", max_drop=1.0)
    assert layers(tmp_path / "out") == {"u0", "u1", "u2", "u3"}
    told = {one.what: one for one in result.reports["cpu"].decisions}
    assert (told["channels"].kept, told["prune-blocks"].kept) == (True, False)
    assert "the budget is spent better otherwise" in told["prune-blocks"].reason
