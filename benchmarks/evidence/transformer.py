"""A Keras transformer trained on scikit-learn's digits, each a sequence of its eight rows: transformer.py FOLDER.

Writes float.onnx (as joulec lowers it), calibration.npz and test.npz.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from joulec.ir.lower import lower

SEED, WIDTH, HEADS, DEPTH, EPOCHS = 7, 128, 4, 2, 25


def main(folder: Path) -> None:
    keras.utils.set_random_seed(SEED)
    images, labels = load_digits(return_X_y=True)
    rows = (images.reshape(-1, 8, 8) / 16.0).astype(np.float32)
    given, held, known, truth = train_test_split(rows, labels, test_size=0.2, random_state=SEED, stratify=labels)
    model = transformer()
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(given, known, batch_size=64, epochs=EPOCHS, verbose=0)
    lower(model).module.save(folder / "float.onnx")
    np.savez(folder / "calibration.npz", rows=given[:256])
    np.savez(folder / "test.npz", rows=held, y=truth.astype(np.int64))


def transformer() -> keras.Model:
    """Encoder blocks of attention and a feed-forward net, each behind a layer norm, with learned positions."""
    given = layers.Input((8, 8), name="rows")
    x = layers.Dense(WIDTH)(given) + layers.Embedding(8, WIDTH)(np.arange(8)[None])
    for _ in range(DEPTH):
        normed = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(HEADS, WIDTH // HEADS)(normed, normed)
        inner = layers.Dense(4 * WIDTH, activation="gelu")(layers.LayerNormalization()(x))
        x = x + layers.Dense(WIDTH)(inner)
    pooled = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(given, layers.Dense(10, activation="softmax", name="digit")(pooled))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
