"""Printed text for the models of PP-OCRv4: lines upright and upside down, lines to read, pages to find lines on."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from common import CALIBRATION, SEED, float_model, write
from simplify_models import Missing

WORDS = (
    "invoice total amount street number model energy compile graph optimization 2024 receipt customer address phone "
    "date signature payment terms conditions order quantity price beautiful is better than ugly explicit simple flat "
    "sparse readability counts special cases errors silently ambiguity guess obvious never now idea namespaces"
).split()
TURNED, READ, PAGE = (48, 192), (48, 320), 320


def orientation(place: Path) -> None:
    """Lines of printed text with noise and blur, half of them turned by 180 degrees."""
    draw = Lines()
    answers = draw.numbers.integers(0, 2, CALIBRATION + 1_200)
    lines = [draw.line(draw.words(28)) for _ in answers]
    rows = [fitted(line.rotate(180) if turned else line, TURNED) for line, turned in zip(lines, answers, strict=True)]
    write(place, {"x": np.stack(rows)}, y=answers)
    (place / "float.onnx").write_bytes(float_model("PP-OCRv4 orientation").read_bytes())


def recognition(place: Path) -> None:
    """Lines of printed text, and what they say."""
    draw, model = Lines(), float_model("PP-OCRv4 recognition")
    texts = [draw.words(26) for _ in range(CALIBRATION // 2 + 300)]
    rows = np.stack([fitted(draw.line(text), READ) for text in texts])
    write(place, {"x": rows}, CALIBRATION // 2, y=np.array(texts))
    (characters,) = (one.value for one in onnx.load(model).metadata_props if one.key == "character")
    with np.load(place / "test.npz", allow_pickle=False) as file:
        np.savez(place / "test.npz", **file, characters=np.array(characters.splitlines()))
    (place / "float.onnx").write_bytes(model.read_bytes())


def detection(place: Path) -> None:
    """Pages with a few lines of text on them, and where they stand."""
    draw = Lines()
    pages, boxes = zip(*(draw.page() for _ in range(CALIBRATION // 4 + 120)), strict=True)
    write(place, {"x": np.stack(pages)}, CALIBRATION // 4, y=np.stack(boxes))
    (place / "float.onnx").write_bytes(float_model("PP-OCRv4 detection").read_bytes())


def fitted(image: Any, shape: tuple[int, int]) -> np.ndarray:
    """One line, float32 (3, *shape) in -1..1, scaled to the height and filled up with zeros on the right."""
    height, width = shape
    across = min(width, int(np.ceil(height * image.width / image.height)))
    made = np.zeros((3, *shape), np.float32)
    pixels = np.asarray(image.resize((across, height)), np.float32).transpose(2, 0, 1)
    made[:, :, :across] = (pixels / 255 - 0.5) / 0.5
    return made


class Lines:
    """Draws lines of text with Pillow's own font."""

    def __init__(self) -> None:
        try:
            from PIL import Image, ImageDraw, ImageFilter, ImageFont
        except ImportError:
            raise Missing("pip install pillow") from None
        self._image, self._draw, self._filter, self._font = Image, ImageDraw, ImageFilter, ImageFont
        self._chooser, self.numbers = random.Random(SEED), np.random.default_rng(SEED)

    def words(self, length: int) -> str:
        """A few words, cut off at a length."""
        return " ".join(self._chooser.choice(WORDS) for _ in range(self._chooser.randint(1, 4)))[:length].strip()

    def line(self, text: str) -> Any:
        """An image of one line."""
        choose = self._chooser
        font = self._font.load_default(choose.randint(24, 40))
        left, top, right, bottom = font.getbbox(text)
        size = max(int(right - left) + choose.randint(6, 30), 40), int(bottom - top) + choose.randint(6, 16)
        image = self._paper(size)
        corner = (size[0] - right - left) // 2, (size[1] - bottom - top) // 2
        self._draw.Draw(image).text(corner, text, fill=(choose.randint(0, 90),) * 3, font=font)
        return self._worn(image)

    def page(self) -> tuple[np.ndarray, np.ndarray]:
        """One page, float32 (3, PAGE, PAGE) as the model wants it, and boxes (8, 4) from corner to corner, or 0."""
        choose, image, boxes, below = self._chooser, self._paper((PAGE, PAGE)), np.zeros((8, 4), np.float32), 0.0
        for index in range(choose.randint(2, 8)):
            font, text = self._font.load_default(choose.randint(14, 30)), self.words(22)
            corner = choose.randint(4, 60), below + choose.randint(8, 24)
            box = self._draw.Draw(image).textbbox(corner, text, font=font)
            if box[3] >= PAGE - 4:
                break
            self._draw.Draw(image).text(corner, text, fill=(choose.randint(0, 90),) * 3, font=font)
            boxes[index], below = np.clip(box, 0, PAGE), box[3]
        pixels = np.asarray(self._worn(image), np.float32) / 255
        normal = (pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        return normal.transpose(2, 0, 1).astype(np.float32), boxes

    def _paper(self, size: tuple[int, int]) -> Any:
        paper, shade = self._chooser.randint(120, 255), self._chooser.randint(0, 20)
        return self._image.new("RGB", size, (paper, paper - shade, paper - shade))

    def _worn(self, image: Any) -> Any:
        if self._chooser.random() < 0.3:
            image = image.filter(self._filter.GaussianBlur(self._chooser.random() * 1.2))
        noisy = np.asarray(image, np.float32)
        noisy = noisy + self.numbers.normal(0, self._chooser.random() * 12, noisy.shape)
        return self._image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
