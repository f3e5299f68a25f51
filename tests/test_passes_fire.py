"""Every pass of the mission changes at least two of three real models, and by exactly so many rewrites.

The models: the demo's wide digits CNN and keras.applications' MobileNetV2, both lowered here from Keras with seeded
weights, and the orientation classifier of PP-OCR, from the wheel of rapidocr-onnxruntime. Each pass runs where the
default pipeline runs it, because some fire only behind others: MobileNetV2's Pads meet their Conv only once the
Transposes between them are gone.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from joulec.backends.cpu import CpuBackend
from joulec.data import synthetic_feeds
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
from joulec.passes.upgrade_opset import UpgradeOpset

ROOT = Path(__file__).resolve().parents[1]
WHEEL, VERSION = "rapidocr-onnxruntime", "1.4.4"
MEMBER = "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"


def digits() -> Any:
    spec = importlib.util.spec_from_file_location("digits_train", ROOT / "examples" / "digits" / "train.py")
    assert spec is not None and spec.loader is not None
    train = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train)
    return seeded(train.wide())


def mobilenet() -> Any:
    import keras

    return seeded(keras.applications.MobileNetV2((64, 64, 3), alpha=0.35, weights=None, classes=10))


def seeded(model: Any) -> Any:
    """Random numbers in every weight: biases of zero and the like would vanish before joulec sees them."""
    generator = np.random.default_rng(7)
    for weight in model.weights:
        fan = int(np.prod(weight.shape[:-1])) if len(weight.shape) > 1 else 1
        numbers = generator.standard_normal(weight.shape) / np.sqrt(fan)
        weight.assign(1.0 + 0.1 * numbers if len(weight.shape) == 1 else numbers)
    return model


def ocr() -> Path:
    """The classifier, downloaded once into the user's cache; skipped, visibly, where there is no package index."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "joulec-tests")
    model = cache / f"ocr-classifier-{VERSION}.onnx"
    if not model.exists():
        cache.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
        done = subprocess.run(
            [*pip, "--dest", cache, f"{WHEEL}=={VERSION}"], capture_output=True, text=True, timeout=300
        )
        if done.returncode:
            pytest.skip(
                f"no package index to download {WHEEL} from: {(done.stderr.strip() or 'no reason').splitlines()[-1]}"
            )
        (wheel,) = cache.glob(f"rapidocr_onnxruntime-{VERSION}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            partial = model.with_suffix(f".{os.getpid()}")
            partial.write_bytes(archive.read(MEMBER))
        partial.replace(model)  # at once: two test processes may download
    return model


def run(module: Module, shapes: dict[str, tuple[int, ...]]) -> Outcome:
    """The whole mission in the order of `optimize`: legalize, exact passes, prune, calibrate, quantize."""
    feeds = Feeds.of(synthetic_feeds(module.inputs(), shapes, 4, 0))  # as if the user had given them
    passes = [UpgradeOpset(), *exact_passes(), PruneMagnitude(sparsity=0.5), Calibrate(), Quantize()]
    with LocalRunner() as runner:
        context = Context(target=CpuBackend.target, feeds=feeds, probes=feeds.head(2), runner=runner, bindings=shapes)
        return Pipeline(passes).run(module, context)


def counts(outcome: Outcome) -> dict[str, int]:
    """Rewrites by pass; a pass that runs twice is counted together."""
    found: dict[str, int] = defaultdict(int)
    for step in outcome.steps:
        found[step.spelling.split("{")[0]] += len(step.result.rewrites)
    return dict(found)


MODELS: dict[str, tuple[Callable[[], Any], dict[str, tuple[int, ...]]]] = {
    "digits": (digits, {}),
    "mobilenet": (mobilenet, {}),
    "ocr": (ocr, {"x": (1, 3, 48, 192)}),
}

EXPECTED = {
    "digits": {
        "upgrade-opset": 1,
        "fold-constants": 4,
        "eliminate-identity": 2,
        "eliminate-common-subexpressions": 4,
        "fuse-transpose": 12,
        "eliminate-dead-code": 22 + 15,
        "fuse-pad": 1,
        "fuse-affine": 7,
        "fuse-gemm": 2,
        "prune-magnitude": 8,
        "calibrate": 12,
        "quantize": 13,
    },
    "mobilenet": {
        "upgrade-opset": 1,
        "fold-constants": 35,
        "eliminate-identity": 2,
        "eliminate-common-subexpressions": 82,
        "fuse-transpose": 94,
        "eliminate-dead-code": 112 + 142,
        "fuse-pad": 4,
        "fuse-affine": 69,
        "fuse-gemm": 1,
        "prune-magnitude": 53,
        "calibrate": 65,
        "quantize": 66,
    },
    "ocr": {
        "upgrade-opset": 2,
        "fold-constants": 333,
        "eliminate-identity": 3,
        "eliminate-common-subexpressions": 76,
        "fuse-transpose": 0,  # made for NCHW from the start
        "eliminate-dead-code": 40 + 220,
        "fuse-pad": 0,  # its convolutions pad themselves
        "fuse-affine": 62,
        "fuse-gemm": 1,
        "prune-magnitude": 52,
        "calibrate": 136,
        "quantize": 146,
    },
}
"""Rewrites. A pass that does better moves its number; say so where you change it."""

NODES = {"digits": (54, 20), "mobilenet": (315, 101), "ocr": (258, 170)}
"""Nodes of the lowered model, and after the exact passes."""


@pytest.mark.parametrize(
    "name", [pytest.param("digits", marks=pytest.mark.slow), pytest.param("mobilenet", marks=pytest.mark.slow), "ocr"]
)
def test_every_pass_makes_exactly_these_rewrites(name: str) -> None:
    build, shapes = MODELS[name]
    module = lower(build()).module
    outcome = run(module, shapes)
    assert [step.reason for step in outcome.steps if step.status == "rolled back"] == []
    assert counts(outcome) == EXPECTED[name]
    pruning = next(step for step in outcome.steps if step.spelling.startswith("prune-magnitude"))
    assert (module.node_count(), pruning.nodes[0]) == NODES[name]


def test_every_pass_is_held_to_two_models() -> None:
    known = {
        type(one).pass_name() for one in [UpgradeOpset(), *exact_passes(), PruneMagnitude(), Calibrate(), Quantize()]
    }
    for expected in EXPECTED.values():
        assert set(expected) == known
    for name in sorted(known):
        assert sum(expected[name] > 0 for expected in EXPECTED.values()) >= 2, name
