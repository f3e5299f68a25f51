"""The results as a page of tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

OURS = "joulec"
TARGETS: Mapping[str, tuple[str, float]] = {
    "mape": ("at most", 0.15), "op_median": ("at most", 0.20), "tau": ("at least", 0.85), "signs": ("at least", 0.90),
    "coverage": ("at least", 0.90),
}  # fmt: skip
TITLES = {
    "mape": "models, CPU s", "latency_mape": "models, latency", "op_median": "kernels, median", "tau": "Kendall's tau",
    "signs": "signs", "coverage": "in the interval",
    "interval": "interval score",
}  # fmt: skip


def page(kept: Mapping[str, Any]) -> str:
    """The whole page."""
    return "\n\n".join(_parts(kept)) + "\n"


def _parts(kept: Mapping[str, Any]) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in kept["versions"].items() if version)
    yield "# How good the energy model is"
    yield "Written by `python benchmarks/energy`; `benchmarks/energy` says what is measured and how."
    yield f"{kept['cpu']['model']}, {kept['cpu']['cores']} cores, one thread used; {versions}."
    yield (
        "**This machine has no energy counter.** What is scored is time: CPU seconds and latency per inference. Joules "
        "are that time and the profile's powers; to score them against the same powers would prove nothing."
    )
    yield (
        f"{kept['networks']} networks, each as float32 and as INT8 at batch 1 and 16. joulec predicts with what "
        f"`joulec calibrate-device` fits to {kept['rungs']} microbenchmarks, none of which is a network: every model "
        "is left out. So its figures are the same whether a model or a family is left out. The other methods learn "
        "one rate from the models that they may see. `joulec, taught` fits the other models beside the microbenchmarks."
    )
    yield (
        "No coefficient was fitted to a network, but what a kernel's time is a sum of was worked out with the times of "
        "these networks' kernels in view; on others it may do worse. Microbenchmarks and networks were timed in one "
        "run of half an hour, at the highest priority; other work ran at the lowest, and took caches and memory."
    )
    yield from _tables(kept["scores"])
    yield (
        f"An interval is the prediction divided by, and times, {kept['spread']:.2f}; the unfitted roofline's, 3. Their "
        "score is the width of the 95 % interval of log times, and 40 times what lies beyond it; smaller is better."
    )
    yield "\n".join(_verdicts(kept["scores"]["left out: family"][OURS]))
    yield "## By family"
    yield _families(kept["families"])
    yield "## Changes"
    yield (
        "Direction of the change that an optimization makes, where the paired measurement shows one (its 95 % interval "
        "excludes no change, and it is beyond 2 %). What joulec's exact passes do to these exports, ONNX Runtime does "
        "by itself when it loads them, so there is no change to foresee."
    )
    yield _changes(kept["changes"])
    yield "## Models"
    yield _models(kept["models"])


def _tables(scores: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Iterator[str]:
    for fold, methods in scores.items():
        yield f"## Left out: one {fold.rpartition(' ')[2]} at a time"
        first = next(iter(methods.values()))
        counts = f"{first['models']} models, {first['kernels']} kernels of at least 10 us, {first['changes']} changes."
        rows = ((method, *(_cell(key, one[key]) for key in TITLES)) for method, one in methods.items())
        yield f"{counts} Errors are relative; the models' are means of absolute ones."
        yield _table(("method", *TITLES.values()), rows)


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if key in ("tau", "interval") else f"{100 * value:.1f} %"


def _verdicts(ours: Mapping[str, float]) -> Iterator[str]:
    for key, (bound, wanted) in TARGETS.items():
        met = ours[key] <= wanted if bound == "at most" else ours[key] >= wanted
        said = "met" if met else "**missed**"
        yield f"- {TITLES[key]}: {_cell(key, ours[key])}; the aim is {bound} {_cell(key, wanted)}: {said}."


def _families(families: Mapping[str, Mapping[str, Any]]) -> str:
    return _table(
        ("family", "models, CPU s", "kernels, median", "models"),
        (
            (name, f"{100 * one['mape']:.1f} %", f"{100 * one['op_median']:.1f} %", one["models"])
            for name, one in families.items()
        ),
    )


def _changes(changes: Mapping[str, Mapping[str, Any]]) -> str:
    return _table(
        ("change", "detectable", "direction right", "error of the ratio, median"),
        (
            (name, f"{one['detectable']} of {one['pairs']}", one["right"], f"{100 * one['error']:.1f} %")
            for name, one in changes.items()
        ),
    )


def _models(models: Mapping[str, Mapping[str, float]]) -> str:
    def cells(name: str, measured: float, predicted: float) -> tuple[str, ...]:
        return name, f"{1e3 * measured:.3f}", f"{1e3 * predicted:.3f}", f"{100 * (predicted / measured - 1):+.0f} %"

    rows = (cells(name, one["cpu_seconds"], one["predicted"]) for name, one in models.items())
    return _table(("model", "measured ms", "joulec ms", "off by"), rows)


def _table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [titles, ("---",) * len(titles), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
