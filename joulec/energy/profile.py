"""Device profiles: what an operation, a byte, a launch and a second cost on a device, each number with its source.

A profile is a TOML file. Every coefficient is a table {value, low, high, unit, source}; nothing is implied. With
`base = "NAME"` it holds only what differs from a profile that ships.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from joulec.energy.families import FAMILIES
from joulec.energy.terms import UNITS
from joulec.errors import InputError

MAX_PROFILE_BYTES = 256 * 1024
DEFAULT = {"cpu": "generic-server-cpu", "cuda": "a100", "tensorrt": "a100"}
"""The profile that prices a target unless the user names one."""


@dataclass(frozen=True)
class Coefficient:
    """One number of a profile: `value` within [low, high], in `unit`, and where it comes from."""

    value: float
    low: float
    high: float
    unit: str
    source: str


_UNITS = {"energy": "pJ/op", "peak": "op/s"}
_REQUIRED: Mapping[str, Mapping[str, str]] = {
    "memory": {
        "dram_energy": "pJ/B", "cache_energy": "pJ/B", "dram_bandwidth": "B/s", "cache_bandwidth": "B/s",
        "cache_size": "B",
    },
    "launch": {"energy": "J", "time": "s"},
    "power": {"static": "W", "cap": "W"},
    "efficiency": {"matrix": "1", "vector": "1", "memory": "1"},
}  # fmt: skip
_HEAD = {"name", "description", "kind", "cores", "features"}
_OPTIONAL: Mapping[str, Mapping[str, str]] = {"memory": {"near_cache_size": "B"}}


@dataclass(frozen=True)
class Calibration:
    """Where a profile's kernel times come from.

    Attributes:
        machine: the CPU that was measured, as `joulec.key.cpu` names it.
        threads: intra-op threads.
        runtime: name and version of what ran.
        spread: 95 % of the ladder's times lie within predicted / spread to predicted * spread.
    """

    machine: str
    threads: int
    runtime: str
    spread: float


@dataclass(frozen=True)
class DeviceProfile:
    """A device as the energy model sees it.

    Attributes:
        name: what reports call it.
        description: what hardware it stands for, and its scope (board, package, slice of a package).
        kind: `cpu` or `gpu`.
        cores: CPU cores that the powers, peaks and bandwidths stand for; None for a whole board.
        features: instruction sets it has, e.g. `vnni`; a coefficient `int8+vnni` then replaces `int8`.
        energy: arithmetic class -> pJ per operation, beyond static power.
        peak: arithmetic class -> operations per second.
        memory: energies (pJ/B), bandwidths (B/s) and size (B) of DRAM and of the last cache; where it is told, the
            size of the cache that a core has for itself (`near_cache_size`).
        launch: energy (J) and time (s) per kernel started.
        power: static power (W) and the cap (W) that no operator exceeds.
        efficiency: the share of peak that kernels reach: `matrix`, `vector`, and `memory` of bandwidths.
        kernels: kernel family -> measured time per unit of each of its terms (`joulec.energy.terms`; what is left out
            is zero); a family that is not here follows the roofline.
        calibration: where and how `kernels` were measured; None where they were not.
    """

    name: str
    description: str
    kind: str
    energy: Mapping[str, Coefficient]
    peak: Mapping[str, Coefficient]
    memory: Mapping[str, Coefficient]
    launch: Mapping[str, Coefficient]
    power: Mapping[str, Coefficient]
    efficiency: Mapping[str, Coefficient]
    cores: int | None = None
    features: tuple[str, ...] = ()
    kernels: Mapping[str, Mapping[str, Coefficient]] = field(default_factory=dict)
    calibration: Calibration | None = None
    _found: dict[tuple[str, str], str] = field(default_factory=dict, compare=False, repr=False)

    def resolve(self, table: str, kind: str) -> str:
        """The key of `table` ("energy" or "peak") that stands for arithmetic class `kind`.

        In this order: with a feature of the device, as it is, without `-matrix`, fp32. Integer and half-precision
        arithmetic that the profile does not list runs on the same vector units, so it costs as much as fp32.
        """
        if (table, kind) not in self._found:
            self._found[table, kind] = self._resolve(self.energy if table == "energy" else self.peak, kind)
        return self._found[table, kind]

    def _resolve(self, known: Mapping[str, Coefficient], kind: str) -> str:
        base = kind.removesuffix("-matrix")
        fallback = "fp32-matrix" if kind != base else "fp32"
        for name in dict.fromkeys([kind, base, fallback, "fp32"]):
            for key in [*(f"{name}+{feature}" for feature in self.features), name]:
                if key in known:
                    return key
        raise InputError(f"device profile '{self.name}' has no fp32 coefficient")

    def tables(self) -> dict[str, Mapping[str, Coefficient]]:
        """Its coefficients by table, in the order of a file."""
        return {
            "energy": self.energy, "peak": self.peak, "memory": self.memory, "launch": self.launch,
            "power": self.power, "efficiency": self.efficiency,
        }  # fmt: skip

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """(coefficient, value, range, unit, source) of every number."""
        measured = {f"kernels.{family}": law for family, law in self.kernels.items()}
        return [
            (f"{table}.{key}", f"{one.value:.4g}", f"{one.low:.4g} to {one.high:.4g}", one.unit, one.source)
            for table, group in (self.tables() | measured).items()
            for key, one in group.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """The profile as JSON, in the form of its file."""
        head = {"name": self.name, "description": self.description, "kind": self.kind}
        groups: dict[str, Any] = {
            table: {key: asdict(one) for key, one in group.items()} for table, group in self.tables().items()
        }
        if self.calibration is not None:
            groups["calibration"] = asdict(self.calibration)
            groups["kernels"] = {
                family: {key: asdict(one) for key, one in law.items()} for family, law in self.kernels.items()
            }
        return {**head, "cores": self.cores, "features": list(self.features), **groups}

    def with_cores(self, cores: int) -> DeviceProfile:
        """The same CPU with `cores` of its cores: powers, peaks, bandwidths and cache in proportion."""
        if self.cores is None or cores < 1 or self.calibration is not None:
            raise InputError(f"device profile '{self.name}' is not given per core")
        share = cores / self.cores
        sized = {k: _scaled(c, share) if c.unit in ("B/s", "B") else c for k, c in self.memory.items()}
        return replace(
            self, cores=cores, memory=sized,
            peak={k: _scaled(c, share) for k, c in self.peak.items()},
            power={k: _scaled(c, share) for k, c in self.power.items()},
        )  # fmt: skip

    def with_features(self, *features: str) -> DeviceProfile:
        """The same device with exactly these instruction sets."""
        return replace(self, features=tuple(features), _found={})


def _scaled(number: Coefficient, share: float) -> Coefficient:
    return replace(number, value=number.value * share, low=number.low * share, high=number.high * share)


def user_folder() -> Path:
    """Where a user's own profiles lie: `$XDG_CONFIG_HOME/joulec/devices`, or `~/.config/joulec/devices`."""
    root = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(root) / "joulec" / "devices"


