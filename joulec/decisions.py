"""What measurement decided, kept so that a rebuild decides the same: decisions.json, and the cache of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from joulec.backends.artefact import read_json
from joulec.backends.base import write_json
from joulec.errors import InputError
from joulec.ir.shapes import first_line
from joulec.passes import spelling
from joulec.passes._activations import ACTIVATION_PASSES
from joulec.passes._quantizers import QUANTIZERS, REFINEMENTS, quantizes
from joulec.passes.convert_float16 import ConvertFloat16
from joulec.passes.default import exact_passes
from joulec.passes.prune_blocks import PruneBlocks
from joulec.passes.prune_channels import PruneChannels
from joulec.passes.upgrade_opset import UpgradeOpset
from joulec.report.data import Cost, Data, Decision, Latency, Point, StepReport

VERSION = 1


@dataclass(frozen=True)
class Decisions(Data):
    """The choices of one build for one target.

    Attributes:
        target: the execution provider.
        excluded: spellings of exact passes left out because they made the model slower here.
        int8: spelling of the quantize pass that was kept, behind those that fit weights to the data where they were
            needed; None for float.
        decisions: what the report says about each choice.
        dropped: the steps that were made and then undone, which a rebuild does not make again.
        latency: the measurement behind them.
        orders: what the user ordered; a build with other orders cannot repeat these choices.
        reasons: pattern of `int8` that keeps an operator float -> why.
        points: sets of operators that were tried in INT8.
        doubts: what the measurements behind the choices cannot promise.
        float16: spelling of the conversion to 16-bit floats that was kept, or None.
        costs: what single operators cost in accuracy, where there was time to measure it.
        session: what session.json holds, where that was tuned.
        activations: pipelines that changed activations and were kept, spelled.
        removals: passes that removed channels or blocks which were chosen for them, spelled, in order.
    """

    target: str
    excluded: tuple[str, ...] = ()
    int8: str | None = None
    decisions: tuple[Decision, ...] = ()
    dropped: tuple[StepReport, ...] = ()
    latency: Latency | None = None
    orders: tuple[str, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)
    points: tuple[Point, ...] = ()
    doubts: tuple[str, ...] = ()
    float16: str | None = None
    session: dict[str, Any] | None = None
    activations: tuple[str, ...] = ()
    costs: tuple[Cost, ...] = ()
    removals: tuple[str, ...] = ()


def to_file(decisions: Decisions, path: Path) -> None:
    """Write decisions.json."""
    write_json(path, {"version": VERSION, **decisions.to_json()})


def from_file(path: Path, target: str, orders: tuple[str, ...] = ()) -> Decisions:
    """Read the decisions for `target`.

    Args:
        path: a decisions.json, or a directory of an artefact, or one that holds `<target>/decisions.json`.
        target: the execution provider being built for.
        orders: what the user orders of this build.

    Raises:
        InputError: no such file, or one that is not joulec's, for another target or under other orders.
    """
    places = [path / target / "decisions.json", path / "decisions.json"] if path.is_dir() else [path]
    file = next((place for place in places if place.is_file()), places[-1])
    data = read_json(file)
    if not isinstance(data, Mapping) or data.get("version") != VERSION:
        raise InputError(f"{file}: not a decisions file of version {VERSION}")
    try:
        found = Decisions.from_json({key: value for key, value in data.items() if key != "version"})
        _check_passes(found)
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(f"{file}: not a decisions file: {first_line(error)}") from error
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    if found.target != target:
        raise InputError(f"{file}: made for target '{found.target}', not '{target}'")
    if found.orders != orders:
        made, now = (" ".join(said) or "no orders" for said in (found.orders, orders))
        raise InputError(f"{file}: made with {made}, this build has {now}; give the same, or leave --decisions out")
    return found


def _check_passes(found: Decisions) -> None:
    """Passes that joulec does not choose by itself were not decided by it.

    Raises:
        InputError: a spelling that names no such pass.
    """
    known = {type(one).pass_name(): type(one) for one in (UpgradeOpset(), *exact_passes())}
    for spelled in found.excluded:
        spelling.parse(spelled, known)
    if not all(isinstance(reason, str) for reason in found.reasons.values()):
        raise TypeError("reasons must be texts")
    passes = [] if found.int8 is None else spelling.parse(found.int8, {**REFINEMENTS, **QUANTIZERS})
    if found.int8 is not None and [quantizes(one) for one in passes] != [*[False] * (len(passes) - 1), True]:
        raise InputError(f"int8: one quantize pass was expected, not '{found.int8}'")
    for spelled in found.removals:
        spelling.parse(spelled, {kind.pass_name(): kind for kind in (PruneBlocks, PruneChannels)})
    half = {ConvertFloat16.pass_name(): ConvertFloat16}
    if found.float16 is not None and len(spelling.parse(found.float16, half)) != 1:
        raise InputError(f"float16: one convert-float16 was expected, not '{found.float16}'")
    for spelled in found.activations:
        spelling.parse(spelled, ACTIVATION_PASSES)


def cached(key: str, target: str, orders: tuple[str, ...]) -> Decisions | None:
    """What an earlier build with the same content key decided, or None; a cache that is damaged is no cache."""
    try:
        return from_file(_cache_file(key, target), target, orders)
    except InputError:
        return None


def remember(key: str, decisions: Decisions) -> str | None:
    """Keep decisions for the next build with this content key; returns why that failed, or None."""
    path = _cache_file(key, decisions.target)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = path.with_suffix(f".{os.getpid()}")
        to_file(decisions, staging)
        staging.rename(path)
    except OSError as error:
        return f"decisions were not cached: {error}"
    return None


def _cache_file(key: str, target: str) -> Path:
    return cache_folder("decisions") / f"{key}-{target}.json"


def cache_folder(what: str) -> Path:
    """Where results of one kind are kept for later builds."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "joulec" / what


def decision_of(
    what: str, kept: bool, ordered: bool, reason: str, basis: str | None = None, **numbers: float | None
) -> Decision:
    """A decision with its numbers rounded to what they mean, so that a rebuild writes the same text."""
    rounded = {name: _rounded(name, value) for name, value in numbers.items()}
    return Decision(what, kept, ordered, reason, basis=basis, **rounded)


def _rounded(name: str, value: float | None) -> float | None:
    """Joules to four digits, ratios and points to four places."""
    if value is None:
        return None
    return float(f"{value:.4g}") if name.startswith("saved") else round(float(value), 4)
