"""How good `joulec estimate` is, beside simpler models, on networks that had no part in its calibration.

    python benchmarks/energy                    (scores the times in benchmarks/results/energy-times.json; two minutes)
    python benchmarks/energy --collect          (takes those times anew first, on an idle machine; half an hour)
    python benchmarks/energy --collect bert_mini --no-write

Eighteen networks, as exported, after joulec's exact passes, quantized, quantized in part, and with half of their
channels, at batch 1 and 16, run under ONNX Runtime on the CPU with one thread. Collected are the latency and CPU
seconds of each (fresh sessions, in turns with what it is compared with, the quietest session counts), its kernels'
times by ONNX Runtime's profiler, and the times of the microbenchmarks that `joulec calibrate-device` runs.

Predictions are those that `joulec estimate` would print: the profile that `joulec calibrate-device` fits to the
microbenchmarks, and no model. Baselines: time in proportion to multiply-adds or to bytes, at the rate of the models
that are not left out; and joulec's own roofline of the generic CPU, with nothing fitted.

There is no energy counter here, so what is scored is time, and said to be.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import collect
import numpy as np
from page import OURS, page
from predict import (
    SCORED,
    Joulec,
    Predicted,
    Timed,
    as_told,
    in_proportion,
    roofline,
    timed_runs,
    with_profile,
)
from score import detectable, kernel_errors, left_out, score, sign_hits
from zoo import ROOT, Run

from joulec.key import cpu, versions

TIMES = ROOT / "benchmarks" / "results" / "energy-times.json"
RESULTS = ROOT / "benchmarks" / "results" / "energy.json"
PAGE = ROOT / "docs" / "energy-benchmark.md"
FOLDS = {"left out: model": lambda run: run.network, "left out: family": lambda run: run.family}

Pairs = Mapping[tuple[Run, Run], Mapping[str, float]]


def measured_pairs(data: Mapping[str, Any], runs: Sequence[Run]) -> Pairs:
    """(from, to) -> the measured ratio."""
    by_name = {run.name: run for run in runs}
    return {
        (by_name[f"{key} {base}"], by_name[f"{key} {candidate}"]): pair
        for key, entry in data["networks"].items()
        for change, pair in entry["pairs"].items()
        for base, _, candidate in [change.partition(" -> ")]
    }


def predictions(data: Mapping[str, Any], timed: Sequence[Timed]) -> tuple[Joulec, dict[str, Any]]:
    """Every method's predictions, fold by fold."""
    ours, runs = Joulec(data), [one.run for one in timed]
    spread = None if ours.profile.calibration is None else ours.profile.calibration.spread
    plain = with_profile(ours.profile, runs)
    told = {run: as_told(one, spread) for run, one in plain.items()}
    unfitted = {run: as_told(one, 3.0) for run, one in with_profile(roofline(), runs).items()}

    found = {}
    for fold, group in FOLDS.items():
        found[fold] = {
            OURS: told, "joulec, taught": left_out(timed, group, lambda seen: ours.taught(plain, seen)),
            "multiply-adds": left_out(timed, group, lambda seen: in_proportion("flops", plain, seen)),
            "bytes": left_out(timed, group, lambda seen: in_proportion("bytes", plain, seen)),
            "roofline, unfitted": unfitted,
        }  # fmt: skip
    return ours, found


def evaluate(data: Mapping[str, Any]) -> dict[str, Any]:
    """All figures of the page."""
    timed = timed_runs(data)
    pairs = measured_pairs(data, [one.run for one in timed])
    ours, methods = predictions(data, timed)
    told = methods["left out: family"][OURS]
    scores = {
        fold: {name: score(timed, predicted, pairs).to_json() for name, predicted in found.items()}
        for fold, found in methods.items()
    }
    made = ours.profile.calibration
    return {
        "command": "python benchmarks/energy", "cpu": data["cpu"], "versions": data["versions"],
        "networks": len({one.run.network for one in timed}), "rungs": len(data["rungs"]),
        "spread": None if made is None else made.spread, "scores": scores,
        "families": by_family(timed, told, pairs), "changes": by_change(told, pairs),
        "models": {
            one.run.name: {"cpu_seconds": one.cpu_seconds, "predicted": told[one.run].seconds}
            for one in timed
            if one.run.variant in SCORED
        },
    }  # fmt: skip


def by_family(timed: Sequence[Timed], told: Mapping[Run, Predicted], pairs: Pairs) -> dict[str, Any]:
    """joulec's errors family by family."""
    found = {}
    for family in dict.fromkeys(one.run.family for one in timed):
        mine = [one for one in timed if one.run.family == family]
        errors = [abs(told[m.run].seconds / m.cpu_seconds - 1) for m in mine if m.run.variant in SCORED]
        kernels = float(np.median(np.abs(kernel_errors(mine, told))))
        found[family] = {"mape": float(np.mean(errors)), "op_median": kernels, "models": len(errors)}
    return found


def by_change(told: Mapping[Run, Predicted], pairs: Pairs) -> dict[str, Any]:
    """How well joulec foresees each kind of change."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(f"{base.variant} -> {to.variant}" for base, to in pairs):
        mine = {(a, b): pair for (a, b), pair in pairs.items() if f"{a.variant} -> {b.variant}" == name}
        ratios = [told[a].seconds / told[b].seconds / pair["ratio"] for (a, b), pair in mine.items()]
        found[name] = {
            "pairs": len(mine), "detectable": sum(map(detectable, mine.values())),
            "right": sum(sign_hits(told, mine)), "error": float(np.median(np.abs(np.array(ratios) - 1))),
        }  # fmt: skip
    return found


def _summary(scores: Mapping[str, Mapping[str, Any]]) -> str:
    lines = []
    for fold, methods in scores.items():
        lines.append(f"\n{fold:22} {'models':>8} {'kernels':>8} {'tau':>6} {'signs':>7} {'covered':>8}")
        for name, one in methods.items():
            covered = "" if one["coverage"] is None else f"{100 * one['coverage']:.0f} %"
            kernels = "" if one["op_median"] is None else f"{100 * one['op_median']:.1f}%"
            lines.append(
                f"  {name:20} {100 * one['mape']:7.1f}% {kernels:>8} {one['tau']:6.2f} "
                f"{100 * one['signs']:6.0f}% {covered:>8}"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Collect where asked, score, print, and keep the figures with what they were measured on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", nargs="*", metavar="NETWORK", help="take the times anew, of all or of these")
    parser.add_argument("--times", type=Path, default=TIMES, help="where the times are kept")
    parser.add_argument("--no-write", action="store_true", help="leave results and page as they are")
    given = parser.parse_args(arguments)
    if given.collect is not None:
        collect.collect(given.times, given.collect, {"cpu": cpu(), "versions": versions()})
    found = evaluate(json.loads(given.times.read_text(encoding="utf-8")))
    print(_summary(found["scores"]))
    if not given.no_write:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(page(found), encoding="utf-8")
        print(f"\n{RESULTS.relative_to(ROOT)}\n{PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
