"""Trains a small Keras model on data that come with this environment, and writes it as a case of the benchmark.

    python train.py transformer FOLDER      (which kind of file 256 bytes come from; files of Python's own packages)
    python train.py gru FOLDER              (scanned digits of scikit-learn, line by line)
    python train.py lstm FOLDER             (the same by another cell)

Runs in a process of its own: TensorFlow is loaded nowhere else.
"""

from __future__ import annotations

import os
import random
import sys
import sysconfig
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import onnx
from keras import layers
from sklearn.datasets import load_digits

import joulec

SEED, CALIBRATION, TESTED = 0, 256, 600
KINDS, PER_KIND, LENGTH, WIDTH, HEADS = ("py", "json", "html", "js", "css", "md", "h", "so"), 400, 256, 64, 4


def excerpts() -> tuple[np.ndarray, np.ndarray]:
    """Bytes, int32 (n, LENGTH), from random places of files, and the position in KINDS of each file's suffix."""
    chooser, rows, kinds = random.Random(SEED), [], []
    roots = [Path(sysconfig.get_path(name)) for name in ("purelib", "stdlib")]
    for kind, suffix in enumerate(KINDS):
        files = [file for root in roots for file in sorted(root.rglob(f"*.{suffix}")) if _usable(file)]
        for _ in range(PER_KIND if files else 0):
            data = chooser.choice(files).read_bytes()
            start = chooser.randrange(len(data) - LENGTH + 1)
            rows.append(list(data[start : start + LENGTH]))
            kinds.append(kind)
    return np.array(rows, np.int32), np.array(kinds)


def _usable(file: Path) -> bool:
    return file.is_file() and not file.is_symlink() and LENGTH <= file.stat().st_size < 1 << 20


def transformer() -> keras.Model:
    """Two encoder layers, normalized first, over bytes and positions."""
    data = layers.Input((LENGTH,), dtype="int32", name="bytes")
    x = layers.Embedding(256, WIDTH)(data)
    x = layers.AveragePooling1D(2)(layers.Conv1D(WIDTH, 5, padding="same", activation="gelu")(x))
    places = keras.ops.arange(LENGTH // 2)
    x = x + layers.Embedding(LENGTH // 2, WIDTH)(places)
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(HEADS, WIDTH // HEADS)(y, y)
        y = layers.LayerNormalization()(x)
        x = x + layers.Dense(WIDTH)(layers.Dense(4 * WIDTH, activation="gelu")(y))
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(data, layers.Dense(len(KINDS), activation="softmax")(x))


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images, float32 (n, 8, 8), in 0..1, and what they show."""
    images, shown = load_digits(return_X_y=True)
    return (images.reshape(-1, 8, 8) / 16).astype(np.float32), shown.astype(np.int64)


def recurrent(cell: type[keras.Layer]) -> keras.Model:
    """Two layers of the cell, the first in both directions, over the eight lines of a digit."""
    lines = layers.Input((8, 8), name="lines")
    x = layers.Bidirectional(cell(64, return_sequences=True))(lines)
    return keras.Model(lines, layers.Dense(10, activation="softmax")(cell(128)(x)))


def main(what: str, folder: str) -> None:
    """Train, and write float.onnx, calibration.npz and test.npz."""
    keras.utils.set_random_seed(SEED)
    rows, truth = excerpts() if what == "transformer" else digits()
    order = np.random.default_rng(SEED).permutation(len(rows))
    rows, truth = rows[order], truth[order]
    cells = {"gru": layers.GRU, "lstm": layers.LSTM}
    model = transformer() if what == "transformer" else recurrent(cells[what])
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    model.fit(rows[TESTED:], truth[TESTED:], batch_size=64, epochs=12, verbose=0)
    place, name = Path(folder), model.inputs[0].name
    onnx.save(joulec.simplify(model), place / "float.onnx")
    np.savez(place / "calibration.npz", **{name: rows[TESTED : TESTED + CALIBRATION, None]})
    np.savez(place / "test.npz", **{name: rows[:TESTED], "y": truth[:TESTED]})


if __name__ == "__main__":
    main(*sys.argv[1:])
