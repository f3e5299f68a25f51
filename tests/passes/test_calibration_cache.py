"""A second build of the same does not calibrate again; anything that matters makes it calibrate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import int8_kit as kit
import numpy as np
import onnx_ir as ir
import pytest

from joulec.ir.module import Module
from joulec.ir.runner import LocalRunner
from joulec.passes._calibration_file import module_digest
from joulec.passes.base import Context, PassResult
from joulec.passes.calibrate import Calibrate

X = {"x": (1, 3, 12, 12)}


class Counting(LocalRunner):
    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def run(self, *args: Any, **kwargs: Any) -> Any:
        self.runs += 1
        return super().run(*args, **kwargs)


@pytest.fixture
def cnn() -> Module:
    return kit.build(kit.CNN, kit.cnn_weights())


def calibrated(module: Module, folder: Path | None, data: Any = None, **options: Any) -> tuple[Module, PassResult, int]:
    runner = Counting()
    given: Context = replace(kit.context(data or kit.feeds(**X)), runner=runner, cache=folder)
    made = module.clone()
    return made, Calibrate(**options).run(made, given), runner.runs


def test_the_second_time_nothing_runs_and_everything_is_the_same(cnn: Module, tmp_path: Path) -> None:
    first, one, runs = calibrated(cnn, tmp_path / "cache")
    second, other, more = calibrated(cnn, tmp_path / "cache")
    assert (runs, more) == (8, 0)
    assert second.ranges == first.ranges and list(second.ranges) == list(first.ranges)
    assert other == one


def test_without_a_folder_nothing_is_kept(cnn: Module, tmp_path: Path) -> None:
    calibrated(cnn, None)
    assert calibrated(cnn, None)[2] == 8


def _other_weight(module: Module) -> None:
    module.graph.initializers["w3"].const_value = ir.tensor(kit.cnn_weights()["w3"] + 1, name="w3")


def _other_pads(module: Module) -> None:
    node = next(node for node in module.graph if node.op_type == "Conv")
    node.attributes["pads"] = ir.AttrInt64s("pads", [0, 0, 2, 2])


@pytest.mark.parametrize("change", [_other_weight, _other_pads])
def test_another_model_is_calibrated(cnn: Module, tmp_path: Path, change: Callable[[Module], None]) -> None:
    before = module_digest(cnn)
    calibrated(cnn, tmp_path)
    change(cnn)
    assert module_digest(cnn) != before and calibrated(cnn, tmp_path)[2] == 8


def test_other_data_or_options_are_calibrated(cnn: Module, tmp_path: Path) -> None:
    calibrated(cnn, tmp_path)
    data = kit.feeds(**X)
    data[7]["x"][0, 0, 0, 0] += 1  # type: ignore[index]
    assert calibrated(cnn, tmp_path, data)[2] == 8
    assert calibrated(cnn, tmp_path, method="mse")[2] == 8
    assert calibrated(cnn, tmp_path, samples=4)[2] == 4


def test_names_of_nodes_and_metadata_do_not_count(cnn: Module, tmp_path: Path) -> None:
    calibrated(cnn, tmp_path)
    cnn.graph[0].name = "another"
    cnn.graph[1].metadata_props["joulec.pass"] = "fold-constants"
    assert calibrated(cnn, tmp_path)[2] == 0


@pytest.mark.parametrize("text", ["", "{", '{"ranges": {}, "broken": [], "notes": []}', '{"ranges": 3}'])
def test_a_damaged_cache_is_none(cnn: Module, tmp_path: Path, text: str) -> None:
    calibrated(cnn, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(text)
    assert calibrated(cnn, tmp_path)[2] == 8
    assert calibrated(cnn, tmp_path)[2] == 0


def test_a_folder_that_cannot_be_written_costs_only_time(cnn: Module, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    made, result, runs = calibrated(cnn, tmp_path / "file" / "cache")
    assert runs == 8 and len(made.ranges) == len(result.rewrites) == 8


def test_what_is_not_finite_is_kept_too(tmp_path: Path) -> None:
    text = "g (float[1,4] x) => (float[1,4] y) { h = MatMul(x, w) l = Log(h) y = MatMul(l, w) }"
    module, data = kit.build(text, kit.random(w=(4, 4))), kit.feeds(x=(1, 4))
    _, one, _ = calibrated(module, tmp_path, data)
    _, other, runs = calibrated(module, tmp_path, data)
    assert runs == 0 and other.refusals == one.refusals
    assert [r.reason for r in one.refusals] == ["'l' becomes NaN or Inf on the calibration data (NaN in feed 1)"]
    assert np.isfinite([r.low for r in calibrated(module, tmp_path, data)[0].ranges.values()]).all()
