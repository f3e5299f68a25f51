"""`joulec measure`: percentiles, CPU time and counted joules of two models, and what is said of them."""

from __future__ import annotations

import dataclasses
import io
import itertools
import time
from collections.abc import Sequence

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from joulec.energy.meters import Obstacle
from joulec.ir.feeds import Feed
from joulec.ir.module import Module
from joulec.ir.runner import LocalRunner
from joulec.ir.session import SessionOptions
from joulec.ir.values import Array
from joulec.measuring import SAME, Counted, Measured, Ratio, measure_pair, verdict_of
from joulec.report import energy_tables, terminal

X = {"x": np.ones((1, 4), np.float32)}


def relus(count: int) -> Module:
    values = ["x", *(f"v{index}" for index in range(count - 1)), "y"]
    body = "\n".join(f"{b} = Relu({a})" for a, b in itertools.pairwise(values))
    head = '<ir_version: 8, opset_import: ["": 13]> g (float[N, 4] x) => (float[N, 4] y)'
    return Module(ir.from_proto(onnx.parser.parse_model(f"{head} {{ {body} }}")))


@dataclasses.dataclass
class Fake:
    """Counts `watts` while the module that runs is charged with them."""

    runner: Costly
    name: str = "package-0"
    scope: str = "CPU package"
    wraps_at: float | None = None
    step: float = 1e-9
    cap: float | None = None

    def read(self) -> float:
        return self.runner.joules


class Costly(LocalRunner):
    """A run of a module of n nodes takes n ms, 2 n ms of CPU, and n joules."""

    def __init__(self) -> None:
        super().__init__()
        self.joules = 0.0
        self._nodes: dict[int, int] = {}

    def load(self, module: Module, *, extra_outputs: Sequence[str] = (), options: SessionOptions | None = None) -> int:
        handle = super().load(module, extra_outputs=extra_outputs, options=options)
        self._nodes[handle] = module.node_count()
        return handle

    def spend(self, handles: Sequence[int], feed: Feed, *, rounds: int) -> Array:
        counts = np.array([self._nodes[handle] for handle in handles], float)
        self.joules += float(counts.sum()) * rounds
        time.sleep(1e-5)
        return np.tile(np.stack([counts * 1e-3, counts * 2e-3], axis=1), (rounds, 1, 1))


def measured(base: Module, candidate: Module, counted: bool = True, **more: float) -> Measured:
    runner = Costly()
    fake = dataclasses.replace(Fake(runner), **more)  # type: ignore[arg-type]
    found = ([fake] if counted else [], [Obstacle("RAPL", "no DRAM zone: DRAM excluded"), Obstacle("NVML", "no GPU")])
    return measure_pair(runner, base, candidate, X, SessionOptions(), 0.1, found)


def test_time_cpu_time_and_joules_of_both_are_told_per_inference() -> None:
    found = measured(relus(4), relus(2))
    assert (found.ratio, found.low, found.high) == (2.0, 2.0, 2.0)
    assert (found.cpu.ratio, found.model.cpu_seconds, found.against.cpu_seconds) == pytest.approx((2.0, 0.004, 0.008))
    assert (found.model.joules, found.against.joules) == (2.0, 4.0)
    assert found.energy is not None and found.energy.change == Ratio(2.0, 2.0, 2.0)
    assert found.energy.scopes == ("CPU package",)
    assert found.obstacles == ("RAPL: no DRAM zone: DRAM excluded",)
    assert found.to_json()["tier"] == "measured"


def test_percentiles_come_in_order_on_the_real_clock() -> None:
    with LocalRunner() as runner:
        found = measure_pair(runner, relus(3), relus(3), X, SessionOptions(), 0.05, ([], []))
    spent = found.model
    assert 0 < spent.min_ms <= spent.p50_ms <= spent.p90_ms <= spent.p95_ms <= spent.p99_ms
    assert 0 < spent.cpu_seconds < 0.01
    assert found.energy is None and found.model.joules is None
    assert "joules are not counted here" in found.verdict


def test_a_counter_that_must_not_be_believed_leaves_no_joules_and_says_why() -> None:
    found = measured(relus(4), relus(2), cap=1e-9)
    assert found.energy is None and found.model.joules is None
    assert any("above its limit" in one for one in found.obstacles)


def test_a_gpu_board_that_idles_is_not_charged_to_the_cpu() -> None:
    found = measured(relus(4), relus(2), scope="GPU board")  # type: ignore[arg-type]
    assert found.energy is None and found.to_json()["tier"] == "unknown"


@pytest.mark.parametrize(
    ("time_", "joules", "said"),
    [
        ((1.2, 1.1, 1.3), None, "faster, 1.20x (1.10 to 1.30) the speed; joules are not counted here"),
        ((0.8, 0.7, 0.9), None, "slower, 0.80x (0.70 to 0.90) the speed; joules are not counted here"),
        ((1.0, 0.9, 1.1), None, f"{SAME} in time; joules are not counted here"),
        (
            (1.0, 0.9, 1.1),
            (1.5, 1.4, 1.6),
            f"{SAME} in time; less energy, the other takes 1.50x (1.40 to 1.60) its joules",
        ),
        ((1.2, 1.1, 1.3), (1.0, 0.9, 1.1), f"faster, 1.20x (1.10 to 1.30) the speed; {SAME} in joules"),
    ],
)
def test_the_verdict_says_what_the_intervals_say(time_, joules, said) -> None:
    energy = None if joules is None else Counted(Ratio(*joules), 1.0, 1.0, 5.0, ("CPU package",), ("p",), 8)
    assert verdict_of(Ratio(*time_), energy, same=False) == said


def test_a_model_against_itself_is_noise_or_a_machine_too_busy() -> None:
    assert "noise" in verdict_of(Ratio(1.0, 0.9, 1.1), None, same=True)
    assert "too busy" in verdict_of(Ratio(1.2, 1.1, 1.3), None, same=True)
    one = relus(2)
    assert measured(one, one).same


def test_the_terminal_shows_all_of_it() -> None:
    out = io.StringIO()
    energy_tables.measured(terminal.console(out), "a.onnx", "b.onnx", measured(relus(4), relus(2)).to_json())
    said = " ".join(out.getvalue().split())
    assert "2.000x as fast as b.onnx (95 % interval 2.000 to 2.000)" in said
    assert "p99" in said and "4.00 ms" in said and "4.00 J" in said
    assert "measured: CPU package" in said and "DRAM excluded" in said
