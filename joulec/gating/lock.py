"""joulec.lock: what an artefact costs, as text that is committed and reviewed.

What holds on every machine is compared everywhere: joules of a pinned device profile, ratios to the input model that
were measured in one run, accuracy, size. Milliseconds are of one machine and are compared on that machine only.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from joulec.errors import InputError
from joulec.ir.shapes import first_line
from joulec.report.data import Data

VERSION = 1
MAX_LOCK = 1 << 22


@dataclass(frozen=True)
class LockedOperator(Data):
    """All nodes of one operator: their number, joules, operations and bytes per inference."""

    nodes: int
    joules: float
    operations: int
    bytes: int


@dataclass(frozen=True)
class LockedEnergy(Data):
    """Joules per inference by a pinned profile.

    Attributes:
        profile, digest: its name, and the sha256 of all that it says.
        terms: operations, bytes, launches and seconds by energy term, so that a later build is compared in pairs.
        operators: by name; `unknown` counts the nodes without a price.
    """

    profile: str
    digest: str
    joules: float
    low: float
    high: float
    terms: dict[str, float]
    operators: dict[str, LockedOperator]
    unknown: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class LockedLatency(Data):
    """Time of the input model over that of the artefact, measured in one run, and milliseconds on one machine."""

    ratio: float
    low: float
    high: float
    milliseconds: float
    machine: str
    threads: int


@dataclass(frozen=True)
class LockedAccuracy(Data):
    """The artefact's score; `noise` is how far it may be off on other data, where that is known."""

    name: str
    data: str
    value: float
    noise: float = 0.0


@dataclass(frozen=True)
class LockedModel(Data):
    """The emitted model: bytes with external data, nodes, and the sha256 of model.onnx."""

    bytes: int
    nodes: int
    sha256: str


@dataclass(frozen=True)
class Lock(Data):
    """A whole lock file.

    Attributes:
        joulec: the version that wrote it.
        model: the input's name.
        target: the execution provider.
        shape: sizes of open dimensions at which it was priced, in the spelling of `--shape`.
        choices: what was kept and dropped.
    """

    joulec: str
    model: str
    target: str
    shape: tuple[str, ...]
    artefact: LockedModel
    energy: LockedEnergy
    choices: dict[str, str] = field(default_factory=dict)
    latency: LockedLatency | None = None
    accuracy: LockedAccuracy | None = None


def read(path: Path) -> Lock:
    """The lock at `path`.

    Raises:
        InputError: no such file, or not a lock of this version.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path}: no such file; 'joulec gate DIR --baseline {path} --update' makes it")
        with path.open("rb") as stream:
            data = stream.read(MAX_LOCK + 1)
        table = tomllib.loads(data.decode("utf-8")) if len(data) <= MAX_LOCK else {}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not a TOML file: {first_line(error)}") from None
    if table.pop("version", None) != VERSION:
        raise InputError(f"{path}: not a lock file of version {VERSION}; --update writes a new one")
    return _lock(table, path)


def _lock(table: dict[str, Any], path: Path) -> Lock:
    try:
        energy = table.pop("energy")
        operators = {name: LockedOperator.from_json(one) for name, one in energy.pop("operators", {}).items()}
        energy = LockedEnergy.from_json({**energy, "operators": {}})
        found = Lock.from_json({**table, "energy": energy.to_json()})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not a lock file of joulec's: {first_line(error)}") from None
    numbers = {name: _number(value, path) for name, value in energy.terms.items()}
    kept = LockedEnergy(**{**vars(energy), "terms": numbers, "operators": operators})
    return Lock(**{**vars(found), "energy": kept})


def _number(value: Any, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e30 < value < 1e30:
        raise InputError(f"{path}: not a lock file of joulec's: {value!r:.60} is no amount")
    return float(value)


# -- writing ----------------------------------------------------------------------------------------------------------

HEAD = """\
# What this build of the model costs. Commit it; a review sees what a change does to it.
#   joulec gate DIR --baseline joulec.lock             exit 3 where a build costs more, beyond noise
#   joulec gate DIR --baseline joulec.lock --update    take the new build's costs
# Joules are predicted by the named profile, the same everywhere. Milliseconds hold for the named machine only.
"""


def text(lock: Lock) -> str:
    """The file: the same lock gives the same bytes, in an order that keeps diffs small."""
    return "\n".join([HEAD + f"version = {VERSION}", *_table("", lock)]) + "\n"


def _table(name: str, value: Data | Mapping[str, Any]) -> Iterator[str]:
    """A table's own keys, then the tables inside it; what is None is left out. A mapping is one line an entry."""
    if isinstance(value, Mapping):
        yield from ("", f"[{name}]", *(f"{_key(key)} = {_value(one)}" for key, one in sorted(value.items())))
        return
    items = {one.name: getattr(value, one.name) for one in fields(value)}
    plain = {key: one for key, one in items.items() if one is not None and not isinstance(one, Data | Mapping)}
    if name:
        yield from ("", f"[{name}]")
    yield from (f"{_key(key)} = {_value(one)}" for key, one in plain.items())
    for key, one in items.items():
        if isinstance(one, Data) or (isinstance(one, Mapping) and one):
            yield from _table(f"{name}.{_key(key)}" if name else _key(key), one)


def _key(name: str) -> str:
    return name if name.isascii() and name.replace("-", "_").isidentifier() else _string(name)


def _value(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, Data):
        return f"{{ {', '.join(f'{key} = {_value(one)}' for key, one in vars(value).items())} }}"
    if isinstance(value, str):
        return _string(value)
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def _string(value: str) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
