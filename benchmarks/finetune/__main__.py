"""Pruning with recovery by training: what it costs in accuracy, and how much faster the result is.

    python benchmarks/finetune                       (all cases; writes docs/finetune-benchmark.md; about 20 minutes)
    python benchmarks/finetune --cases MLP --no-write

Every model is trained, then goes through joulec's own commands: `optimize` with prune-channels says which channels go,
`finetune` trains the model under those masks with the unpruned one as its teacher, and `optimize` with
prune-channels{dead=true} removes the channels that are empty. The other way, `finetune --sparsity 0.8` prunes single
weights along a schedule. Accuracy is that of 360 test rows which neither training nor the choice of epochs has seen.
Speed is against the unpruned model behind the same exact passes, both float, under ONNX Runtime on the CPU with one
thread, batch 1, in turns in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from cases import TEST, Case, cases

import joulec
from joulec.key import cpu, versions
from joulec.passes import spelling
from joulec.passes.default import exact_passes

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "bench-finetune"
RESULTS = ROOT / "benchmarks" / "results" / "finetune.json"
PAGE = ROOT / "docs" / "finetune-benchmark.md"
SPARSITY, POINT, BAR = "0.8", 0.01, 2.5


def ordered(*commands: str) -> None:
    """One of joulec's own commands, at its own prompt."""
    done = subprocess.run([sys.executable, "-m", "joulec", *commands], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"joulec {' '.join(commands)}\n{done.stderr}")


def built(model: Path, place: Path, *passes: str) -> Path:
    """A float artefact behind the exact passes and `passes`."""
    if not place.is_dir():
        text = ",".join(["expand-einsum", spelling.spell(exact_passes()), *passes, spelling.spell(exact_passes()[-3:])])
        ordered("optimize", str(model), "-o", str(place), "--passes", text, "--no-int8")
    return place


def tuned(case: Case, place: Path, name: str, *pruning: str) -> Path:
    """The model trained on under masks."""
    out, model = place / f"{name}.keras", str(place / "float.keras")
    if not out.is_file():
        data = ["--data", str(place / "train.npz"), "--validation", str(place / "validation.npz")]
        ordered("finetune", model, "--teacher", model, *data, *pruning, *case.tuning, "-o", str(out))
    return out


def accuracy(place: Path, artefact: Path) -> float:
    """Share of the test rows that come out right."""
    with np.load(place / "test.npz") as file:
        x, y = file["image"], file["y"]
    session = joulec.load(artefact)
    (scores,) = session.run(None, {session.get_inputs()[0].name: x})
    return float((scores.argmax(-1) == y).mean())


def one(case: Case) -> dict[str, Any]:
    """Everything about one case."""
    place = case.folder(BUILD)
    model = place / "float.keras"
    whole = built(model, place / "whole")
    cut = built(model, place / "cut", case.pruning)
    recovered = tuned(case, place, "recovered", "--masks", str(cut))
    narrow = built(recovered, place / "narrow", "prune-channels{dead=true}")
    sparse = built(tuned(case, place, "sparse", "--sparsity", SPARSITY), place / "sparse")
    at_once = built(model, place / "at-once", f"prune-magnitude{{sparsity={SPARSITY}}}")
    ways = {"whole": whole, "cut": cut, "tuned": narrow, "sparse at once": at_once, "sparse tuned": sparse}
    return {
        "bar": case.bar, "removed": case.removed, "weights": {name: weights(one) for name, one in ways.items()},
        "accuracy": {name: accuracy(place, one) for name, one in ways.items()},
        "speed": {name: speed(whole, ways[name]) for name in ("cut", "tuned", "sparse tuned")},
    }  # fmt: skip


def weights(artefact: Path) -> int:
    """Bytes of the model's file."""
    return (artefact / "model.onnx").stat().st_size


def speed(whole: Path, candidate: Path) -> dict[str, float]:
    """How much faster than the whole model, with the interval of the paired timing."""
    found = joulec.measure(candidate, against=whole).to_json()
    return {name: found[name] for name in ("ratio", "low", "high", "base_ms", "candidate_ms")}


# -- the page ---------------------------------------------------------------------------------------------------------


