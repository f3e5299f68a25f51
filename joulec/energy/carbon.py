"""From joules to grams: the software carbon intensity of an inference (SCI, ISO/IEC 21031:2024).

    SCI = (E * I + M) / R      E: energy with the data centre's overhead (PUE), I: intensity of the grid,
                               M: the share of the hardware's embodied emissions, R: one inference

No number leaves this module without the region, the year and the kind of intensity that it was made with, and without
saying whether embodied emissions are in it.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from joulec.errors import InputError

Kind = Literal["average", "marginal"]
KINDS: tuple[Kind, ...] = ("average", "marginal")

JOULES_PER_KWH = 3.6e6
SECONDS_PER_YEAR = 365 * 86400
GRAMS_PER_KG = 1000.0

MAX_FILE = 1 << 20
HIGHEST = 5000.0
"""gCO2e/kWh that no grid reaches; above it a table is in another unit."""


@dataclass(frozen=True)
class Intensity:
    """What a kWh of a grid emits.

    Attributes:
        region: its code, `DE`.
        name: in words.
        year: for which it holds.
        kind: `average` of all generation, or `marginal`: of the plants that answer to a change in demand.
        value: in gCO2e/kWh.
        source, scope: whose number it is, and what is in it.
    """

    region: str
    name: str
    year: int
    kind: Kind
    value: float
    source: str
    scope: str


@dataclass(frozen=True)
class Embodied:
    """What making the hardware emitted, spread over its life.

    Attributes:
        kilograms: CO2e of the whole device.
        years: its life.
        share: how much of the device is reserved for this service, 0..1.
    """

    kilograms: float
    years: float
    share: float = 1.0

    @property
    def grams_per_year(self) -> float:
        return self.kilograms * GRAMS_PER_KG / self.years * self.share


@dataclass(frozen=True)
class Spread:
    """A number with its interval."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> Spread:
        return Spread(self.value * factor, self.low * factor, self.high * factor)

    def plus(self, amount: float) -> Spread:
        return Spread(self.value + amount, self.low + amount, self.high + amount)


