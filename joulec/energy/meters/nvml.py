"""NVML: the energy counter of NVIDIA GPUs, through nvidia-ml-py.

`nvmlDeviceGetTotalEnergyConsumption` counts millijoules of the board since the driver was loaded (Volta and newer). It
is updated about every 100 ms, and on A100 and H100 the sensor sees only 25 ms of each 100 (Yang et al., "Part-time
Power Measurements", SC 2024), with a board's own gain error of about 5 %: it is the board's energy, not the wall's.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from joulec.energy.meters.meter import Counter, Obstacle

UPDATE_SECONDS = 0.1


@dataclass(frozen=True)
class NvmlCounter:
    """One board.

    Attributes:
        nvml: the module `pynvml`.
        handle: NVML's handle of the board.
    """

    nvml: Any
    handle: Any
    name: str
    cap: float | None
    scope: str = "GPU board"
    wraps_at: float | None = None
    step: float = UPDATE_SECONDS

    def read(self) -> float:
        """Joules since the driver was loaded."""
        try:
            return float(self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)) * 1e-3
        except self.nvml.NVMLError as error:
            raise OSError(f"{self.name}: {error}") from error

    def watts(self) -> float:
        """Momentary power draw of the board, for a cross-check of the counter."""
        try:
            return float(self.nvml.nvmlDeviceGetPowerUsage(self.handle)) * 1e-3
        except self.nvml.NVMLError as error:
            raise OSError(f"{self.name}: {error}") from error


def nvml_counters(nvml: Any = None) -> tuple[list[Counter], list[Obstacle]]:
    """The boards whose counter can be read, and what stands in the way of others.

    Args:
        nvml: the module `pynvml`, or one that behaves like it; imported where None.
    """
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return [], [Obstacle("NVML", "nvidia-ml-py is not installed; pip install 'joulec[gpu]'")]
    try:
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError as error:
        return [], [Obstacle("NVML", f"no NVIDIA driver answers: {error}")]
    found: list[Counter] = []
    obstacles: list[Obstacle] = [] if handles else [Obstacle("NVML", "the driver sees no GPU")]
    for index, handle in enumerate(handles):
        counter = NvmlCounter(nvml, handle, f"gpu-{index}", _cap(nvml, handle))
        try:
            counter.read()
        except OSError as error:
            obstacles.append(Obstacle("NVML", f"{error}; the counter needs Volta or newer"))
        else:
            found.append(counter)
    return found, obstacles


def _cap(nvml: Any, handle: Any) -> float | None:
    """The board's enforced power limit in watts; None where the driver does not say."""
    try:
        return float(nvml.nvmlDeviceGetEnforcedPowerLimit(handle)) * 1e-3
    except nvml.NVMLError:
        return None
