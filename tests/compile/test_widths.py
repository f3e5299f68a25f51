"""The search for widths: what costs nothing goes first, the budget ends it, and a rebuild repeats what was chosen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from compile_kit import write

import joulec
from joulec.compile import removal
from joulec.decisions import from_file
from joulec.errors import InputError
from joulec.passes.prune_channels import PruneChannels
from joulec.payoff import Paired

GRAPH = """g (float[N, 12] x) => (float[N, 5] y) {
    h = Gemm(x, u, b) r = Relu(h) g = Gemm(r, v, c) s = Relu(g) y = MatMul(s, w) }"""


def timed_at(monkeypatch: pytest.MonkeyPatch, ratio: float) -> None:
    """Every pair of models is measured to have this ratio of times."""
    paired = Paired(ratio, ratio - 0.01, ratio + 0.01, 1.0, 1.0 / ratio, 100, 1)
    monkeypatch.setattr("joulec.compile.bench.time_pair", lambda *arguments: paired)


@pytest.fixture(autouse=True)
def narrower_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    timed_at(monkeypatch, 1.5)


@pytest.fixture
def case(tmp_path: Path) -> dict[str, Any]:
    """A model whose first layer says everything twice, and data for it."""
    generator = np.random.default_rng(0)
    half = generator.standard_normal((12, 32))
    weights = {"u": np.hstack([half, half]), "b": np.tile(generator.standard_normal(32), 2)}
    weights |= {
        "v": generator.standard_normal((64, 64)) / 8,
        "c": np.zeros(64),
        "w": generator.standard_normal((64, 5)) / 8,
    }
    path = write(tmp_path / "model.onnx", GRAPH, {name: np.asarray(a, np.float32) for name, a in weights.items()})
    np.savez(tmp_path / "data.npz", x=generator.standard_normal((160, 12)).astype(np.float32))
    return {"model": path, "data": tmp_path / "data.npz", "passes": "prune-channels{multiple=8}"}


def channels(result: joulec.Result) -> Any:
    return next(one for one in result.reports["cpu"].decisions if one.what == "channels")


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    return {one.name: tuple(one.dims) for one in onnx.load(folder / "model.onnx").graph.initializer}


def test_what_is_said_twice_goes_and_the_budget_ends_it(case: dict[str, Any], tmp_path: Path) -> None:
    result = joulec.optimize(**case, out=tmp_path / "out", max_drop=0.1)
    found = shapes(tmp_path / "out")
    assert 8 <= found["u"][1] <= 32
    assert found["v"][0] == found["u"][1]
    assert channels(result).kept
    assert channels(result).drop <= 0.1
    looser = joulec.optimize(**case, out=tmp_path / "looser", max_drop=0.4)
    assert sum(np.prod(shape) for shape in shapes(tmp_path / "looser").values()) < sum(map(np.prod, found.values()))
    assert channels(looser).drop <= 0.4


def test_a_rebuild_repeats_the_widths_and_measures_nothing(
    case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joulec.optimize(**case, out=tmp_path / "one", max_drop=0.1)
    found = replace(removal.KINDS[PruneChannels], path=lambda *arguments: pytest.fail("searched again"))
    monkeypatch.setitem(removal.KINDS, PruneChannels, found)
    joulec.optimize(**case, out=tmp_path / "two", max_drop=0.1, decisions=tmp_path / "one")
    assert (tmp_path / "one" / "model.onnx").read_bytes() == (tmp_path / "two" / "model.onnx").read_bytes()


@pytest.mark.parametrize("ratio", [0.9, 1.005])
def test_widths_that_are_no_faster_are_not_taken(
    case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratio: float
) -> None:
    timed_at(monkeypatch, ratio)
    result = joulec.optimize(**case, out=tmp_path / "out", max_drop=0.1, remeasure=True)
    assert not channels(result).kept
    assert "the speed of the whole" in channels(result).reason
    assert shapes(tmp_path / "out")["u"] == (12, 64)


def test_decisions_name_prune_channels_only(case: dict[str, Any], tmp_path: Path) -> None:
    joulec.optimize(**case, out=tmp_path / "one", max_drop=0.1)
    file = tmp_path / "one" / "decisions.json"
    file.write_text(file.read_text().replace('"prune-channels{groups', '"prune-magnitude{groups'))
    with pytest.raises(InputError, match="prune-magnitude"):
        from_file(file, "cpu", ("--passes prune-channels{multiple=8}", "--max-drop 0.1"))


def test_without_data_nothing_is_removed_and_said(case: dict[str, Any]) -> None:
    result = joulec.optimize(case["model"], passes=case["passes"], max_drop=0.02)
    assert not channels(result).kept
    assert "no calibration data" in channels(result).reason


def test_a_budget_that_nothing_keeps(case: dict[str, Any], tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    weights = {"u": (12, 16), "b": (16,), "v": (16, 16), "c": (16,), "w": (16, 5)}
    arrays = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in weights.items()}
    case["model"] = write(tmp_path / "tight.onnx", GRAPH, arrays)
    result = joulec.optimize(**case, max_drop=1e-7)
    assert not channels(result).kept
    assert channels(result).reason == "no channels could go within the budget"
