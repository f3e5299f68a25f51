"""Calibration: ranges from streamed data, in bounded memory, with every gap named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import int8_kit as kit
import numpy as np
import pytest

from joulec.errors import InputError
from joulec.ir.feeds import Feed, Feeds
from joulec.ir.module import Module, Range
from joulec.ir.runner import LocalRunner
from joulec.passes._calibration_file import from_json, to_json
from joulec.passes._observe import bindings_of, chunks
from joulec.passes._ranges import Observed
from joulec.passes.calibrate import Calibrate, wanted

X = {"x": (1, 3, 12, 12)}


@pytest.fixture
def cnn() -> Module:
    return kit.build(kit.CNN, kit.cnn_weights())


def test_ranges_are_the_extremes_of_the_data(cnn: Module) -> None:
    data = kit.feeds(**X)
    result = Calibrate(method="minmax").run(cnn, kit.context(data))
    assert list(cnn.ranges) == ["x", "r1", "p1", "k2", "c3", "r3", "g", "f"]
    found, extremes = cnn.ranges["x"], (min(f["x"].min() for f in data), max(f["x"].max() for f in data))
    assert (found.low, found.high) == (found.smallest, found.largest) == tuple(map(float, extremes))
    assert cnn.ranges["r1"].low == 0 and cnn.ranges["k2"].low >= 0 and cnn.ranges["k2"].high <= 6
    assert "c1" not in cnn.ranges, "the Conv in front of a Relu is inside its kernel"
    assert [(one.rule, one.node) for one in result.rewrites] == [("record-range", name) for name in cnn.ranges]
    assert result.notes == (
        "8 tensors calibrated on 8 feeds (feeds from Python): 8 minmax",
        "data: only 8 feeds; a hundred that look like those in use give steadier ranges",
        "data: of the 5 classes of 'y' they show 1; ranges for the other 4 were not seen",
    )


def test_several_passes_over_the_data_give_the_same_ranges(cnn: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    other = cnn.clone()
    Calibrate().run(cnn, kit.context(kit.feeds(**X)))
    monkeypatch.setattr("joulec.passes._observe.chunks", lambda values, bindings: [[v.name] for v in values])
    Calibrate().run(other, kit.context(kit.feeds(**X)))
    assert _close(other.ranges, cnn.ranges)


def _close(one: dict[str, Range], other: dict[str, Range]) -> bool:
    same = list(one) == list(other)
    pairs = [(a, b) for name in one for a, b in ((one[name].low, other[name].low), (one[name].high, other[name].high))]
    return same and bool(np.allclose(*zip(*pairs, strict=True), rtol=1e-5, atol=1e-6))


class Greedy(LocalRunner):
    """Counts what runs and how many feeds are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.loads = self.runs = 0

    def load(self, *args: Any, **kwargs: Any) -> int:
        self.loads += 1
        return super().load(*args, **kwargs)

    def run(self, handle: int, feed: Feed) -> dict[str, Any]:
        self.runs += 1
        return super().run(handle, feed)


def test_data_are_streamed_and_capped(cnn: Module) -> None:
    opened = []

    def endless() -> Iterator[Feed]:
        opened.append(0)
        while True:
            opened[-1] += 1
            yield kit.random(opened[-1], **X)

    runner = Greedy()
    given = replace(kit.context([]), feeds=Feeds(endless, "data", "endless"), runner=runner)
    result = Calibrate(samples=5).run(cnn, given)
    assert runner.runs == 5 and runner.loads == 1
    assert max(opened) <= 6, "no feed is read beyond the cap, but the one that islice looks ahead to"
    assert "on 5 feeds (endless)" in result.notes[0]


def test_unused_feeds_and_random_data_are_said(cnn: Module) -> None:
    notes = Calibrate(samples=3).run(cnn, kit.context(Feeds.of(kit.feeds(**X), "random", "random"))).notes
    assert "random data, asked for by name" in notes[1]
    assert notes[2] == "5 further feeds were not used (samples=3)"


def test_progress_is_shown_and_ends_at_one(cnn: Module) -> None:
    seen: list[tuple[str, float]] = []
    given = replace(kit.context(kit.feeds(**X)), progress=lambda said, fraction: seen.append((said, fraction or 0)))
    Calibrate().run(cnn, given)
    shown = {message for message, _ in seen}
    assert shown == {"checking the calibration data", "calibrating", "choosing ranges"}
    for message in shown:
        fractions = [fraction for said, fraction in seen if said == message]
        assert len(fractions) == 8 and fractions == sorted(fractions) and fractions[-1] == 1.0