def profile_names() -> list[str]:
    """The profiles that ship with joulec."""
    folder = resources.files("joulec.energy") / "devices"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def user_profiles() -> dict[str, Path]:
    """The profiles in the user's folder: name -> file. One called like a profile that ships is found by path only."""
    shipped, folder = set(profile_names()), user_folder()
    files = sorted(folder.glob("*.toml")) if folder.is_dir() else []
    return {path.stem: path for path in files if path.stem not in shipped and path.is_file()}


def load_profile(name_or_path: str | Path = "generic-server-cpu") -> DeviceProfile:
    """Load a profile by name, of those that ship or of the user's folder, or from a TOML file.

    Raises:
        InputError: no such profile or file, or a file that is too large, malformed, incomplete, or has unknown keys.
    """
    text = str(name_or_path)
    if text in profile_names():
        return parse_profile(_shipped(text), text)
    own = user_profiles()
    path = own.get(text, Path(name_or_path))
    if not path.is_file():
        known = ", ".join([*profile_names(), *own])
        raise InputError(f"no device profile '{text}': known are {known}, or give a .toml file")
    with path.open("rb") as file:
        data = file.read(MAX_PROFILE_BYTES + 1)
    return parse_profile(data, text)


def parse_profile(data: bytes, where: str) -> DeviceProfile:
    """Check and build a profile from TOML text; `where` is named in errors."""
    if len(data) > MAX_PROFILE_BYTES:
        raise InputError(f"{where}: larger than {MAX_PROFILE_BYTES} bytes, not a device profile")
    table = _table(data, where)
    if "base" in table:
        table = _merged(table, where)
    return _build(table, where)


