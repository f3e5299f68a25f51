"""Counter readers, against a made-up powercap tree and a made-up NVML."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from joulec.energy.meters.meter import Counter, counting, unwrapped
from joulec.energy.meters.nvml import NvmlCounter, nvml_counters
from joulec.energy.meters.rapl import rapl_counters


def zone(root: Path, name: str, label: str, joules: float = 1.0, wraps_at: float = 262_143.0, watts: float = 205) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{label}\n")
    (folder / "energy_uj").write_text(f"{int(joules * 1e6)}\n")
    (folder / "max_energy_range_uj").write_text(f"{int(wraps_at * 1e6)}\n")
    (folder / "constraint_0_max_power_uw").write_text(f"{int(watts * 1e6)}\n")
    return folder


def test_packages_and_dram_are_counted_once(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:1", "package-1")
    zone(tmp_path, "intel-rapl:0", "package-0")
    zone(tmp_path, "intel-rapl:0:0", "core")
    zone(tmp_path, "intel-rapl:0:1", "dram")
    zone(tmp_path, "intel-rapl:2", "psys")
    zone(tmp_path, "intel-rapl-mmio:0", "package-0")
    found, obstacles = rapl_counters(tmp_path)
    assert [counter.name for counter in found] == ["package-0", "package-0 dram", "package-1"]
    assert [counter.scope for counter in found] == ["CPU package", "DRAM", "CPU package"]
    assert [str(o) for o in obstacles] == ["RAPL: package-1 has no DRAM zone: DRAM excluded"]
    assert found[0].wraps_at == pytest.approx(262_143.0)
    assert found[0].cap == pytest.approx(205)


def test_a_machine_without_counters_says_so(tmp_path: Path) -> None:
    assert "there is no" in str(rapl_counters(tmp_path / "missing")[1][0])
    assert "no CPU package" in str(rapl_counters(tmp_path)[1][0])


def test_a_counter_for_root_only_is_an_obstacle_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0")
    read_text = Path.read_text

    def denied(self: Path, *args: object) -> str:
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(self))
        return read_text(self)

    monkeypatch.setattr(Path, "read_text", denied)
    found, obstacles = rapl_counters(tmp_path)
    assert found == []
    assert "sudo chmod a+r" in str(obstacles[0])


def test_a_counter_that_holds_no_number_is_an_obstacle(tmp_path: Path) -> None:
    (zone(tmp_path, "intel-rapl:0", "package-0") / "energy_uj").write_text("-\n")
    found, obstacles = rapl_counters(tmp_path)
    assert found == []
    assert "holds no number" in str(obstacles[0])


@pytest.mark.parametrize(("earlier", "later", "joules"), [(1.0, 4.0, 3.0), (99.0, 2.0, 3.0), (5.0, 5.0, 0.0)])
def test_a_wraparound_is_unwrapped(earlier: float, later: float, joules: float) -> None:
    assert unwrapped(earlier, later, 100.0) == pytest.approx(joules)


def test_a_counter_without_wraparound_never_runs_backwards() -> None:
    with pytest.raises(ValueError, match="ran backwards"):
        unwrapped(5.0, 4.0, None)


@dataclass
class Script:
    """A counter that reads a list of values, the last one for ever."""

    values: list[float]
    name: str = "package-0"
    scope: str = "CPU package"
    wraps_at: float | None = 100.0
    step: float = 1e-3
    cap: float | None = 200.0
    reads: int = field(default=0)

    def read(self) -> float:
        self.reads += 1
        value = self.values[min(self.reads, len(self.values)) - 1]
        if value < 0:
            raise OSError("gone")
        return value


def counted(counter: Counter, seconds: float = 1.0, sleep: float = 0.0, poll: float = 5.0):  # type: ignore[no-untyped-def]
    ticks = iter([10.0, 10.0 + seconds])
    with counting([counter], clock=lambda: next(ticks), poll_seconds=poll) as running:
        with pytest.raises(RuntimeError, match="still counting"):
            _ = running.result
        time.sleep(sleep)
    return running.result


def test_joules_are_the_difference_of_two_readings() -> None:
    result = counted(Script([90.0, 7.0]))
    assert result.joules == pytest.approx(17.0)
    assert result.seconds == pytest.approx(1.0)
    assert result.scopes == ("CPU package",)


def test_two_wraparounds_are_seen_because_counters_are_polled() -> None:
    result = counted(Script([90.0, 10.0, 90.0, 10.0]), sleep=0.08, poll=0.02)
    assert result.joules == pytest.approx(20 + 80 + 20)


@pytest.mark.parametrize(
    ("counter", "seconds", "problem"),
    [
        (Script([0.0, 300.0], wraps_at=None), 1.0, "above its limit of 200 W"),
        (Script([0.0, 1.0]), 0.002, "too short"),
        (Script([5.0, 5.0]), 1.0, "did not move"),
        (Script([5.0, 4.0], wraps_at=None), 1.0, "ran backwards"),
        (Script([5.0, -1.0]), 1.0, "a counter failed: gone"),
        (Script([-1.0]), 1.0, "cannot be read"),
    ],
)
def test_readings_that_cannot_be_true_are_not_used(counter: Script, seconds: float, problem: str) -> None:
    result = counted(counter, seconds)
    assert result.joules is None
    assert problem in str(result.problem)


def test_without_counters_joules_are_unknown() -> None:
    with counting([]) as running:
        pass
    assert running.result.joules is None


class FakeNvmlError(Exception):
    """What pynvml raises."""


def fake_nvml(boards: list[object], *, driver: bool = True) -> SimpleNamespace:
    """A `pynvml` with boards that count millijoules; an exception in the list is raised by the counter."""

    def init() -> None:
        if not driver:
            raise FakeNvmlError("Driver Not Loaded")

    def energy(board: object) -> object:
        if isinstance(board, Exception):
            raise board
        return board

    return SimpleNamespace(
        NVMLError=FakeNvmlError, nvmlInit=init, nvmlDeviceGetCount=lambda: len(boards),
        nvmlDeviceGetHandleByIndex=lambda index: boards[index], nvmlDeviceGetTotalEnergyConsumption=energy,
        nvmlDeviceGetEnforcedPowerLimit=lambda _board: 700_000, nvmlDeviceGetPowerUsage=lambda _board: 95_500,
    )  # fmt: skip


def test_each_board_counts_millijoules() -> None:
    found, obstacles = nvml_counters(fake_nvml([123_456, 7]))
    assert [(c.name, c.scope, c.read(), c.cap) for c in found] == [
        ("gpu-0", "GPU board", pytest.approx(123.456), 700.0), ("gpu-1", "GPU board", pytest.approx(0.007), 700.0),
    ]  # fmt: skip
    assert isinstance(found[0], NvmlCounter)
    assert found[0].watts() == pytest.approx(95.5)
    assert obstacles == []


def test_a_missing_driver_and_an_old_board_are_obstacles() -> None:
    assert "Driver Not Loaded" in str(nvml_counters(fake_nvml([], driver=False))[1][0])
    assert "sees no GPU" in str(nvml_counters(fake_nvml([]))[1][0])
    found, obstacles = nvml_counters(fake_nvml([FakeNvmlError("Not Supported"), 5]))
    assert [counter.name for counter in found] == ["gpu-1"]
    assert "Volta or newer" in str(obstacles[0])
