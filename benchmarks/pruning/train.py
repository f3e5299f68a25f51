"""Trains the networks that `benchmarks/pruning` prunes, on the digits that scikit-learn bundles.

    python train.py NAME FOLDER        (writes source.keras, calibration.npz, validation.npz and test.npz)

Three fifths of the 1,797 images train, a fifth is what pruning may be judged by, and a fifth it never sees. The wide
networks are wide enough that a float inference takes a millisecond or more; the small one says what per-node overhead
leaves of it. The deep ones see every image moved, turned and scaled a little, anew in each epoch, as is usual for them;
`residual memorized` is one that saw a thousand images as they are until it knew them by heart.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from sklearn.datasets import load_digits

SEED, BATCH = 0, 64


def plain(width: int) -> Any:
    """Convolutions, batch normalizations and poolings one behind another, on images of 16x16."""
    image = keras.Input((8, 8, 1), name="image")
    x = layers.UpSampling2D(2)(image)
    for stage, times in enumerate((1, 1, 2, 2)):
        x = _normalized(layers.Conv2D(width * times, 3, padding="same", use_bias=False)(x))
        x = layers.MaxPooling2D(2)(x) if stage in (1, 3) else x
    x = layers.Dense(width * 4, activation="relu")(layers.Flatten()(x))
    return keras.Model(image, layers.Dense(10, name="scores")(layers.Dropout(0.2)(x)))


def residual(width: int) -> Any:
    """Seven residual blocks of bottlenecks, two of which halve the image."""
    image = keras.Input((8, 8, 1), name="image")
    x = _normalized(layers.Conv2D(width * 2, 3, padding="same", use_bias=False)(layers.UpSampling2D(2)(image)))
    for block in range(7):
        step, wide = (2, width * 4) if block == 2 else (2, width * 8) if block == 5 else (1, x.shape[-1])
        y = _normalized(layers.Conv2D(wide // 2, 1, use_bias=False)(x))
        y = _normalized(layers.Conv2D(wide // 2, 3, step, padding="same", use_bias=False)(y))
        y = _batch_normalization()(layers.Conv2D(wide, 1, use_bias=False)(y))
        if step > 1:
            x = _batch_normalization()(layers.Conv2D(wide, 1, step, use_bias=False)(x))
        x = layers.ReLU()(layers.Add()([x, y]))
    return keras.Model(image, layers.Dense(10, name="scores")(layers.GlobalAveragePooling2D()(x)))


def separable(width: int) -> Any:
    """Inverted residuals with squeeze and excitation, as MobileNets have them."""
    image = keras.Input((8, 8, 1), name="image")
    x = _normalized(layers.Conv2D(width, 3, padding="same", use_bias=False)(layers.UpSampling2D(2)(image)))
    for block in range(6):
        y = _normalized(layers.Conv2D(x.shape[-1] * 4, 1, use_bias=False)(x))
        y = _normalized(layers.DepthwiseConv2D(3, 2 if block == 3 else 1, padding="same", use_bias=False)(y))
        gate = layers.GlobalAveragePooling2D(keepdims=True)(y)
        gate = layers.Conv2D(width // 2, 1, activation="relu")(gate)
        y = layers.Multiply()([y, layers.Conv2D(y.shape[-1], 1, activation="sigmoid")(gate)])
        y = _batch_normalization()(layers.Conv2D(width * (1 + block // 3), 1, use_bias=False)(y))
        x = layers.Add()([x, y]) if x.shape == y.shape else y
    return keras.Model(image, layers.Dense(10, name="scores")(layers.GlobalAveragePooling2D()(x)))


def perceptron(width: int) -> Any:
    """Three hidden layers."""
    image = keras.Input((8, 8, 1), name="image")
    x = layers.Flatten()(image)
    for _ in range(3):
        x = layers.Dropout(0.2)(layers.Dense(width, activation="relu")(x))
    return keras.Model(image, layers.Dense(10, name="scores")(x))


def transformer(width: int) -> Any:
    """Four pre-normalized encoder blocks over patches of 2x2."""
    image = keras.Input((8, 8, 1), name="image")
    x = layers.Reshape((16, width))(layers.Conv2D(width, 2, 2)(image))
    x = layers.EinsumDense("btd,de->bte", (16, width), bias_axes="te")(x)  # its bias is a vector for each position
    for _ in range(4):
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        x = layers.Add()([x, layers.MultiHeadAttention(8, width // 8)(y, y)])
        y = layers.Dense(width * 5, activation="gelu")(layers.LayerNormalization(epsilon=1e-6)(x))
        x = layers.Add()([x, layers.Dropout(0.1)(layers.Dense(width)(y))])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization(epsilon=1e-6)(x))
    return keras.Model(image, layers.Dense(10, name="scores")(x))


def _batch_normalization() -> Any:
    return layers.BatchNormalization(momentum=0.9)  # the statistics of a few hundred steps


def _normalized(x: Any) -> Any:
    return layers.ReLU()(_batch_normalization()(x))


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        build: makes it.
        width: of its layers.
        epochs: of training.
        moved: whether images are moved, turned and scaled a little in each epoch.
    """

    build: Callable[[int], Any]
    width: int
    epochs: int
    moved: bool = False


