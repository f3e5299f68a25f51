"""What is wrong with the user's data is said before anybody relies on ranges made from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import int8_kit as kit
import numpy as np
import onnx_ir as ir
import pytest

from joulec.ir.module import Module, Range
from joulec.ir.values import Array
from joulec.passes._data_checks import FEW, Classes, DataCheck, instability
from joulec.passes.calibrate import Calibrate

X = {"x": (1, 3, 12, 12)}


def findings(data: list[dict[str, Array]], bindings: Mapping[str, object] | None = None) -> list[str]:
    check = DataCheck()
    for feed in data:
        check.add(feed)
    batch = ir.SymbolicDim("N"), 3, ir.SymbolicDim("H"), 12
    value = ir.Value(name="x", shape=ir.Shape(batch), type=ir.TensorType(ir.DataType.FLOAT))
    return list(check.findings([value], bindings or {}))


def many(count: int = FEW, height: int | None = None) -> list[dict[str, Array]]:
    return [dict(kit.random(i, x=(1, 3, height or 10 + i % 3, 12))) for i in range(count)]


def test_good_data_need_no_words() -> None:
    assert findings(many()) == []


def test_few_and_repeated_feeds() -> None:
    assert findings(many(3)) == ["data: only 3 feeds; a hundred that look like those in use give steadier ranges"]
    said = findings([*many(), *many(4)])
    assert said == ["data: 4 of 36 feeds repeat an earlier one and say nothing new"]


def test_constant_inputs_and_numbers_that_are_none() -> None:
    data = many()
    data[3]["x"][:] = 7
    data[4]["x"][0, 0, 0, 0] = np.nan
    data[5]["x"][0, 0, 0, 0] = -np.inf
    assert findings(data) == [
        "data: input 'x' holds NaN or Inf in 2 of 32 feeds",
        "data: input 'x' is one and the same number throughout in 1 of 32 feeds",
    ]


def test_an_input_that_never_changes() -> None:
    data = [{**feed, "rate": np.asarray(16000)} for feed in many()]
    assert findings(data) == ["data: input 'rate' is the same in every feed (16000); ranges for others were not seen"]


def test_sizes_that_were_not_seen() -> None:
    assert findings(many(height=12)) == ["data: open dimension 2 of 'x' is 12 in every feed; others were not seen"]
    assert findings(many(height=12), {"H": 12, "N": 1}) == []
    assert findings(many(), {"H": 64, "N": 8}) == [
        "data: dimension 0 of 'x' is 1, never the 8 that you compile for",
        "data: dimension 2 of 'x' is 10 to 12, never the 64 that you compile for",
    ]


def test_classes_that_were_not_seen() -> None:
    classes = Classes()
    for named in (0, 2, 2):
        scores = np.full((1, 4), 0.1, np.float32)
        scores[0, named] = 0.7
        classes.add({"y": scores, "z": scores * 3, "w": scores[0]}, ["y", "z", "w", "v"])
    assert list(classes.findings()) == ["data: of the 4 classes of 'y' they show 2; ranges for the other 2 were not seen"]


@pytest.mark.parametrize("odd", [np.zeros((1, 4), np.float32), np.zeros((0, 4), np.float32), np.ones((1, 1), np.float32)])
def test_an_output_that_is_once_no_distribution_names_no_classes(odd: Array) -> None:
    classes = Classes()
    classes.add({"y": np.float32([[0.5, 0.5]])}, ["y"])
    classes.add({"y": odd}, ["y"])
    classes.add({"y": np.float32([[0.5, 0.5]])}, ["y"])
    assert odd.size == 0 or list(classes.findings()) == []


def test_the_effect_on_ranges_is_told_with_the_worst_first() -> None:
    ranges = {name: Range(0, 1, shift=shift) for name, shift in (("a", 0.3), ("b", 0.9), ("c", 0.1), ("d", 0.3))}
    (said,) = instability(ranges)
    assert said.startswith("data: the extremes of 3 of 4 tensors differ") and "('b' by 90 %, 'a' by 30 %, 'd'" in said
    assert list(instability({"a": Range(0, 1)})) == []


def test_calibrate_tells_them_all() -> None:
    module: Module = kit.build(kit.CNN, kit.cnn_weights())
    data = kit.feeds(4, **X)
    data[3]["x"][:] *= 10  # type: ignore[index]
    notes = Calibrate().run(module, replace(kit.context([*data, data[3]]), bindings={"N": 2})).notes
    assert [note.split()[1] for note in notes[1:]] == ["only", "1", "dimension", "of", "the"]


def test_a_method_can_be_chosen_for_each_tensor() -> None:
    module: Module = kit.build(kit.CNN, kit.cnn_weights())
    Calibrate(method="minmax", methods=("r*:percentile", "k2:mse")).run(module, kit.context(kit.feeds(**X)))
    used = {name: one.method for name, one in module.ranges.items()}
    assert used == {
        "x": "minmax", "r1": "percentile", "p1": "minmax", "k2": "mse", "c3": "minmax", "r3": "percentile",
        "g": "minmax", "f": "minmax",
    }  # fmt: skip
