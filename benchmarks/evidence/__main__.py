"""Climb the ladder of evidence with real models, and write docs/evidence.md.

    make bench-evidence                 # or, in an environment with joulec, TensorFlow and `make gpu-env`:
    JOULEC_GPU_ENV=build/gpu python benchmarks/evidence [--install] [--only NAME] [--no-write]

Every model becomes three artefacts by one command, `joulec optimize MODEL --target cpu --target cuda --target tensorrt
--int8 --shape ...`. What their manifests say of each rung is the table. Beside them stands what NVIDIA ModelOpt makes
of the same float model and the same calibration data, on the same rungs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import page
from models import WORK, Missing, Model, models, rows
from peer import judged

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "evidence.json"
MODELOPT = ROOT / "build" / "peers" / "modelopt"
TARGETS = ("cpu", "cuda", "tensorrt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--install", action="store_true", help="make ModelOpt's environment where it is missing")
    parser.add_argument("--only", action="append", default=[], help="a model's name, or part of it; repeatable")
    parser.add_argument("--no-write", action="store_true", help="leave the results and docs/evidence.md alone")
    given = parser.parse_args()
    if not os.environ.get("JOULEC_GPU_ENV"):
        sys.exit("set JOULEC_GPU_ENV to the folder that `make gpu-env` builds")
    if given.install:
        install()
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if given.only and RESULTS.is_file() else {}
    for model in models():
        if not given.only or any(part.lower() in model.name.lower() for part in given.only):
            known[model.name] = found = climbed(model)
            say(model.name, found)
            if not given.no_write:
                RESULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if not given.no_write:
        page.write(known, [model.name for model in models()])


def climbed(model: Model) -> dict[str, Any]:
    """The rungs of joulec's three artefacts, and of ModelOpt's model."""
    try:
        folder = model.case.folder(WORK)
    except Missing as why:
        return {"missing": str(why)}
    return {"joulec": artefacts(model, folder), "modelopt": peer(model, folder)}


def artefacts(model: Model, folder: Path) -> dict[str, Any]:
    out = folder / "artefacts"
    command = [sys.executable, "-m", "joulec", "optimize", str(folder / "float.onnx"), "-o", str(out), "--int8"]
    command += [word for target in TARGETS for word in ("--target", target)]
    command += ["--data", str(folder / "calibration.npz"), "--search-budget", "0s"]
    command += ["--shape", model.shape]
    if (folder / "metric.py").is_file():
        command += ["--metric", f"{folder / 'metric.py'}:accuracy"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return {"error": done.stderr.strip().splitlines()[-1]}
    return {target: told(report) for target, report in json.loads(done.stdout)["targets"].items()}


def told(report: dict[str, Any]) -> dict[str, Any]:
    """What the page needs of a report."""
    accuracy = report["accuracy"] or {}
    choices = {one["what"]: one["kept"] for one in report["decisions"] if one["what"] in ("INT8", "float16")}
    return {
        "rungs": {one["name"]: [one["status"], one["detail"]] for one in report["checks"]}, "choices": choices,
        "accuracy": [accuracy.get(key) for key in ("name", "before", "after")], "bytes": report["size_after"],
    }  # fmt: skip


def peer(model: Model, folder: Path) -> dict[str, Any]:
    python, out = MODELOPT / "bin" / "python", folder / "modelopt.onnx"
    if not python.is_file():
        return {"error": "not installed (--install)"}
    if not out.is_file():
        given = folder / "modelopt-input.onnx"
        shutil.copyfile(folder / "float.onnx", given)  # a copy, because it writes beside what it reads
        worker = str(Path(__file__).with_name("modelopt_worker.py"))
        command = [str(python), "-W", "ignore", worker, str(given), str(folder / "calibration.npz"), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600)
        if done.returncode != 0 or not out.is_file():
            return {"error": (done.stderr.strip().splitlines() or ["wrote nothing"])[-1][:200]}
    return judged(out, folder, model.shape, rows(folder, model.batch))


def install() -> None:
    """ModelOpt in an environment of its own: it asks for another onnx."""
    if not (MODELOPT / "bin" / "python").is_file():
        subprocess.run([sys.executable, "-m", "venv", str(MODELOPT)], check=True)
        pip = [str(MODELOPT / "bin" / "python"), "-m", "pip", "install", "-q", "nvidia-modelopt[onnx]"]
        subprocess.run(pip, check=True)


def say(name: str, found: dict[str, Any]) -> None:
    ours = found.get("joulec", {})
    rows = {**({"": ours} if "error" in ours else ours), "by ModelOpt": found.get("modelopt", found)}
    for target, one in rows.items():
        said = {rung: status for rung, (status, _) in one.get("rungs", {}).items()} or one
        sys.stdout.write(f"{name} {target}: {said}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