NETWORKS: Mapping[str, Recipe] = {
    "cnn": Recipe(plain, 112, 10), "cnn small": Recipe(plain, 8, 30), "mlp": Recipe(perceptron, 2048, 12),
    "transformer": Recipe(transformer, 192, 40), "residual": Recipe(residual, 48, 40, moved=True),
    "residual memorized": Recipe(residual, 48, 12), "separable": Recipe(separable, 64, 40, moved=True),
}  # fmt: skip


def split() -> dict[str, tuple[Any, Any]]:
    """Images (n, 8, 8, 1) from 0 to 1 and digits, shuffled, in three parts."""
    digits = load_digits()
    images, labels = digits.images.astype(np.float32)[..., None] / 16, digits.target.astype(np.int64)
    order = np.random.default_rng(SEED).permutation(len(labels))
    ends = [0, len(order) * 3 // 5, len(order) * 4 // 5, len(order)]
    names = ("train", "validation", "test")
    parts = {name: order[start:end] for name, start, end in zip(names, ends, ends[1:], strict=False)}
    return {name: (images[rows], labels[rows]) for name, rows in parts.items()}


def moved() -> Any:
    """Moves by up to an eighth of the image, turns by up to 15 degrees, scales by up to a tenth."""
    return keras.Sequential([
        layers.RandomTranslation(1 / 8, 1 / 8, fill_mode="constant"),
        layers.RandomRotation(15 / 360, fill_mode="constant"), layers.RandomZoom(0.1, fill_mode="constant"),
    ])  # fmt: skip


def batches(images: Any, labels: Any) -> Any:
    """What an epoch sees of moved images, shuffled anew each time."""
    data, change = tf.data.Dataset.from_tensor_slices((images, labels)), moved()
    return data.shuffle(len(labels), seed=SEED).batch(BATCH).map(lambda x, y: (change(x, training=True), y))


def main(name: str, folder: str) -> None:
    """Train one network."""
    keras.utils.set_random_seed(SEED)
    recipe, parts, place = NETWORKS[name], split(), Path(folder)
    model, (images, labels) = recipe.build(recipe.width), parts["train"]
    steps = recipe.epochs * -(-len(labels) // BATCH)
    rate = keras.optimizers.schedules.CosineDecay(0.0, steps, warmup_target=1e-3, warmup_steps=steps // 10)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(rate, weight_decay=1e-2), loss, metrics=["accuracy"])
    told = {"epochs": recipe.epochs, "validation_data": parts["validation"], "verbose": 2}
    if recipe.moved:
        model.fit(batches(images, labels), **told)
    else:
        model.fit(images, labels, batch_size=BATCH, **told)
    model.save(place / "source.keras")
    np.savez(place / "calibration.npz", image=images[:512])
    for part in ("validation", "test"):
        np.savez(place / f"{part}.npz", image=parts[part][0], y=parts[part][1])


if __name__ == "__main__":
    main(*sys.argv[1:])