def test_nan_and_inf_are_named_and_their_neighbours_stay_float() -> None:
    module = kit.build(
        "g (float[1,4] x) => (float[1,4] y) { h = MatMul(x, w) l = Log(h) y = MatMul(l, w) }", kit.random(w=(4, 4))
    )
    result = Calibrate().run(module, kit.context(kit.feeds(x=(1, 4))))
    assert [r.reason for r in result.refusals] == ["'l' becomes NaN or Inf on the calibration data (NaN in feed 1)"]
    assert list(module.ranges) == ["x"]
    made, refused = kit.quantized(module, kit.feeds(x=(1, 4)))
    assert kit.reasons(refused)["matmul2"] == "'l' is not calibrated"
    assert kit.ops(made)["QuantizeLinear"] == 1


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"feeds": None}, "no calibration data: give --data to unlock INT8 quantization"),
        ({"feeds": Feeds.of([], "synthetic")}, "no calibration data: give --data to unlock INT8 quantization"),
        ({"runner": None}, "no calibration: nothing to run the model with (install joulec[cpu])"),
        ({"target": kit.CUDA}, "nothing to calibrate: cuda has no integer kernels"),
    ],
)
def test_nothing_to_do_is_said(cnn: Module, change: dict[str, Any], note: str) -> None:
    assert Calibrate().run(cnn, replace(kit.context(kit.feeds(**X)), **change)).notes == (note,)
    assert not cnn.ranges


def test_a_model_without_kernels_a_quantized_one_and_a_half_one(cnn: Module) -> None:
    data = kit.context(kit.feeds(1, x=(4,)))
    plain = kit.build("g (float[4] x) => (float[4] y) { y = Exp(x) }", {})
    assert Calibrate().run(plain, data).notes == ("nothing to calibrate: no operator here has an INT8 kernel on cpu",)
    half = kit.build("g (float16[4] x) => (float16[4] y) { y = Exp(x) }", {})
    assert "half precision" in Calibrate().run(half, data).notes[0]
    made, _ = kit.quantized(cnn, kit.feeds(**X))
    assert "never quantized twice" in Calibrate().run(made, kit.context(kit.feeds(**X))).notes[0]


def test_empty_or_wrong_data_is_an_input_error(cnn: Module) -> None:
    with pytest.raises(InputError, match="calibration data feeds from Python: no feeds in it"):
        Calibrate().run(cnn, kit.context([]))
    with pytest.raises(InputError):
        Calibrate().run(cnn, kit.context([{"z": np.zeros(1, np.float32)}]))


@pytest.mark.parametrize(
    "options", [{"percentile": 50}, {"percentile": 101}, {"samples": 0}, {"methods": ("x",)}, {"methods": ("x:best",)}]
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must|methods: write PATTERN:METHOD"):
        Calibrate(**options)


def test_chunks_bound_the_activations_of_one_run(cnn: Module) -> None:
    values = wanted(cnn, kit.context([]))
    bindings = bindings_of(cnn, {"x": np.zeros((3, 3, 12, 12), np.float32)})
    assert bindings == {"N": 3}
    parts = chunks(values, bindings, limit=3 * 8 * 12 * 12 * 4)
    assert len(parts) > 1 and [name for part in parts for name in part] == [value.name for value in values]
    assert len(chunks(values, bindings)) == 1


# -- percentile ---------------------------------------------------------------------------------------------


def test_percentile_cuts_outliers(cnn: Module) -> None:
    data = kit.feeds(**X)
    data[0]["x"][0, 0, 0, 0] = 1000  # type: ignore[index]
    Calibrate(method="percentile", percentile=99.0).run(cnn, kit.context(data))
    assert 2 < cnn.ranges["x"].high < 10
    assert cnn.ranges["x"].method == "percentile"


def test_observing_zeros_and_nothing() -> None:
    one = Observed()
    one.add(np.zeros(0, np.float32))
    assert one.count == 0
    one.add(np.zeros(5, np.float32))
    one.add(np.full(5, 3, np.float32), 1, second=True)
    assert (one.low, one.high, one.count) == (0.0, 3.0, 10)
    found = one.range("auto", 99.9, "uint8")
    assert (found.low, found.high, found.shift) == (0.0, 3.0, 1.0)


def test_the_first_number_that_is_not_finite_ends_the_watching() -> None:
    one = Observed()
    for turn, number in enumerate((1.0, np.inf, np.nan)):
        one.add(np.float32([number]), turn)
    assert one.broken == ("Inf", 2) and one.count == 1


# -- calibration.json ---------------------------------------------------------------------------------------


def test_json_round_trip() -> None:
    ranges = {"b": Range(-1.5, 2.25), "a": Range(0.0, 1e-30, "percentile")}
    assert from_json(to_json(ranges)) == ranges
    assert to_json(ranges) == to_json(dict(reversed(ranges.items())))


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"ranges": {"a": {"low": 0}}}', '{"ranges": {"a": {"low": "x", "high": 1, "method": "m"}}}'],
)
def test_json_that_is_not_ours(text: str) -> None:
    with pytest.raises(InputError, match="not a file of joulec"):
        from_json(text)


@pytest.mark.parametrize("low", ["NaN", "2", "-Infinity"])
def test_json_with_an_impossible_range(low: str) -> None:
    with pytest.raises(InputError, match="the range of 'a' is not an interval"):
        from_json(f'{{"ranges": {{"a": {{"low": {low}, "high": 1, "method": "m"}}}}}}')
