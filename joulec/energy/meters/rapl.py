"""RAPL: the energy counters of Intel and AMD CPUs, through Linux' powercap tree.

Layout and units (micro-joules, `max_energy_range_uj` for the wraparound, `constraint_*_max_power_uw`) are those of the
kernel's documentation, Documentation/power/powercap/powercap.rst. Since Linux 5.10 only root may read `energy_uj`
(CVE-2020-8694: the counter leaks what other processes compute).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from joulec.energy.meters.meter import Counter, Obstacle

POWERCAP = Path("/sys/class/powercap")
UPDATE_SECONDS = 1e-3
"""RAPL counters are updated about every millisecond (Intel SDM vol. 3B, 15.10)."""


@dataclass(frozen=True)
class RaplCounter:
    """One zone: a package, or the DRAM behind one."""

    zone: Path
    name: str
    scope: str
    wraps_at: float | None
    cap: float | None
    step: float = UPDATE_SECONDS

    def read(self) -> float:
        """Joules since the counter last wrapped."""
        text = (self.zone / "energy_uj").read_text().strip()
        if not text.isdigit():
            raise OSError(f"{self.zone / 'energy_uj'} holds no number")
        return int(text) * 1e-6


def rapl_counters(root: Path = POWERCAP) -> tuple[list[Counter], list[Obstacle]]:
    """The packages and their DRAM, and what stands in the way.

    Only zones `intel-rapl:N` and their `dram` children count. The other children (core, uncore) are part of a package;
    `psys` contains the packages; `intel-rapl-mmio` shows the same packages a second time.
    """
    if not root.is_dir():
        return [], [Obstacle("RAPL", f"there is no {root}: not Linux, or a virtual machine that hides its counters")]
    packages = [zone for zone in _zones(root, "intel-rapl") if _text(zone / "name").startswith("package")]
    if not packages:
        return [], [Obstacle("RAPL", f"{root} has no CPU package: a virtual machine, or the driver is not loaded")]
    found: list[Counter] = []
    obstacles: list[Obstacle] = []
    for package in packages:
        _add(found, obstacles, package, "CPU package")
        memories = [zone for zone in _zones(root, package.name) if _text(zone / "name") == "dram"]
        for memory in memories:
            _add(found, obstacles, memory, "DRAM")
        if not memories:
            obstacles.append(Obstacle("RAPL", f"{_text(package / 'name')} has no DRAM zone: DRAM excluded"))
    return found, obstacles


def _zones(root: Path, parent: str) -> list[Path]:
    """Children of a zone by name, `parent:0`, `parent:1`, in numeric order."""
    found = [path for path in root.glob(f"{parent}:*") if path.name.removeprefix(f"{parent}:").isdigit()]
    return sorted(found, key=lambda path: int(path.name.rpartition(":")[2]))


def _add(found: list[Counter], obstacles: list[Obstacle], zone: Path, scope: str) -> None:
    name = _text(zone / "name")
    limits = [_joules(zone / f"constraint_{index}_max_power_uw") for index in range(2)]
    counter = RaplCounter(
        zone, name if scope != "DRAM" else f"{_text(zone.parent / zone.name.rpartition(':')[0] / 'name')} dram", scope,
        _joules(zone / "max_energy_range_uj"), max((limit for limit in limits if limit), default=None),
    )  # fmt: skip
    try:
        counter.read()
    except PermissionError:
        advice = f"only root may read {zone / 'energy_uj'}; run as root, or: sudo chmod a+r {zone / 'energy_uj'}"
        obstacles.append(Obstacle("RAPL", f"{counter.name}: {advice}"))
    except OSError as error:
        obstacles.append(Obstacle("RAPL", f"{counter.name}: {error}"))
    else:
        found.append(counter)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""  # a zone that appears or vanishes while it is listed has no name, and is then none of ours


def _joules(path: Path) -> float | None:
    """A file of micro-units; None where it is missing or says 0 (unknown)."""
    text = _text(path)
    return int(text) * 1e-6 if text.isdigit() and int(text) > 0 else None
