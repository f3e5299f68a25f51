"""The best of several is found by timing rivals against each other, where timing each against float leaves it open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from compile_kit import PricedRunner, cnn, feeds

from joulec.backends import backend
from joulec.compile import rivals
from joulec.compile.bench import Bench
from joulec.compile.orders import Inputs, Orders
from joulec.compile.worth import Worth, measured
from joulec.energy import EnergyModel, load_profile
from joulec.ir.lower import lower
from joulec.ir.module import Module
from joulec.payoff import Paired


def worth(ratio: float, spread: float) -> Worth:
    return measured(Paired(ratio, ratio - spread, ratio + spread, 1.0, 1.0 / ratio, 10, 1))


@pytest.fixture
def modules(tmp_path: Path) -> tuple[Module, Module]:
    """A small model and a larger one."""
    return lower(cnn(tmp_path / "a.onnx", 8)).module, lower(cnn(tmp_path / "b.onnx", 32)).module


def bench(base: Module, large: float, small: float) -> Bench:
    """Where a model of few weights takes `small` seconds and one of many `large`."""
    runner = PricedRunner(lambda module: large if module.weight_bytes() > 10_000 else small)
    inputs = Inputs(None, feeds(2), {}, None, None)
    energy = EnergyModel(load_profile("generic-server-cpu"), "cpu")
    return Bench(base, backend("cpu"), Orders(), inputs, runner, energy)


def test_rivals_are_timed_against_each_other(modules: tuple[Module, Module]) -> None:
    small, large = modules
    paying = [(worth(2.0, 0.3), small, "small"), (worth(1.9, 0.3), large, "large")]
    made = bench(small, large=1.0, small=1.5)
    assert rivals.best_of(made, paying) == "large"
    assert rivals.best_of(bench(small, large=1.5, small=1.0), paying) == "small"
    assert rivals.best_of(bench(small, large=1.0, small=1.0), list(reversed(paying))) == "small", "it takes fewer joules"


def test_what_is_clear_is_not_timed_again(modules: tuple[Module, Module]) -> None:
    small, large = modules
    made = bench(small, large=1.0, small=1.5)
    assert rivals.best_of(made, [(worth(1.2, 0.1), large, "large"), (worth(2.0, 0.1), small, "small")]) == "small"
    assert isinstance(made.runner, PricedRunner) and made.runner.timed == 0
    assert rivals.best_of(made, []) is None
    there = replace(made, here=False)
    assert rivals.best_of(there, [(worth(1.2, 0.9), large, "large"), (worth(2.0, 0.9), small, "small")]) == "small"
