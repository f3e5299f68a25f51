"""Options of the command line: their spellings, their values, and joulec.toml below the flags."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from joulec.errors import InputError
from joulec.report import units

if TYPE_CHECKING:
    from joulec.ir.sandbox import Limits

CONFIG_KEYS: Mapping[str, Any] = {
    "model": Path, "out": Path, "target": list[str], "data": str, "metric": str, "max_drop": str | float,
    "shape": str | list[str] | dict, "passes": str, "sparsity": float, "prune": bool, "int8": bool, "float16": bool,
    "keep_float": list[str], "search_budget": str | float, "tune": str,
    "decisions": Path,
    "plugin": list[str], "custom_ops": list[str], "trust_code": bool, "memory_limit": str, "time_limit": str | float,
    "threads": int, "seed": int, "device": str, "max_energy": str | float, "remeasure": bool,
    "tensorboard": Path,
}  # fmt: skip
"""The keys of joulec.toml, which are the options of `optimize`, and their types."""

CONFIG_PATHS = frozenset({"data", "metric", "custom_ops"})

RENAMED = {"plugin": "plugins"}
"""Options that the Python interface spells otherwise."""

MAX_THREADS = 1024
"""The same as in session.json."""

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(|[KMGT]i?B?|B)", re.IGNORECASE)
_TIME = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(|ms|s|m|min|h)", re.IGNORECASE)
_SECONDS = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def merged(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments for `joulec.optimize`: what joulec.toml says, overruled by the flags that were given.

    Args:
        flags: option name -> value; None, False for a switch, and an empty list mean "not given".

    Raises:
        InputError: the configuration is wrong, or no model or output is named anywhere.
    """
    given = {name: value for name, value in flags.items() if _is_given(name, value)}
    config = given.pop("config", None)
    chosen = {**({} if config is None else _from_config(config)), **given}
    if "model" not in chosen:
        raise InputError("no model: write 'joulec optimize MODEL -o DIR', or model = \"...\" in --config joulec.toml")
    if "out" not in chosen:
        raise InputError('no place for the artefact: add -o DIR, or out = "..." in --config joulec.toml')
    return _values(chosen)


def _is_given(name: str, value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value)
    return value is not None and (value is not False or name in ("int8", "float16"))


def _from_config(path: Path) -> dict[str, Any]:
    from joulec.config import load_config

    found = load_config(path, CONFIG_KEYS, CONFIG_PATHS)
    if "plugin" in found:  # an entry point's name is no path
        found["plugin"] = [str(path.parent / p) if p.endswith(".py") else p for p in found["plugin"]]
    return found


