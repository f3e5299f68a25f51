"""Trained networks pruned without further training, and architectures cut to 70 % of their width.

    make bench-pruning                          (everything; trains first; writes docs/pruning-benchmark.md)
    python benchmarks/pruning --cases cnn mlp --no-write

Trained networks are pruned on their training rows by joulec's command line: half of the weights by magnitude, of each
tensor or of all together, with and without the correction of those that stay; and with `--max-drop 0.01` (once 0.003),
judged by the validation rows, channels, residual blocks and then channels, and with `--prune` whatever spends that one
point best, INT8 included. torch-pruning gets the same network and the same point. What the tables call accuracy is that
on test rows that nothing of this saw.
Architectures have random weights: 30 % of the channels of every group go, and what counts is that the model is valid,
its outputs have their shapes, and operations and time fall. Times are paired, in turns in one process, one thread,
batch 1; above 1 is faster than the model that came in.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "int8"))
from judge import speed
from peers import Peer
from simplify_models import sources

import joulec
from joulec.key import cpu, versions

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "bench-pruning"
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "pruning.json", ROOT / "docs" / "pruning-benchmark.md"
TRAINED = ("cnn", "residual", "separable", "mlp", "transformer", "cnn small", "residual memorized")
ARCHITECTURES = (
    "keras ResNet50", "keras MobileNetV2", "keras EfficientNetV2B0", "light densenet121", "light inception v2",
    "light shufflenet",
)  # fmt: skip
FREE = ("--max-drop", "none")
POINT = ("--max-drop", "0.01", "--search-budget", "90s")
THIRD = ("--max-drop", "0.003", "--search-budget", "90s")
WAYS = {
    "half of the weights": ("--passes", "prune-magnitude{sparsity=0.5,scope=tensor,correct=false}", *FREE),
    "half, corrected": ("--passes", "prune-magnitude{sparsity=0.5,scope=tensor}", *FREE),
    "half of all, corrected": ("--passes", "prune-magnitude{sparsity=0.5}", *FREE),
    "half of all by wanda, corrected": ("--passes", "prune-magnitude{sparsity=0.5,score=wanda}", *FREE),
    "channels for 0.3 points": ("--passes", "prune-channels", *THIRD),
    "channels": ("--passes", "prune-channels", *POINT),
    "blocks, channels": ("--passes", "prune-blocks,prune-channels", *POINT),
    "one budget": ("--prune", *POINT),
}
"""What the tables call it -> what joulec is ordered. The first, half of each tensor, is what other tools do."""
HALVES, SPENDING = list(WAYS)[:4], list(WAYS)[4:]
"""Ways that zero weights, and ways that spend a budget of accuracy; only these are timed."""
DEEP = ("residual", "separable", "transformer", "residual memorized")
"""Networks that have residual blocks."""
TORCH = "torch-pruning"
PEER = Peer(
    TORCH, ("torch-pruning==1.6.1", "torch==2.13.0", "onnx2torch==1.5.15", "onnx", "onnxscript"), HERE / "cut.py"
)  # fmt: skip
PEER_SECONDS = 600.0

KEPT = "Results are kept from run to run; some were renewed alone, beside other work, which ratios in turns stand."
"""Of what the page shows not everything must come from one run."""

SAID = ("channels", "blocks", "budget")
"""Decisions that are kept with the numbers."""

METRIC = '''"""Share of the validation rows whose largest score is the right one."""

from pathlib import Path

import numpy as np

with np.load(Path(__file__).with_name("validation.npz"), allow_pickle=False) as file:
    IMAGES, LABELS = file["image"], file["y"]


def accuracy(infer):
    scores = next(iter(infer({"image": IMAGES}).values()))
    return float((scores.argmax(axis=-1) == LABELS).mean())
'''


def slug(name: str) -> str:
    """A folder's name."""
    return name.replace(" ", "-").replace(",", "")


def trained(name: str, ways: Sequence[str], known: Mapping[str, Any]) -> dict[str, Any]:
    """One network, pruned in these ways; what is known of the others stays."""
    place = BUILD / slug(name)
    if not (place / "done").is_file():
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, str(HERE / "train.py"), name, str(place)], check=True, stdout=sys.stderr)
        (place / "metric.py").write_text(METRIC, encoding="utf-8")
        onnx.save(joulec.simplify(place / "source.keras"), place / "float.onnx")
        (place / "done").touch()
    made: dict[str, Any] = {}
    for way in (way for way in ways if way != "blocks, channels" or name in DEEP):
        started = time.monotonic()
        made[way] = by_peer(place) if way == TORCH else pruned(place, way, WAYS[way])
        print(f"  {name:12} {way:20} {time.monotonic() - started:4.0f} s  {made[way]}", flush=True)
    timed(place, name, made)
    found = {**known.get("ways", {}), **made}
    every = {way: found[way] for way in (*WAYS, TORCH) if way in found}
    return {"accuracy": tested(place, place / "float.onnx"), "ways": every}