def page(data: dict[str, Any]) -> str:
    """The results as a page of tables."""
    numbered = ", ".join(f"{name} {version}" for name, version in data["versions"].items() if version)
    head = "| model | float | channels | accuracy untrained | accuracy tuned | speed tuned | file |"
    sparse = "| model | accuracy | 80 % at once | 80 % tuned | speed |"
    found = data["models"]
    missing = [case.name for case in cases() if case.name not in found]
    return "\n\n".join([
        "# Pruning with fine-tuning",
        "Written by `python benchmarks/finetune`, which says what is measured and how.",
        f"{data['cpu']['model']}, {data['cpu']['cores']} cores; {numbered}.",
        f"Points of accuracy are on {TEST} test rows, so one row is {100 / TEST:.2f} points. Speed is against the "
        "unpruned model behind the same exact passes, both float, one thread, batch 1, with the 95 % interval.",
        f"Not measured: {', '.join(missing)}." if missing else "Cases can be renewed alone, in runs of their own.",
        "## Channels removed",
        "\n".join([head, "| --- | --- | --- | --- | --- | --- | --- |", *(_cut(n, f) for n, f in found.items())]),
        f"The bar is {BAR}x within one point, for models whose float form takes a millisecond or more; the small one "
        "is here without a bar, because overhead per node rules there. *Untrained* is the same cut before fine-tuning.",
        "## Single weights",
        "\n".join([sparse, "| --- | --- | --- | --- | --- |", *(_sparse(n, f) for n, f in found.items())]),
        "No CPU kernel skips single zeros: they save storage when compressed, not time. *At once* is `prune-magnitude` "
        "without training; *tuned* is `joulec finetune --sparsity 0.8`, which prunes along a schedule.",
    ]) + "\n"  # fmt: skip


def _cut(name: str, found: dict[str, Any]) -> str:
    accuracy, speed, size = found["accuracy"], found["speed"]["tuned"], found["weights"]
    whole, shrunk = accuracy["whole"], size["tuned"] / size["whole"] - 1
    held = "**" if found["bar"] and speed["low"] >= BAR and whole - accuracy["tuned"] <= POINT else ""
    return (
        f"| {name} | {speed['base_ms']:.2f} ms | {found['removed']} | {_points(accuracy['cut'], whole)} | "
        f"{_points(accuracy['tuned'], whole)} | {held}{_times(speed)}{held} | {shrunk:+.0%} |"
    )


def _sparse(name: str, found: dict[str, Any]) -> str:
    accuracy, whole = found["accuracy"], found["accuracy"]["whole"]
    points = [_points(accuracy[way], whole) for way in ("sparse at once", "sparse tuned")]
    return f"| {name} | {whole:.4f} | {points[0]} | {points[1]} | {_times(found['speed']['sparse tuned'])} |"


def _points(value: float, whole: float) -> str:
    return f"{100 * (value - whole):+.2f}"


def _times(speed: dict[str, float]) -> str:
    return f"{speed['ratio']:.2f}x ({speed['low']:.2f} to {speed['high']:.2f})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print, and keep the numbers with what they were measured on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", help="parts of names; all by default")
    parser.add_argument("--no-write", action="store_true", help="leave results and page as they are")
    given = parser.parse_args(arguments)
    os.environ.setdefault("PYTHONPATH", str(ROOT))
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {"models": {}}
    for case in cases():
        if given.cases and not any(part in case.name for part in given.cases):
            continue
        started = time.monotonic()
        found = one(case)
        print(f"{_cut(case.name, found)}\n{_sparse(case.name, found)}", flush=True)
        print(f"{case.name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        kept["models"][case.name] = found
        if not given.no_write:
            write(kept)


def write(kept: dict[str, Any]) -> None:
    """Results and page, with the cases that are measured so far in the order of the table."""
    found = kept["models"]
    kept["models"] = {case.name: found[case.name] for case in cases() if case.name in found}
    kept |= {"command": "python benchmarks/finetune", "cpu": cpu(), "versions": versions()}
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(kept), encoding="utf-8")
    print(f"{RESULTS.relative_to(ROOT)}, {PAGE.relative_to(ROOT)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
