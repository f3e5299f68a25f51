"""Train two digit classifiers and save what joulec needs: models, calibration data and a held-out test set.

Real data: the 1,797 scanned digits bundled with scikit-learn. `small` sees them as they are, 8x8; `wide` sees them
enlarged to 32x32. A fifth is held out: neither training nor calibration ever sees it.

    python examples/digits/train.py [build/demo]
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SEED = 7
CALIBRATION = 256


def digits(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 (1797, size, size, 1) in 0..1, and labels int64 (1797,)."""
    images, labels = load_digits(return_X_y=True)
    pixels = (images.reshape(-1, 8, 8, 1) / 16.0).astype(np.float32)
    if size != 8:
        pixels = np.asarray(keras.ops.image.resize(pixels, (size, size), interpolation="bilinear"), np.float32)
    return pixels, labels.astype(np.int64)


def block(x: object, channels: int, kernel: int = 3, stride: int = 1) -> object:
    """Convolution, batch normalization, ReLU; a strided one is padded explicitly, as keras.applications does."""
    if stride > 1:
        x = layers.ZeroPadding2D(1)(x)
    padding = "valid" if stride > 1 else "same"
    x = layers.Conv2D(channels, kernel, strides=stride, padding=padding, use_bias=False)(x)
    x = layers.BatchNormalization(momentum=0.9)(x)  # few steps: the averages must settle quickly
    return layers.ReLU()(x)


def separable(x: object, channels: int) -> object:
    """Halve the image as MobileNet does: pad, depthwise convolution with stride 2, then mix the channels."""
    x = layers.ZeroPadding2D(1)(x)
    x = layers.DepthwiseConv2D(3, strides=2, use_bias=False)(x)
    x = layers.BatchNormalization(momentum=0.9)(x)
    x = layers.ReLU()(x)
    return block(x, channels, kernel=1)


def small() -> keras.Model:
    """About 0.1 million multiply-adds: too little work for INT8 to pay."""
    image = layers.Input((8, 8, 1), name="image")
    x = block(image, 16, stride=2)
    x = block(x, 32, stride=2)
    x = layers.Flatten()(x)
    x = layers.Dense(64, activation="relu")(x)
    return keras.Model(image, layers.Dense(10, activation="softmax", name="digit")(x), name="small")


def wide() -> keras.Model:
    """About 34 million multiply-adds, nearly all in 3x3 convolutions: INT8 pays."""
    image = layers.Input((32, 32, 1), name="image")
    x = block(image, 64, stride=2)
    x = block(x, 96)
    x = separable(x, 128)
    x = block(x, 128)
    x = block(x, 128)
    x = layers.MaxPooling2D()(x)
    x = layers.Flatten()(x)
    x = layers.Dropout(0.3)(x)
    x = layers.Dense(128, activation="relu")(x)
    return keras.Model(image, layers.Dense(10, activation="softmax", name="digit")(x), name="wide")


def train(model: keras.Model, size: int, epochs: int, out: Path) -> None:
    """Train `model`, then write OUT/NAME.keras, OUT/NAME_calibration.npz and OUT/NAME_test.npz."""
    start = time.perf_counter()
    images, labels = digits(size)
    x, x_test, y, y_test = train_test_split(images, labels, test_size=0.2, random_state=SEED, stratify=labels)
    rate = keras.optimizers.schedules.CosineDecay(3e-3, epochs * -(-len(x) // 64))
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x, y, batch_size=64, epochs=epochs, verbose=0)
    _, accuracy = model.evaluate(x_test, y_test, verbose=0)
    model.save(out / f"{model.name}.keras")
    np.savez_compressed(out / f"{model.name}_calibration.npz", image=x[:CALIBRATION])
    np.savez_compressed(out / f"{model.name}_test.npz", image=x_test, label=y_test)
    seconds = time.perf_counter() - start
    print(f"{model.name}: {model.count_params():,} weights, test accuracy {accuracy:.4f}, trained in {seconds:.0f} s")


def main(folder: str = "build/demo") -> None:
    """Train both."""
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    for build, size, epochs in ((small, 8, 30), (wide, 32, 8)):
        keras.utils.set_random_seed(SEED)
        train(build(), size, epochs, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
