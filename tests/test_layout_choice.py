"""Layouts of the processor at hand are joulec's own choice: kept only where they are measured to be faster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compile_kit import PricedRunner, cnn, feeds

from joulec.backends import backend
from joulec.compiler import LAYOUT, Compiled, Compiler, Inputs, Orders
from joulec.decisions import Decisions
from joulec.energy import EnergyModel, load_profile
from joulec.ir.lower import lower
from joulec.ir.module import Module
from joulec.passes.prune_magnitude import PruneMagnitude

ENERGY = EnergyModel(load_profile("generic-server-cpu"), "cpu")


@pytest.fixture
def model(tmp_path: Path) -> Module:
    """Twelve channels between its convolutions: three quarters of a block."""
    return lower(cnn(tmp_path / "cnn.onnx", width=12)).module


def width(module: Module) -> int:
    second = [node for node in module.graph if node.op_type == "Conv"][1].inputs[1]
    assert second is not None and second.const_value is not None
    return int(second.const_value.shape.numpy()[0])


def compiler(
    model: Module, aligned: float = 1.0, target: str = "cpu", recorded: Decisions | None = None, **orders: Any
) -> Compiler:
    def seconds(module: Module) -> float:
        return aligned if width(module) == 16 else 2.0

    probes = feeds(2)
    inputs = Inputs(None, probes, {}, None, None)
    return Compiler(model, backend(target), Orders(**orders), inputs, PricedRunner(seconds), ENERGY, recorded=recorded)


def layout(compiled: Compiled) -> list[bool]:
    return [choice.kept for choice in compiled.decisions.decisions if choice.what == LAYOUT]


def test_whole_blocks_that_are_faster_are_kept(model: Module) -> None:
    compiled = compiler(model, 1.0).compile()
    assert (width(compiled.module), layout(compiled)) == (16, [True])
    assert "align-channels" in [step.spelling.split("{")[0] for step in compiled.steps]


@pytest.mark.parametrize("aligned", [2.0, 3.0])
def test_whole_blocks_that_are_not_faster_are_dropped_and_said(model: Module, aligned: float) -> None:
    compiled = compiler(model, aligned).compile()
    assert (width(compiled.module), layout(compiled)) == (12, [False])
    (dropped,) = [step for step in compiled.decisions.dropped if step.spelling.startswith("align-channels")]
    assert "the speed of the model without" in str(dropped.reason)


@pytest.mark.parametrize("aligned", [1.0, 3.0])
def test_a_recorded_choice_is_repeated_without_timing(model: Module, aligned: float) -> None:
    first = compiler(model, aligned).compile()
    again = compiler(model, 5.0 - aligned, recorded=first.decisions)
    assert width(again.compile().module) == width(first.module)
    assert isinstance(again.runner, PricedRunner) and again.runner.timed == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda m: compiler(m, sparsity=0.5),
        lambda m: compiler(m, passes=(PruneMagnitude(sparsity=0.1),)),
        lambda m: compiler(m, target="cuda"),
    ],
)
def test_it_is_not_tried_with_masks_with_orders_or_for_other_processors(
    model: Module, change: Callable[[Module], Compiler]
) -> None:
    compiled = change(model).compile()
    assert (width(compiled.module), layout(compiled)) == (12, [])


def test_the_numbers_are_the_same(model: Module) -> None:
    compiled = compiler(model, 1.0)
    feed = feeds(1)[0]
    runner = compiled.runner
    expected = runner.run(runner.load(model), feed)["y"]
    actual = runner.run(runner.load(compiled.compile().module), feed)["y"]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)
