"""The session of an artefact is tuned by measurement: what stays, what is recorded, and what a rebuild does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compile_kit import PricedRunner, cnn, feeds

import joulec
from joulec.backends import backend
from joulec.compile import tuning
from joulec.compiler import Compiler, Inputs, Orders
from joulec.decisions import Decisions
from joulec.energy import EnergyModel, load_profile
from joulec.errors import InputError
from joulec.ir.feeds import Feed
from joulec.ir.lower import lower
from joulec.ir.module import Module
from joulec.ir.session import SessionOptions
from joulec.ir.values import Array

ENERGY = EnergyModel(load_profile("generic-server-cpu"), "cpu")
Costs = Callable[[SessionOptions, float], tuple[float, float]]


class SessionRunner(PricedRunner):
    """Runs for real; wall and CPU seconds are what `costs(options, pause)` says."""

    def __init__(self, costs: Costs) -> None:
        super().__init__(lambda module: 1.0)
        self._costs, self._options = costs, {}

    def load(self, module: Module, *, extra_outputs: Sequence[str] = (), options: SessionOptions | None = None) -> int:
        handle = super().load(module, extra_outputs=extra_outputs, options=options)
        self._options[handle] = options or SessionOptions()
        return handle

    def spend(self, handles: Sequence[int], feed: Feed, *, rounds: int, pause: float = 0.0) -> Array:
        self.run(handles[0], feed)
        return np.tile([self._costs(self._options[handle], pause) for handle in handles], (rounds, 1, 1))


def costs(options: SessionOptions, pause: float) -> tuple[float, float]:
    """More threads are faster and burn more; a pool that spins is faster still, and burns through every pause."""
    spins = options.config.get("session.intra_op.allow_spinning") == "1"
    wall = (0.9 if spins else 1.0) / options.threads**0.5
    return wall, 1.0 + 0.2 * (options.threads - 1) + (1000 * pause if spins else 0)


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "cpu", lambda: {"cores": 8})


@pytest.fixture
def model(tmp_path: Path) -> Module:
    return lower(cnn(tmp_path / "cnn.onnx")).module


def compiler(
    model: Module, costs: Costs, recorded: Decisions | None = None, shapes: Mapping[str, int] | None = None,
    target: str = "cpu", **orders: Any,
) -> Compiler:  # fmt: skip
    inputs = Inputs(None, feeds(2), shapes or {}, None, None)
    return Compiler(
        model, backend(target), Orders(**orders), inputs, SessionRunner(costs), ENERGY, recorded=recorded
    )  # fmt: skip


def test_threads_grow_while_that_is_faster(model: Module) -> None:
    compiled = compiler(model, costs, tune="latency").compile()
    assert compiled.session is not None
    assert (compiled.session.threads, compiled.session.config) == (8, {"session.intra_op.allow_spinning": "1"})
    tried = [choice for choice in compiled.decisions.decisions if choice.what == tuning.SESSION]
    assert [choice.kept for choice in tried] == [True, True, True, True, False, False]
    assert tried[0].reason.startswith("2 threads: 1.41x")


def test_energy_counts_cpu_seconds_and_rests(model: Module) -> None:
    compiled = compiler(model, costs, tune="energy").compile()
    assert compiled.session == backend("cpu").settings(1)
    spinning = compiler(model, costs, tune="energy")
    spinning.threads = 2
    assert spinning.compile().session == backend("cpu").settings(2), "an order for threads is kept; spinning burns"


def test_arena_and_packing_go_where_they_cost(model: Module) -> None:
    def bare(options: SessionOptions, pause: float) -> tuple[float, float]:
        return (1.0, 1.0 + options.arena + (options.config.get("session.disable_prepacking") != "1"))

    session = compiler(model, bare, tune="energy").compile().session
    assert session is not None
    assert not session.arena
    assert session.config["session.disable_prepacking"] == "1"


def test_sizes_that_the_user_gave_are_fixed_where_that_pays_and_said(model: Module) -> None:
    def fixed(options: SessionOptions, pause: float) -> tuple[float, float]:
        return (1.0 if options.sizes else 2.0), 1.0

    (symbol,) = [str(dim) for dim in model.inputs()[0].shape or () if not isinstance(dim, int)]
    compiled = compiler(model, fixed, tune="latency", shapes={symbol: 1}).compile()
    assert compiled.session is not None
    assert dict(compiled.session.sizes) == {symbol: 1}
    assert any("opens it for these sizes only" in note for note in compiled.notes)
    assert compiler(model, fixed, tune="latency").compile().session == backend("cpu").settings(1)


def test_sizes_that_the_data_do_not_have_are_refused_and_said(model: Module) -> None:
    (symbol,) = [str(dim) for dim in model.inputs()[0].shape or () if not isinstance(dim, int)]
    compiled = compiler(model, costs, tune="energy", shapes={symbol: 3}).compile()
    last = compiled.decisions.decisions[-1]
    assert (last.kept, last.reason.startswith("fixed sizes: the model fails on this feed")) == (False, True)


def test_nothing_is_tuned_unless_asked_and_a_rebuild_repeats(model: Module) -> None:
    assert compiler(model, costs).compile().session is None
    first = compiler(model, costs, tune="latency").compile()

    def never(options: SessionOptions, pause: float) -> tuple[float, float]:
        raise AssertionError("a rebuild measures nothing")

    again = compiler(model, never, recorded=first.decisions, tune="latency").compile()
    assert again.session == first.session
    assert again.decisions == first.decisions


def test_no_time_left_is_said(model: Module) -> None:
    compiled = compiler(model, costs, tune="latency", search_seconds=0.0).compile()
    assert compiled.session == backend("cpu").settings(1)
    assert any("ended before every session setting" in note for note in compiled.notes)


def test_a_device_that_is_not_here_is_not_tuned_for(model: Module) -> None:
    compiled = compiler(model, costs, tune="latency", target="cuda", int8=False).compile()
    assert compiled.session is None
    assert any("not tuned" in note for note in compiled.notes)


def test_a_wrong_goal_is_refused() -> None:
    with pytest.raises(InputError, match="--tune: write latency, energy or off, not 'fast'"):
        Orders(tune="fast")


def test_the_artefact_is_opened_as_tuned(tmp_path: Path) -> None:
    path = cnn(tmp_path / "cnn.onnx")
    joulec.optimize(path, tmp_path / "out", tune="energy", search_budget=0.0, int8=False)
    options = joulec.load(tmp_path / "out").get_session_options()
    assert (options.intra_op_num_threads, options.enable_cpu_mem_arena) == (1, True)
