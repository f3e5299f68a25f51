"""The models that `benchmarks/int8` quantizes, with data to calibrate with and, where they are trained, to judge by.

Every case is a folder: `float.onnx`, `calibration.npz` (one array an input), and for trained models `test.npz` (the
same and the labels `y`) with `metric.py:accuracy`.
"""

from __future__ import annotations

import json
import random
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from simplify_models import Missing, member, sources

import joulec

ROOT = Path(__file__).resolve().parents[2]
SEED, CALIBRATION = 0, 256

METRIC = '''"""Share of the rows of test.npz whose largest score is the right one."""

from pathlib import Path

import numpy as np

with np.load(Path(__file__).with_name("test.npz"), allow_pickle=False) as file:
    DATA = {{name: file[name] for name in file.files}}
LABELS = DATA.pop("y")


def accuracy(infer):
    right = 0
    for start in range(0, len(LABELS), {batch}):
        end = start + {batch}
        scores = next(iter(infer({{name: array[start:end] for name, array in DATA.items()}}).values()))
        right += int((scores.argmax(axis=-1).reshape(-1) == LABELS[start:end]).sum())
    return right / len(LABELS)
'''


@dataclass(frozen=True)
class Case:
    """One model.

    Attributes:
        name: how the table calls it.
        make: writes float.onnx, calibration.npz and, where it is trained, test.npz into a folder.
        batch: rows per run of the metric.
    """

    name: str
    make: Callable[[Path], None]
    batch: int = 32

    def folder(self, root: Path) -> Path:
        """The case's files, made where they are not there yet."""
        place = root / self.name.replace(" ", "-").lower()
        if not (place / "done").is_file():
            place.mkdir(parents=True, exist_ok=True)
            self.make(place)
            if (place / "test.npz").is_file():
                (place / "metric.py").write_text(METRIC.format(batch=self.batch), encoding="utf-8")
            (place / "done").touch()
        return place


def cases() -> list[Case]:
    """Every case, in the order of the table."""
    return [
        Case("digits small", _digits("small")), Case("digits wide", _digits("wide")), Case("Magika", magika),
        Case("OCR orientation", ocr, batch=16), Case("keras ResNet50", _untrained("keras ResNet50")),
        Case("keras MobileNetV2", _untrained("keras MobileNetV2")),
    ]  # fmt: skip


def _float_model(name: str) -> Path:
    return next(source for source in sources() if source.name == name).make()


# -- digits, trained by `make demo` -----------------------------------------------------------------------------------


def _digits(size: str) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        demo = ROOT / "build" / "demo"
        if not (demo / f"{size}.keras").is_file():
            raise Missing("`make demo` trains it")
        onnx.save(joulec.simplify(demo / f"{size}.keras"), place / "float.onnx")
        (place / "calibration.npz").write_bytes((demo / f"{size}_calibration.npz").read_bytes())
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
    source = _float_model("Magika")
    config = json.loads(member("magika", "standard_v3_3/config.min.json")().read_text(encoding="utf-8"))
    labels, found = config["target_labels_space"], _files()
    features, truth = [], []
    for label in sorted(set(found) & set(labels)):
        for path in found[label]:
            features.append(_features(path.read_bytes(), config))
            truth.append(labels.index(label))
    rows, answers = _shuffled(np.array(features, np.int32), np.array(truth))
    _write(place, "bytes", rows, answers)
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


# -- lines of text, some upside down ----------------------------------------------------------------------------------

WORDS = (
    "invoice total amount street number model energy compile graph optimization 2024 receipt customer address phone "
    "date signature payment terms conditions order quantity price beautiful is better than ugly explicit simple flat "
    "sparse readability counts special cases errors silently ambiguity guess obvious never now idea namespaces"
).split()
SHAPE, TESTED = (48, 192), 1_200


def ocr(place: Path) -> None:
    """Lines of printed text with noise and blur, half of them turned by 180 degrees."""
    draw = _Lines()
    answers = draw.numbers.integers(0, 2, CALIBRATION + TESTED)
    rows = np.stack([draw.line(bool(turned)) for turned in answers])
    _write(place, "x", rows, answers)
    (place / "float.onnx").write_bytes(_float_model("PP-OCRv4 orientation").read_bytes())


class _Lines:
    """Draws lines of text with Pillow's own font."""

    def __init__(self) -> None:
        try:
            from PIL import Image, ImageDraw, ImageFilter, ImageFont
        except ImportError:
            raise Missing("pip install pillow") from None
        self._image, self._draw, self._filter, self._font = Image, ImageDraw, ImageFilter, ImageFont
        self._chooser, self.numbers = random.Random(SEED), np.random.default_rng(SEED)

    def line(self, turned: bool) -> np.ndarray:
        """One image, float32 (3, 48, 192) in -1..1, filled up with zeros on the right."""
        image = self._printed()
        if turned:
            image = image.rotate(180)
        height, width = SHAPE
        across = min(width, int(np.ceil(height * image.width / image.height)))
        made = np.zeros((3, *SHAPE), np.float32)
        pixels = np.asarray(image.resize((across, height)), np.float32).transpose(2, 0, 1)
        made[:, :, :across] = (pixels / 255 - 0.5) / 0.5
        return made

    def _printed(self) -> Any:
        choose = self._chooser
        text = " ".join(choose.choice(WORDS) for _ in range(choose.randint(1, 4)))[:28]
        font = self._font.load_default(choose.randint(24, 40))
        left, top, right, bottom = font.getbbox(text)
        size = max(int(right - left) + choose.randint(6, 30), 40), int(bottom - top) + choose.randint(6, 16)
        paper, ink = choose.randint(120, 255), choose.randint(0, 90)
        image = self._image.new("RGB", size, (paper, paper - choose.randint(0, 20), paper - choose.randint(0, 20)))
        corner = (size[0] - right - left) // 2, (size[1] - bottom - top) // 2
        self._draw.Draw(image).text(corner, text, fill=(ink,) * 3, font=font)
        if choose.random() < 0.3:
            image = image.filter(self._filter.GaussianBlur(choose.random() * 1.2))
        noisy = np.asarray(image, np.float32) + self.numbers.normal(0, choose.random() * 12, (*size[::-1], 3))
        return self._image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


# -- architectures without training: latency only ---------------------------------------------------------------------


def _untrained(name: str) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        (place / "float.onnx").write_bytes(_float_model(name).read_bytes())
        rows = np.random.default_rng(SEED).uniform(-1, 1, (32, 224, 224, 3)).astype(np.float32)
        np.savez(place / "calibration.npz", image=rows)

    return make


def _shuffled(rows: np.ndarray, answers: np.ndarray) -> Iterator[np.ndarray]:
    order = np.random.default_rng(SEED).permutation(len(rows))
    return iter((rows[order], answers[order]))


def _write(place: Path, name: str, rows: np.ndarray, answers: np.ndarray) -> None:
    np.savez(place / "calibration.npz", **{name: rows[:CALIBRATION]})
    np.savez(place / "test.npz", **{name: rows[CALIBRATION:], "y": answers[CALIBRATION:]})
