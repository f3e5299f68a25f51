"""Share of the lines of test.npz that are read without a mistake, but for spaces: greedy decoding, without blanks."""

from pathlib import Path

import numpy as np

with np.load(Path(__file__).with_name("test.npz"), allow_pickle=False) as file:
    IMAGES, TEXTS, CHARACTERS = file["x"], file["y"], [*file["characters"], " "]
TRUE, BATCH, BLANK = [text.replace(" ", "") for text in TEXTS], 8, 0


def accuracy(infer):
    right = 0
    for start in range(0, len(TEXTS), BATCH):
        scores = next(iter(infer({"x": IMAGES[start : start + BATCH]}).values()))
        read = [_text(row) for row in scores.argmax(axis=-1)]
        right += sum(one == truth for one, truth in zip(read, TRUE[start : start + BATCH], strict=True))
    return right / len(TEXTS)


def _text(steps):
    kept = [one for one, before in zip(steps, [BLANK, *steps[:-1]], strict=True) if one not in (before, BLANK)]
    return "".join(CHARACTERS[one - 1] for one in kept).replace(" ", "")