def by_peer(place: Path) -> dict[str, Any]:
    """The same network by torch-pruning, behind joulec's exact passes as the float model is."""
    out = place / slug(TORCH) / "model.onnx"
    made = PEER.made(place / "float.onnx", place / "calibration.npz", out.with_name("raw.onnx"), PEER_SECONDS)
    if "error" not in made:
        onnx.save(joulec.simplify(out.with_name("raw.onnx")), out)
        made["accuracy"] = tested(place, out)
    return made


def timed(place: Path, name: str, made: dict[str, Any]) -> None:
    """Add the times of what was made of one model, in turns, to what is known of it."""
    done = [way for way, one in made.items() if "error" not in one and way not in HALVES]
    models = [place / slug(way) / "model.onnx" for way in done]
    for way, one in zip(done, speed(place, models) if done else [], strict=True):
        made[way] |= {key: round(one[key], 4) for key in ("ratio", "low", "high", "ms")}
        print(f"  {name:24} {way:20} {_speed(made[way])}  {made[way]['ms']:.2f} ms", flush=True)


def pruned(place: Path, way: str, orders: Sequence[str]) -> dict[str, Any]:
    """One order carried out by the command line, and the result's accuracy."""
    out = place / slug(way)
    command = [
        "optimize", str(place / "float.onnx"), "-o", str(out), *orders, "--remeasure",
        "--data", str(place / "calibration.npz"), "--metric", f"{place / 'metric.py'}:accuracy",
    ]  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "joulec", *command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return {"error": done.stderr.strip().splitlines()[-1][:200]}
    report = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["report"]
    said = [f"{one['what']}: {one['reason']}" for one in report["decisions"] if one["what"].startswith(SAID)]
    return {"accuracy": tested(place, out / "model.onnx"), "validation_drop": report["accuracy"]["drop"], "said": said}


def tested(place: Path, model: Path) -> float:
    """Accuracy on the test rows, in percent."""
    with np.load(place / "test.npz", allow_pickle=False) as file:
        images, labels = file["image"], file["y"]
    scores = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"]).run(None, {"image": images})[0]
    return round(100 * float((scores.argmax(axis=-1) == labels).mean()), 2)


def architecture(name: str) -> dict[str, Any]:
    """One architecture, 30 % of the channels of every group removed."""
    source = next(source for source in sources() if source.name == name)
    place = BUILD / slug(name)
    place.mkdir(parents=True, exist_ok=True)
    (place / "float.onnx").write_bytes(source.make().read_bytes())
    graph = onnx.load(place / "float.onnx").graph
    held = {one.name for one in graph.initializer}
    (image,) = (value for value in graph.input if value.name not in held)  # old models list their weights as inputs
    rows = np.random.default_rng(0).uniform(-1, 1, (4, *_row(image))).astype(np.float32)
    np.savez(place / "calibration.npz", **{image.name: rows})
    result = joulec.optimize(place / "float.onnx", place / "cut", passes="prune-channels{ratio=0.3}", max_drop=None)
    report = result.reports["cpu"]
    step = next(step for step in report.steps if step.spelling.startswith("prune-channels"))
    onnx.checker.check_model(str(place / "cut" / "model.onnx"), full_check=True)
    before, after = joulec.estimate(place / "float.onnx"), joulec.estimate(place / "cut" / "model.onnx")
    operations = sum(node.flops or 0 for node in before.nodes), sum(node.flops or 0 for node in after.nodes)
    found = {"said": step.notes[0], "operations": operations[1] / operations[0], "refusals": step.refusal_count}
    print(f"  {name:24} {found}", flush=True)
    timed(place, name, {"cut": found})
    return found


def _row(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim)[1:]


# -- the page ---------------------------------------------------------------------------------------------------------


def page(data: dict[str, Any]) -> str:
    """The results as tables."""
    missing = [name for name in TRAINED if name not in data["trained"]]
    numbered = ", ".join(f"{name} {version}" for name, version in data["versions"].items() if version)
    parts = [
        "# Pruning without training",
        "Written by `make bench-pruning`; `benchmarks/pruning` says what is measured and how.",
        f"{data['cpu']['model']}, {data['cpu']['cores']} cores; {numbered}.",
        "Accuracy is that on 360 test images that neither training nor pruning saw, in percent; speed is the time of "
        "the model that came in over that of the result, one thread, batch 1.",
        "## Half of the weights",
        _halves_table(data["trained"]),
        "No CPU kernel skips zeros: they save storage when compressed, and no time.",
        "## One point for speed",
        "Each column is accuracy and speed of the smallest model that loses at most one point on the validation rows. "
        "The validation rows choose, so that other rows may lose more than the budget; a third of it leaves room. "
        "*One budget* may also spend it on INT8; the others are float. *residual memorized* is *residual* trained on "
        "the images as they are until it knew them by heart; all other deep networks saw them moved and turned. What "
        "has been memorized gives way to any change, and closed forms fitted to the images that it knows do not help.",
        _spending_table(data["trained"]),
        f"Not measured: {', '.join(missing)}. {KEPT}" if missing else KEPT,
        "## Architectures, 30 % of the channels of every group removed",
        "Random weights: valid, and smaller; accuracy has no meaning here.",
        _architecture_table(data["architectures"]),
        "## Peers",
        "torch-pruning prunes torch modules, so the networks reach it from ONNX by onnx2torch. It has one ratio for "
        "all groups, of which the best in steps of 0.1 is taken, and no correction beside training, which it is made "
        "for: without, a tenth of the channels chosen by magnitude can cost most of the accuracy, in joulec too "
        "(`prune-channels{ratio=0.1,correct=false}`). TensorFlow's Model Optimization Toolkit (0.8.1, with tf_keras "
        "2.21) refuses models of Keras 3; what it prunes by, magnitude, is the first column of the first table. "
        "onnxsim has no pruning of weights: what it removes are operators ([simplify.md](simplify.md)).",
    ]
    return "\n\n".join(parts) + "\n"


