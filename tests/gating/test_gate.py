"""The gate through the real command line: make a lock, hold it, break it; and budgets of joules."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from command_kit import Done, run_all
from compile_kit import cnn

import joulec
from joulec.errors import BudgetError, InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model's artefact `small`, and a costlier one `wide` of the same kind."""
    place = tmp_path_factory.mktemp("gate")
    for name, width in (("small", 8), ("wide", 32)):
        joulec.optimize(str(cnn(place / f"{name}.onnx", width)), place / name, passes="fold-constants", shape={"N": 2})
    return place


def run(folder: Path, *commands: Sequence[str]) -> list[Done]:
    return run_all(commands, folder)


def test_a_lock_is_made_held_broken_and_updated(folder: Path):
    gate = ("gate", "--baseline", "a.lock")
    none, made, held, broken, updated, again = run(
        folder, (*gate, "small"), (*gate, "small", "--update"), (*gate, "small"), (*gate, "wide"),
        (*gate, "wide", "--update"), (*gate, "wide", "--json"),
    )  # fmt: skip
    assert (none.code, none.out) == (2, "") and "a.lock: no such file" in none.err
    assert made.code == 0 and "written  a.lock" in made.out and (folder / "a.lock").is_file()
    assert held.code == 0 and "within noise and slack of the lock" in held.out and held.err == ""
    assert broken.code == 3
    assert "error: wide costs more than a.lock allows: energy +" in broken.err and "size +" in broken.err
    assert "model then small.onnx, now wide.onnx" in broken.out
    assert "By operator, what moved most first\n  operator" in broken.out and "Conv " in broken.out
    assert updated.code == 0 and "worse" in updated.out and "written  a.lock" in updated.out
    found = json.loads(again.out)
    assert (again.code, found["regressed"], found["updated"]) == (0, [], False)
    assert {one["what"]: one["verdict"] for one in found["checks"]} == dict.fromkeys(("energy", "latency", "time", "size"), "same")


def test_the_lock_prices_at_the_sizes_of_the_build_by_the_profile_that_ships(folder: Path):
    joulec.gate(folder / "small", folder / "b.lock", update=True)
    text = (folder / "b.lock").read_text(encoding="utf-8")
    assert 'shape = ["N=2"]' in text and 'profile = "generic-server-cpu"' in text
    priced = joulec.estimate(folder / "small", shape={"N": 2}, device="generic-server-cpu").total_joules
    assert f"joules = {priced:.7g}" in text


def test_a_lock_of_another_target_or_a_changed_profile_cannot_be_compared(folder: Path):
    place = folder / "c.lock"
    joulec.gate(folder / "small", place, update=True)
    text = place.read_text(encoding="utf-8")
    place.write_text(text.replace('target = "cpu"', 'target = "cuda"'), encoding="utf-8")
    with pytest.raises(InputError, match="made for target 'cuda'"):
        joulec.gate(folder / "small", place)
    place.write_text(text.replace('digest = "sha256:', 'digest = "sha256:0'), encoding="utf-8")
    with pytest.raises(InputError, match="of another 'generic-server-cpu' than this joulec has"):
        joulec.gate(folder / "small", place)
    fresh = joulec.gate(folder / "small", place, update=True)
    assert fresh.updated and fresh.checks == () and place.read_text(encoding="utf-8") == text
    place.write_text("broken", encoding="utf-8")
    assert joulec.gate(folder / "small", place, update=True).updated, "--update replaces what cannot be read"


def test_a_target_that_fixes_the_sizes_in_its_artefact_is_gated_too(folder: Path):
    joulec.optimize(str(folder / "small.onnx"), folder / "cuda", target="cuda", passes="fold-constants", shape={"N": 2})
    made = joulec.gate(folder / "cuda", folder / "cuda.lock", update=True)
    held = joulec.gate(folder / "cuda", folder / "cuda.lock")
    assert made.updated and [check.verdict for check in held.checks] == ["same", "same"], "energy and size; nothing was timed"


def test_only_intact_artefacts_are_gated(folder: Path, tmp_path: Path):
    shutil.copytree(folder / "small", tmp_path / "small")
    (tmp_path / "small" / "session.json").write_text("{}")
    with pytest.raises(InputError, match=r"its files are not those that manifest.json names"):
        joulec.gate(tmp_path / "small", tmp_path / "x.lock", update=True)
    with pytest.raises(InputError, match=r"no manifest.json; give the directory"):
        joulec.gate(tmp_path, tmp_path / "x.lock", update=True)
    assert not (tmp_path / "x.lock").exists()


def test_slack_is_read_and_wrong_slack_is_said(folder: Path):
    joulec.gate(folder / "small", folder / "d.lock", update=True)
    gate = ("gate", "wide", "--baseline", "d.lock")
    loose = [f"--slack={name}=9999%" for name in ("energy", "size", "latency", "time")]
    wide, odd, unknown = run(folder, (*gate, *loose), (*gate, "--slack", "energy"), (*gate, "--slack", "joules=5%"))
    assert (wide.code, wide.err) == (0, "")
    assert (odd.code, odd.out) == (2, "") and "write a quantity and a share" in odd.err
    assert unknown.code == 2 and "known are energy, size, latency, time, accuracy" in unknown.err


def test_an_energy_budget_stops_a_build_and_keeps_what_was_there(folder: Path):
    common = ("optimize", "small.onnx", "--passes", "fold-constants", "--shape", "N=2", "-o")
    tight, loose, late = run(
        folder, (*common, "budget", "--max-energy", "1nJ"), (*common, "budget", "--max-energy", "1J"),
        (*common, "budget", "--max-energy", "1nJ"),
    )  # fmt: skip
    assert (tight.code, tight.out) == (3, "")
    assert "per inference (estimated for generic-server-cpu" in tight.err and "the energy budget is 1.00 nJ; most of it:" in tight.err
    assert loose.code == 0 and "(1.00 J allowed)" in loose.out
    assert late.code == 3, "an artefact that is up to date is held to the budget too"
    assert sorted(file.name for file in (folder / "budget").iterdir()) == sorted(file.name for file in (folder / "small").iterdir())


def test_an_energy_budget_from_python_and_one_that_makes_no_sense(folder: Path):
    with pytest.raises(BudgetError, match="the energy budget is"):
        joulec.optimize(str(folder / "small.onnx"), passes="fold-constants", max_energy=1e-9)
    with pytest.raises(InputError, match="max_energy must be"):
        joulec.optimize(str(folder / "small.onnx"), passes="fold-constants", max_energy=0.0)