def _table(data: bytes, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{where}: not a TOML file: {str(error).splitlines()[0]}") from None


def _merged(table: dict[str, Any], where: str) -> dict[str, Any]:
    """The profile that `base` names (one that ships, and has no base itself), with what `table` says instead."""
    base = _text(table, "base", where)
    if base not in profile_names():
        raise InputError(f"{where}: base '{base}' is not a profile that ships: {', '.join(profile_names())}")
    found = _table(_shipped(base), base)
    if "base" in found:
        raise InputError(f"{where}: base '{base}' stands on a base itself; take '{found['base']}'")
    for key, entry in table.items():
        if isinstance(entry, dict) and isinstance(found.get(key), dict):
            found[key] = found[key] | entry
        elif key != "base":
            found[key] = entry
    return found


def _shipped(name: str) -> bytes:
    return (resources.files("joulec.energy") / "devices" / f"{name}.toml").read_bytes()


def _build(table: dict[str, Any], where: str) -> DeviceProfile:
    _only(table, _HEAD | {"energy", "peak", "kernels", "calibration", *_REQUIRED}, where, "")
    groups: dict[str, Any] = {name: _group(table, name, where) for name in ("energy", "peak", *_REQUIRED)}
    for name in ("energy", "peak"):
        if "fp32" not in groups[name]:
            raise InputError(f"{where}: [{name}.fp32] is missing")
    if groups["power"]["cap"].value <= groups["power"]["static"].value:
        raise InputError(f"{where}: power.cap must be above power.static")
    return DeviceProfile(
        name=_text(table, "name", where), description=_text(table, "description", where), kind=_kind(table, where),
        cores=_cores(table, where), features=_features(table, where), kernels=_kernels(table, where),
        calibration=_calibration(table, where), **groups,
    )  # fmt: skip


def _kernels(table: Mapping[str, Any], where: str) -> dict[str, dict[str, Coefficient]]:
    laws = table.get("kernels", {})
    if not isinstance(laws, dict) or not all(isinstance(law, dict) and law for law in laws.values()):
        raise InputError(f"{where}: [kernels] must hold one table a family")
    if laws and "calibration" not in table:
        raise InputError(f"{where}: [kernels] needs a table [calibration], which says where they were measured")
    _only(laws, set(FAMILIES), where, "kernels.")
    found: dict[str, dict[str, Coefficient]] = {}
    for family, law in laws.items():
        _only(law, set(UNITS), where, f"kernels.{family}.")
        found[family] = {
            key: _coefficient(entry, f"kernels.{family}.{key}", where, UNITS[key]) for key, entry in law.items()
        }
    return found


def _calibration(table: Mapping[str, Any], where: str) -> Calibration | None:
    entry = table.get("calibration")
    if entry is None:
        return None
    if not isinstance(entry, dict):
        raise InputError(f"{where}: [calibration] must be a table")
    _only(entry, {"machine", "threads", "runtime", "spread"}, where, "calibration.")
    threads, spread = entry.get("threads"), entry.get("spread")
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise InputError(f"{where}: calibration.threads must be a whole number of at least 1")
    if not isinstance(spread, int | float) or isinstance(spread, bool) or not 1 < spread < 100:
        raise InputError(f"{where}: calibration.spread must be a number above 1")
    return Calibration(_text(entry, "machine", where), threads, _text(entry, "runtime", where), float(spread))


def _only(table: Mapping[str, Any], allowed: set[str], where: str, inside: str) -> None:
    for key in table:
        if key not in allowed:
            raise InputError(f"{where}: unknown key '{inside}{key}'; known are {', '.join(sorted(allowed))}")


def _group(table: Mapping[str, Any], name: str, where: str) -> dict[str, Coefficient]:
    group = table.get(name)
    if not isinstance(group, dict):
        raise InputError(f"{where}: table [{name}] is missing")
    units = {**_REQUIRED.get(name, {}), **_OPTIONAL.get(name, {})}
    if units:
        _only(group, set(units), where, f"{name}.")
        for key in _REQUIRED[name]:
            if key not in group:
                raise InputError(f"{where}: [{name}.{key}] is missing")
    unit_of = units or dict.fromkeys(group, _UNITS[name])
    return {key: _coefficient(entry, f"{name}.{key}", where, unit_of[key]) for key, entry in group.items()}


def _coefficient(entry: Any, key: str, where: str, unit: str) -> Coefficient:
    if not isinstance(entry, dict):
        raise InputError(f"{where}: '{key}' must be a table with value, low, high, unit and source")
    _only(entry, {"value", "low", "high", "unit", "source"}, where, f"{key}.")
    numbers = [entry.get(name) for name in ("value", "low", "high")]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        raise InputError(f"{where}: '{key}' needs numbers for value, low and high")
    value, low, high = (float(n) for n in numbers if n is not None)
    if not 0 <= low <= value <= high < float("inf") or value == 0:
        raise InputError(f"{where}: '{key}' must have 0 <= low <= value <= high, and a value above 0")
    if entry.get("unit") != unit:
        raise InputError(f"{where}: '{key}' must be in {unit}")
    return Coefficient(value, low, high, unit, _text(entry, "source", f"{where}: {key}"))


def _text(table: Mapping[str, Any], key: str, where: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: '{key}' must be a text")
    return value


def _kind(table: Mapping[str, Any], where: str) -> str:
    kind = _text(table, "kind", where)
    if kind not in ("cpu", "gpu"):
        raise InputError(f"{where}: kind must be 'cpu' or 'gpu', not '{kind}'")
    return kind


def _cores(table: Mapping[str, Any], where: str) -> int | None:
    cores = table.get("cores")
    if cores is None:
        return None
    if not isinstance(cores, int) or isinstance(cores, bool) or cores < 1:
        raise InputError(f"{where}: cores must be a whole number of at least 1")
    return cores


def _features(table: Mapping[str, Any], where: str) -> tuple[str, ...]:
    features = table.get("features", [])
    if not isinstance(features, list) or not all(isinstance(f, str) for f in features):
        raise InputError(f"{where}: features must be a list of texts")
    return tuple(features)