def _halves_table(found: dict[str, Any]) -> str:
    rows = [f"| network | float | {' | '.join(HALVES)} |", f"| --- {'| --- ' * (len(HALVES) + 1)}|"]
    for name, one in found.items():
        cells = [str(way.get("accuracy", way.get("error"))) for way in _of(one, HALVES)]
        rows.append(f"| {name} | {one['accuracy']} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _spending_table(found: dict[str, Any]) -> str:
    columns = [*SPENDING, TORCH]
    rows = [f"| network | float | {' | '.join(columns)} |", f"| --- {'| --- ' * (len(columns) + 1)}|"]
    for name, one in found.items():
        cells = [_spent(way) for way in _of(one, columns)]
        rows.append(f"| {name} | {one['accuracy']}, {_whole(one)} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _whole(one: dict[str, Any]) -> str:
    """The time of the model that came in, in the run of the first result."""
    found = next((way for way in one["ways"].values() if "ratio" in way), None)
    return "-" if found is None else f"{found['ratio'] * found['ms']:.2f} ms"


def _spent(way: dict[str, Any]) -> str:
    return f"{way['accuracy']}, {_speed(way)}" if "accuracy" in way else str(way["error"])


def _of(one: dict[str, Any], ways: Sequence[str]) -> list[dict[str, Any]]:
    return [one["ways"].get(way, {"error": "-"}) for way in ways]


def _architecture_table(found: dict[str, Any]) -> str:
    rows = ["| architecture | operations left | speed | |", "| --- | --- | --- | --- |"]
    for name, one in found.items():
        said = one.get("error", one.get("said"))
        operations = f"{100 * one['operations']:.0f} %" if "operations" in one else ""
        rows.append(f"| {name} | {operations} | {_speed(one)} | {said} |")
    return "\n".join(rows)


def _speed(one: dict[str, Any]) -> str:
    return f"{one['ratio']:.2f}x ({one['low']:.2f} to {one['high']:.2f})" if "ratio" in one else "-"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print, and keep the numbers with what they were measured on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=[*TRAINED, *ARCHITECTURES], help="all by default")
    parser.add_argument("--ways", nargs="+", choices=[*WAYS, TORCH], help="of pruning trained networks; all by default")
    parser.add_argument("--only-time", action="store_true", help="time again what an earlier run made")
    parser.add_argument("--no-peers", action="store_true", help="install no torch-pruning")
    parser.add_argument("--no-write", action="store_true", help="leave results and page as they are")
    given = parser.parse_args(arguments)
    chosen = given.cases or [*TRAINED, *ARCHITECTURES]
    ways = [way for way in given.ways or (*WAYS, TORCH) if way != TORCH or not given.no_peers]
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    if TORCH in ways and not given.only_time:
        installed()
    for kind, names in (("trained", TRAINED), ("architectures", ARCHITECTURES)):
        known = kept.setdefault(kind, {})
        for name in (name for name in names if name in chosen):
            started = time.monotonic()
            before = known.get(name, {})
            if given.only_time:
                timed(BUILD / slug(name), name, before.get("ways", {"cut": before}))
            else:
                known[name] = trained(name, ways, before) if kind == "trained" else architecture(name)
            print(f"  {name:24} {time.monotonic() - started:.0f} s in all", flush=True)
            kept[kind] = known = {name: known[name] for name in names if name in known}
            if not given.no_write:
                write(kept)


def installed() -> None:
    """Make torch-pruning's environment; where that fails its column says so, and joulec is measured all the same."""
    try:
        PEER.install()
    except subprocess.CalledProcessError as error:
        print(f"  {TORCH} could not be installed: {error}", file=sys.stderr, flush=True)


def write(kept: dict[str, Any]) -> None:
    """Results and page, behind every case, so that a run that is cut off leaves what it measured."""
    kept |= {"command": "make bench-pruning", "cpu": cpu(), "versions": versions()}
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(kept), encoding="utf-8")
    print(f"  {RESULTS.relative_to(ROOT)}, {PAGE.relative_to(ROOT)}", flush=True)


if __name__ == "__main__":
    main()
