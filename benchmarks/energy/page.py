"""The results as a page of tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
        rows = ["| method | " + " | ".join(TITLES.values()) + " |", "| --- " * (len(TITLES) + 1) + "|"]
        for method, one in methods.items():
            cells = " | ".join(_cell(key, one[key]) for key in TITLES)
            rows.append(f"| {method} | {cells} |")
        yield f"{counts} Errors are relative; the models' are means of absolute ones."
        yield "\n".join(rows)


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
    rows = ["| family | models, CPU s | kernels, median | models |", "| --- | --- | --- | --- |"]
    rows += [
        f"| {name} | {100 * one['mape']:.1f} % | {100 * one['op_median']:.1f} % | {one['models']} |"
        for name, one in families.items()
    ]
    return "\n".join(rows)


def _changes(changes: Mapping[str, Mapping[str, Any]]) -> str:
    rows = ["| change | detectable | direction right | error of the ratio, median |", "| --- | --- | --- | --- |"]
    rows += [
        f"| {name} | {one['detectable']} of {one['pairs']} | {one['right']} | {100 * one['error']:.1f} % |"
        for name, one in changes.items()
    ]
    return "\n".join(rows)


def _models(models: Mapping[str, Mapping[str, float]]) -> str:
    rows = ["| model | measured ms | joulec ms | off by |", "| --- | --- | --- | --- |"]
    rows += [
        f"| {name} | {1e3 * one['cpu_seconds']:.3f} | {1e3 * one['predicted']:.3f} | "
        f"{100 * (one['predicted'] / one['cpu_seconds'] - 1):+.0f} % |"
        for name, one in models.items()
    ]
    return "\n".join(rows)