def _values(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The same options with their texts parsed."""
    result = {RENAMED.get(name, name): value for name, value in chosen.items()}
    _require_sane(result)
    result["limits"] = limits(result.pop("memory_limit", None), result.pop("time_limit", None))
    if "max_drop" in result:
        result["max_drop"] = drop(result["max_drop"])
    if "search_budget" in result:
        result["search_budget"] = duration(str(result["search_budget"]), "--search-budget", zero=True)
    if result.get("tune") == "off":
        del result["tune"]
    if "max_energy" in result:
        result["max_energy"] = _joules(result["max_energy"])
    if "shape" in result:
        result["shape"] = shapes(result["shape"])
    return result


def _joules(given: str | float) -> float:
    """`--max-energy`: a text with its unit, or in joulec.toml a number of joules."""
    from joulec.cli_quantities import joules

    return joules(given if isinstance(given, str) else f"{given}J", "--max-energy")


def _require_sane(chosen: Mapping[str, Any]) -> None:
    """The bounds that flags state for themselves; joulec.toml has none."""
    if not 1 <= chosen.get("threads", 1) <= MAX_THREADS:
        raise InputError(f"--threads {chosen['threads']}: write a number from 1 to {MAX_THREADS}")
    if chosen.get("seed", 0) < 0:
        raise InputError(f"--seed {chosen['seed']}: write a number from 0")


def shapes(given: Any) -> dict[str, int | tuple[int, ...]] | None:
    """`--shape`, from its texts or from a table in joulec.toml; None where there is none."""
    from joulec.shapespec import parse_shapes, shapes_from_table

    if not given:
        return None
    return shapes_from_table(given) if isinstance(given, Mapping) else parse_shapes(given)


def drop(given: str | float) -> float | None:
    """`--max-drop`: `0.01` or `1%` in absolute points of the metric, `none` for no budget.

    Raises:
        InputError: not a number, below zero, or not finite.
    """
    text = str(given).strip().lower()
    if text == "none":
        return None
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise InputError(f"--max-drop {units.safe(given)}: write 0.01, 1% or none")
    return value


def limits(memory: str | None, time: str | float | None) -> Limits:
    """What running a model may cost; what is not given keeps its default.

    Raises:
        InputError: `memory` is no size like `8GiB`, or `time` no duration like `600s`.
    """
    from joulec.ir.sandbox import Limits

    usual = Limits.default()
    return Limits(
        usual.memory_bytes if memory is None else memory_size(memory),
        usual.seconds if time is None else duration(str(time)),
    )


def memory_size(text: str) -> int:
    """`8GiB`, `512MB` or `1000000` in bytes; 1 GB is 10^9 bytes, 1 GiB is 2^30, and G alone means GiB."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or float(match[1]) <= 0:
        raise InputError(f"--memory-limit {units.safe(text)}: write a size such as 8GiB or 512MB")
    unit = match[2].lower()
    base = 1000 if unit.endswith("b") and "i" not in unit else 1024
    return int(float(match[1]) * base ** " kmgt".index(unit[0] if unit and unit != "b" else " "))


def duration(text: str, option: str = "--time-limit", zero: bool = False) -> float:
    """`600s`, `10m`, `1h` or `90` in seconds; none at all only where that means something."""
    match = _TIME.fullmatch(text.strip())
    if match is None or (float(match[1]) <= 0 and not zero):
        raise InputError(f"{option} {units.safe(text)}: write a duration such as 600s, 10m or 1h")
    return float(match[1]) * _SECONDS[match[2].lower()]


_ORDERS, _JUDGING, _SAFETY, _MACHINE = "Orders", "Accuracy and data", "Untrusted models", "Build and machine"


def _option(*names: str, help: str, panel: str | None = None, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=more.pop("show_default", False), **more)


Target = Annotated[
    list[str] | None,
    _option(
        "--target",
        help="cpu, cuda or tensorrt; repeatable: several artefacts in one run. Default: cpu.",
        metavar="NAME",
    ),
]
OneTarget = Annotated[
    str | None,
    _option(
        "--target",
        help="Whose kernels run it: cpu, cuda or tensorrt. Default: an artefact's own, else cpu.",
        metavar="NAME",
    ),
]
Out = Annotated[
    Path | None,
    _option("--out", "-o", help="The artefact's directory; replaced as a whole when everything held.", metavar="DIR"),
]
BisectTarget = Annotated[
    str | None,
    _option("--target", help="Whose form quantize takes: cpu, cuda or tensorrt. Default: none.", metavar="NAME"),
]
Minimal = Annotated[
    Path | None,
    _option(
        "--out", "-o", metavar="FILE.onnx",
        help="Where a small failing model goes, its feed beside it. Default: IN-minimal.onnx in this folder.",
    ),
]  # fmt: skip
Data = Annotated[
    str | None,
    _option(
        "--data", panel=_JUDGING, metavar="PATH",
        help="Feeds: a folder of .npz files, one .npz, FILE.py:FUNCTION, or the word random. Unlocks INT8.",
    ),
]  # fmt: skip
Metric = Annotated[
    str | None,
    _option(
        "--metric", panel=_JUDGING, metavar="FILE.py:FUNCTION",
        help="metric(infer) -> float, higher is better. Without it, fidelity to the input model is judged.",
    ),
]  # fmt: skip
MaxDrop = Annotated[
    str | None,
    _option(
        "--max-drop", panel=_JUDGING, metavar="DROP",
        help="Accuracy budget in absolute points: 0.01, 1% or none. Given, it binds your orders too. Default: 0.01.",
    ),
]  # fmt: skip
MaxEnergy = Annotated[
    str | None,
    _option(
        "--max-energy", panel=_JUDGING, metavar="E",
        help="The most that an inference may be predicted to spend, e.g. 2.5mJ; exit 3 and nothing written beyond it.",
    ),
]  # fmt: skip
Shape = Annotated[
    list[str] | None,
    _option(
        "--shape", metavar="SPEC",
        help="Open dimensions: batch=8,seq=128, an input's: x=1x3x320x320, a range: batch=1:8:32. Others count as 1.",
    ),
]  # fmt: skip
Passes = Annotated[
    str | None,
    _option("--passes", panel=_ORDERS, metavar="TEXT", help="Run exactly these passes instead of the default ones."),
]
Sparsity = Annotated[
    float | None,
    _option(
        "--sparsity",
        panel=_ORDERS,
        metavar="S",
        help="Prune this share of the weights, 0 to 1: by magnitude, with --data by magnitude times input.",
        min=0,
        max=1,
    ),
]
Prune = Annotated[
    bool,
    _option(
        "--prune", panel=_ORDERS,
        help="Let joulec remove channels and residual blocks too, where that spends --max-drop better than INT8 alone.",
    ),
]  # fmt: skip
Int8 = Annotated[
    bool | None,
    _option(
        "--int8/--no-int8", panel=_ORDERS, help="Insist on INT8, or forbid it. Neither: joulec measures and decides."
    ),
]
Float16 = Annotated[
    bool | None,
    _option(
        "--float16/--no-float16", panel=_ORDERS,
        help="Insist on float16 for cuda and tensorrt, or forbid it. Neither: joulec emulates it and decides.",
    ),
]
KeepFloat = Annotated[
    list[str] | None,
    _option(
        "--keep-float", panel=_ORDERS, metavar="PATTERN",
        help="Never quantize these: a node's name or operator type, * and ? as in file names; repeatable.",
    ),
]  # fmt: skip
SearchBudget = Annotated[
    str | None,
    _option(
        "--search-budget", panel=_ORDERS, metavar="TIME",
        help="How long to look for the operators that are worth quantizing. Default: 2m.",
    ),
]  # fmt: skip
Tune = Annotated[
    str | None,
    _option(
        "--tune", panel=_ORDERS, metavar="GOAL",
        help="Choose threads, spinning, memory arena, packing and sizes (--shape) of the session by measurement, for "
        "latency or for energy (CPU seconds, rests included). Default: off, one thread that does not spin.",
    ),
]  # fmt: skip
Config = Annotated[
    Path | None,
    _option("--config", metavar="FILE", help="joulec.toml: keys are option names; flags win.", panel=_MACHINE),
]
Decisions = Annotated[
    Path | None,
    _option(
        "--decisions",
        metavar="FILE",
        help="Repeat the decisions of an earlier build instead of measuring.",
        panel=_MACHINE,
    ),
]
Remeasure = Annotated[
    bool, _option("--remeasure", help="Build and measure again, whatever was decided earlier.", panel=_MACHINE)
]
Json = Annotated[bool, _option("--json", help="Print the report as JSON, nothing else.")]
Dump = Annotated[
    Path | None,
    _option("--dump", metavar="DIR", panel=_MACHINE, help="Write the model after every pass that changes it."),
]
TensorBoard = Annotated[
    Path | None,
    _option(
        "--tensorboard", metavar="DIR", panel=_MACHINE,
        help="Add scalars to this run of TensorBoard: joules and nodes pass by pass, input beside artefact.",
    ),
]  # fmt: skip
Plugin = Annotated[
    list[str] | None,
    _option(
        "--plugin",
        metavar="FILE",
        panel=_ORDERS,
        help="A Python file (or entry point) with passes of your own; repeatable.",
    ),
]
CustomOps = Annotated[
    list[Path] | None,
    _option(
        "--custom-ops",
        metavar="LIB",
        panel=_SAFETY,
        help="A library with operators of your own, loaded and run; repeatable.",
    ),
]
TrustCode = Annotated[
    bool,
    _option(
        "--trust-code", panel=_SAFETY, help="Allow code inside the model: Lambda layers, Python and file operators."
    ),
]
MemoryLimit = Annotated[
    str | None,
    _option("--memory-limit", metavar="SIZE", panel=_SAFETY, help="Memory for running the model, e.g. 8GiB."),
]
TimeLimit = Annotated[
    str | None,
    _option("--time-limit", metavar="TIME", panel=_SAFETY, help="Longest single run of the model, e.g. 600s."),
]
Threads = Annotated[
    int | None,
    _option(
        "--threads",
        metavar="N",
        min=1,
        max=MAX_THREADS,
        panel=_MACHINE,
        help="Threads to measure with and to emit for. Default: 1.",
    ),
]
Seed = Annotated[
    int | None,
    _option("--seed", metavar="N", min=0, panel=_MACHINE, help="Seed of random and synthetic data. Default: 0."),
]
Device = Annotated[
    str | None,
    _option(
        "--device", metavar="PROFILE", panel=_MACHINE, help="Device profile that prices nodes: a name or a .toml file."
    ),
]
