"""The models that `benchmarks/int8` quantizes, with data to calibrate with and, where they are trained, to judge by.

Every case is a folder: `float.onnx`, `calibration.npz` (whole inputs of one sample each, stacked), and for trained
models `test.npz` with `metric.py:accuracy`.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import printed
import sentences
import spoken
from common import SEED, float_model, shuffled, write
from simplify_models import Missing, member

import joulec

ROOT = Path(__file__).resolve().parents[2]
METRICS = Path(__file__).with_name("metrics")


@dataclass(frozen=True)
class Case:
    """One model.

    Attributes:
        name: how the table calls it.
        make: writes float.onnx, calibration.npz and, where it is trained, test.npz into a folder.
        metric: the file of `metrics/` that it is judged by, where it is trained.
    """

    name: str
    make: Callable[[Path], None]
    metric: str = "classes"

    def folder(self, root: Path) -> Path:
        """The case's files, made where they are not there yet."""
        place = root / self.name.replace(" ", "-").lower()
        if not (place / "done").is_file():
            place.mkdir(parents=True, exist_ok=True)
            self.make(place)
            if (place / "test.npz").is_file():
                shutil.copyfile(METRICS / f"{self.metric}.py", place / "metric.py")
            (place / "done").touch()
        return place


def cases() -> list[Case]:
    """Every case, in the order of the table."""
    return [
        Case("digits small", _digits("small")), Case("digits wide", _digits("wide")), Case("Magika", magika),
        Case("OCR orientation", printed.orientation), Case("OCR detection", printed.detection, "boxes"),
        Case("OCR recognition", printed.recognition, "lines"), Case("Silero VAD", spoken.voice_activity, "speech"),
        Case("MiniLM", sentences.embedding, "neighbours"), Case("keras transformer", _trained("transformer")),
        Case("keras GRU", _trained("gru")), Case("keras LSTM", _trained("lstm")),
        Case("keras ResNet50", _untrained("ResNet50")), Case("keras MobileNetV2", _untrained("MobileNetV2")),
    ]  # fmt: skip


# -- digits, trained by `make demo` -----------------------------------------------------------------------------------


def _digits(size: str) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        demo = ROOT / "build" / "demo"
        if not (demo / f"{size}.keras").is_file():
            raise Missing("`make demo` trains it")
        onnx.save(joulec.simplify(demo / f"{size}.keras"), place / "float.onnx")
        with np.load(demo / f"{size}_calibration.npz", allow_pickle=False) as file:
            np.savez(place / "calibration.npz", image=file["image"][:, None])
        with np.load(demo / f"{size}_test.npz", allow_pickle=False) as file:
            np.savez(place / "test.npz", image=file["image"], y=file["label"])

    return make


# -- file types -------------------------------------------------------------------------------------------------------

SUFFIXES = {
    "py": "python", "json": "json", "html": "html", "js": "javascript", "css": "css", "md": "markdown", "c": "c",
    "h": "c", "cpp": "cpp", "hpp": "cpp", "so": "elf", "pyc": "pythonbytecode", "gz": "gzip", "png": "png",
    "txt": "txt", "yaml": "yaml", "toml": "toml", "xml": "xml", "csv": "csv", "sh": "shell", "rst": "rst",
    "svg": "svg", "npz": "zip", "npy": "npy", "pdf": "pdf", "jpg": "jpeg",
}  # fmt: skip
"""File suffix -> Magika's label. A suffix is the truth here: files that lie about it cost both models alike."""

PER_LABEL = 90


def magika(place: Path) -> None:
    """Files of this environment's own packages, cut into features as the model's configuration says."""
    source = float_model("Magika")
    config = json.loads(member("magika", "standard_v3_3/config.min.json")().read_text(encoding="utf-8"))
    labels, found = config["target_labels_space"], _files()
    features, truth = [], []
    for label in sorted(set(found) & set(labels)):
        for path in found[label]:
            features.append(_features(path.read_bytes(), config))
            truth.append(labels.index(label))
    rows, answers = shuffled(np.array(features, np.int32), np.array(truth))
    write(place, {"bytes": rows}, y=answers)
    (place / "float.onnx").write_bytes(source.read_bytes())


def _files() -> dict[str, list[Path]]:
    """Up to `PER_LABEL` files of each label, the same ones for the same packages."""
    found: dict[str, list[Path]] = {}
    for root in (sysconfig.get_path("purelib"), sysconfig.get_path("stdlib")):
        for path in sorted(Path(root).rglob("*.*")):
            label = SUFFIXES.get(path.suffix[1:].lower())
            if label and path.is_file() and not path.is_symlink() and 200 < path.stat().st_size < 20_000_000:
                found.setdefault(label, []).append(path)
    chooser = random.Random(SEED)
    return {label: chooser.sample(paths, min(PER_LABEL, len(paths))) for label, paths in sorted(found.items())}


def _features(data: bytes, config: dict[str, Any]) -> list[int]:
    begin, end, block, pad = (config[key] for key in ("beg_size", "end_size", "block_size", "padding_token"))
    first = list(data[:block].lstrip()[:begin])
    last = list(data[-block:].rstrip()[-end:]) if end else []
    return [*first, *[pad] * (begin - len(first)), *[pad] * (end - len(last)), *last]


# -- small keras models, trained here --------------------------------------------------------------------------------


def _trained(what: str) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        command = [sys.executable, str(Path(__file__).with_name("train.py")), what, str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Missing((done.stderr.strip().splitlines() or ["training fails"])[-1][:100])

    return make


# -- architectures without training: latency only ---------------------------------------------------------------------


def _untrained(name: str) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        (place / "float.onnx").write_bytes(float_model(f"keras {name}").read_bytes())
        rows = np.random.default_rng(SEED).uniform(-1, 1, (32, 1, 224, 224, 3)).astype(np.float32)
        np.savez(place / "calibration.npz", image=rows)

    return make