@dataclass(frozen=True)
class Carbon:
    """The emissions of a service, in gCO2e.

    Attributes:
        intensity: the grid's.
        joules: per inference, at the device, with the interval and tier they came with.
        tier: of the joules: `measured`, `calibrated`, `estimated`, or `given`.
        pue: energy of the whole data centre over that of its devices.
        rate: inferences per second, or None where nobody said.
        embodied: what making the hardware emitted; None where that is not included.
        per_inference: grams; with embodied emissions where they are given.
        per_year: grams at `rate`; None without one.
        left_out: operators whose joules nobody knows, and which are not in it.
    """

    intensity: Intensity
    joules: Spread
    tier: str
    pue: float
    rate: float | None
    embodied: Embodied | None
    per_inference: Spread
    per_year: Spread | None
    left_out: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON, in the units that the names say."""
        return {
            **{key: getattr(self.intensity, key) for key in ("region", "name", "year", "kind", "source", "scope")},
            "gco2e_per_kwh": self.intensity.value, "joules": asdict(self.joules), "tier": self.tier, "pue": self.pue,
            "rate_per_second": self.rate,
            "embodied": "not included" if self.embodied is None else asdict(self.embodied),
            "left_out": list(self.left_out), "gco2e_per_inference": asdict(self.per_inference),
            "gco2e_per_year": None if self.per_year is None else asdict(self.per_year),
        }  # fmt: skip


def emissions(
    joules: Spread, tier: str, intensity: Intensity, *, pue: float = 1.0, rate: float | None = None,
    embodied: Embodied | None = None, left_out: tuple[str, ...] = (),
) -> Carbon:  # fmt: skip
    """SCI of one inference, and of a year at a rate.

    Args:
        joules: per inference at the device; the interval is carried through, those of the other factors are not known.
        tier: where the joules come from.
        intensity: of the grid.
        pue: power usage effectiveness (ISO/IEC 30134-2), 1 and more.
        rate: inferences per second, all year.
        left_out: operators that the joules do not hold.
        embodied: needs `rate`, by which the hardware's share of a year becomes a share of an inference.

    Raises:
        InputError: a factor out of range, or embodied emissions without a rate.
    """
    _require(1.0 <= pue <= 10.0, f"--pue {pue:g}: power usage effectiveness lies between 1 and 10")
    _require(rate is None or 0 < rate < 1e12, "--rate: write a number above 0, such as 100/s")
    each = joules.times(pue * intensity.value / JOULES_PER_KWH)
    if embodied is not None:
        _require(rate is not None, "--embodied needs --rate: only a rate shares the hardware's year out to inferences")
        each = each.plus(embodied.grams_per_year / ((rate or 1.0) * SECONDS_PER_YEAR))
    year = None if rate is None else each.times(rate * SECONDS_PER_YEAR)
    return Carbon(intensity, joules, tier, pue, rate, embodied, each, year, left_out)


def _require(holds: bool, said: str) -> None:
    if not holds:
        raise InputError(said)


# -- the table --------------------------------------------------------------------------------------------------------


def intensities(file: Path | None = None) -> tuple[Intensity, ...]:
    """Every row of the table that ships, or of a user's own in the same form.

    Raises:
        InputError: the file is missing, too large, or not such a table.
    """
    if file is None:
        return _parsed((resources.files("joulec.energy") / "carbon.toml").read_bytes(), "carbon.toml")
    if not file.is_file():
        raise InputError(f"{file}: no such file; --grids names a table like joulec/energy/carbon.toml")
    with file.open("rb") as stream:
        return _parsed(stream.read(MAX_FILE + 1), str(file))


def intensity_of(region: str, kind: str = "average", file: Path | None = None) -> Intensity:
    """The newest row of a region, by its code or its name.

    Raises:
        InputError: no such region, or none of that kind.
    """
    table, wanted = intensities(file), region.strip().casefold()
    found = [one for one in table if wanted in (one.region.casefold(), one.name.casefold())]
    if not found:
        names = {name.casefold(): name for one in table for name in (one.region, one.name)}
        near = [names[name] for name in difflib.get_close_matches(wanted, names, 3)]
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise InputError(f"--region {region}: not in the table{hint} (joulec carbon --list; --grids adds your own)")
    of_kind = [one for one in found if one.kind == kind]
    if not of_kind:
        raise InputError(f"--region {region}: the table has no {kind} intensity for it, only {found[0].kind}")
    return max(of_kind, key=lambda one: one.year)


def _parsed(data: bytes, where: str) -> tuple[Intensity, ...]:
    _require(len(data) <= MAX_FILE, f"{where}: larger than {MAX_FILE >> 20} MiB, not a table of grids")
    try:
        table = tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{where}: not a TOML file: {str(error).splitlines()[0]}") from None
    sources, grids = table.get("sources"), table.get("grids")
    if not isinstance(sources, dict) or not isinstance(grids, dict):
        raise InputError(f"{where}: needs tables [sources.NAME] and [grids.CODE]")
    return tuple(row for code, grid in grids.items() for row in _rows(code, grid, sources, where))


def _rows(code: str, grid: Any, sources: Mapping[str, Any], where: str) -> list[Intensity]:
    place = f"{where}: [grids.{code}]"
    if not isinstance(grid, dict) or not isinstance(grid.get("name"), str) or not isinstance(grid.get("rows"), list):
        raise InputError(f"{place} needs a name and rows")
    return [_row(code, grid["name"], row, sources, place) for row in grid["rows"]]


def _row(code: str, name: str, row: Any, sources: Mapping[str, Any], place: str) -> Intensity:
    _require(isinstance(row, dict) and set(row) == {"year", "kind", "value", "source"}, _FORM.format(place))
    value, year, kind, source = row["value"], row["year"], row["kind"], sources.get(str(row["source"]))
    _require(_number(value) and 0 <= value < HIGHEST, f"{place}: value must be in gCO2e/kWh, below {HIGHEST:g}")
    _require(type(year) is int and 1990 <= year <= 2100, f"{place}: year must be a year")
    _require(kind in KINDS, f"{place}: kind must be average or marginal")
    told = isinstance(source, dict) and all(isinstance(source.get(key), str) for key in ("title", "scope"))
    if not told or not isinstance(source, dict):
        raise InputError(f"{place}: source '{row['source']}' needs a table [sources.{row['source']}], title and scope")
    return Intensity(code, name, year, kind, float(value), source["title"], source["scope"])


_FORM = "{}: a row is year = 2024, kind = \"average\", value = 342.1, source = \"NAME\""


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
