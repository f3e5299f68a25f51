"""INT8 of recurrent models: one scale for all weights of a direction is tried beside one for each channel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from compile_kit import PricedRunner, write

from joulec.backends import backend
from joulec.compiler import Compiler, Inputs, Orders
from joulec.energy import EnergyModel, load_profile
from joulec.ir.feeds import Feeds
from joulec.ir.lower import lower
from joulec.ir.module import Module

LSTM = "g (float[5,2,8] x) => (float[5,1,2,16] y) { y, h, c = LSTM<hidden_size=16>(x, w, r) }"


def scales(module: Module) -> set[tuple[int, ...]]:
    """Shapes of the weights' scales of the quantized LSTMs."""
    inner = [node for node in module.graph if node.op_type == "DynamicQuantizeLSTM"]
    return {tuple(node.inputs[8].shape or ()) for node in inner}  # type: ignore[union-attr]


@pytest.mark.parametrize("faster", [(1,), (1, 64)])
def test_the_faster_form_is_kept(faster: tuple[int, ...], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(1, 64, 8)), "r": rng.normal(size=(1, 64, 16))}
    model = write(tmp_path / "m.onnx", LSTM, {name: w.astype(np.float32) for name, w in weights.items()})
    data = Feeds.of([{"x": rng.normal(size=(5, 2, 8)).astype(np.float32)} for _ in range(4)])
    price = {(): 3.0, faster: 1.0}
    runner = PricedRunner(lambda module: price.get(next(iter(scales(module)), ()), 2.0))
    inputs = Inputs(data, data.head(2), {}, None, None)
    energy = EnergyModel(load_profile("generic-server-cpu"))
    compiled = Compiler(lower(model).module, backend("cpu"), Orders(), inputs, runner, energy, here=True).compile()
    assert scales(compiled.module) == {faster}
