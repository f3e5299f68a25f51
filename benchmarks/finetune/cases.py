"""The models that `benchmarks/finetune` prunes: trained here on scikit-learn's digits (1,797 images of 8 x 8).

Each case is a folder with `float.keras`, `train.npz` (the rows it learns from), `validation.npz` (what chooses epochs)
and `test.npz` (360 rows that nothing but the last judgement sees). All but the small one are wide enough that the float
model takes a millisecond or more on one core.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

SEED, TEST, VALIDATION = 0, 360, 180


@dataclass(frozen=True)
class Case:
    """One model.

    Attributes:
        name: how the table calls it.
        build: makes the untrained Keras model.
        ratio: share of the channels that go from every group.
        epochs: of the first training.
        tuning: options of `joulec finetune` beside the data.
        bar: whether the bar of 2.5x holds for it; not where overhead per node rules.
        heads: share of the attention heads that go, where that is another.
    """

    name: str
    build: Callable[[Any], Any]
    ratio: float
    epochs: int = 5
    tuning: tuple[str, ...] = ("--epochs", "5", "--patience", "0")
    bar: bool = True
    heads: float | None = None

    @property
    def pruning(self) -> str:
        """The pass that says which channels go."""
        heads = "" if self.heads is None else f",groups=*/multi_head_attention*={self.heads}"
        return f"prune-channels{{ratio={self.ratio}{heads}}}"

    @property
    def removed(self) -> str:
        """The same for the table."""
        return f"−{self.ratio:.0%}" + ("" if self.heads is None else f", heads −{self.heads:.0%}")

    @property
    def digest(self) -> str:
        """Of its network and its options: where these change, everything is made anew."""
        made = (inspect.getsource(self.build), self.pruning, self.epochs, self.tuning)
        return hashlib.sha256(repr(made).encode()).hexdigest()[:8]

    def folder(self, root: Path) -> Path:
        """The case's files, made where they are not there yet."""
        place = root / f"{self.name.replace(' ', '-')}-{self.digest}"
        if not (place / "float.keras").is_file():
            place.mkdir(parents=True, exist_ok=True)
            data = _split()
            for name, (x, y) in data.items():
                np.savez_compressed(place / f"{name}.npz", image=x, y=y)
            self._trained(data).save(place / "float.keras")
        return place

    def _trained(self, data: dict[str, tuple[Any, Any]]) -> Any:
        import keras

        keras.utils.set_random_seed(SEED)
        image = keras.Input((8, 8, 1), name="image")
        model = keras.Model(image, self.build(image), name=self.name.replace(" ", "_"))
        rate = keras.optimizers.schedules.CosineDecay(1e-3, self.epochs * -(-len(data["train"][0]) // 32))
        model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
        model.fit(*data["train"], batch_size=32, epochs=self.epochs, verbose=0)
        return model


def cases() -> list[Case]:
    """Every case, in the order of the table."""
    return [
        Case("residual CNN", _residual, 0.5), Case("plain CNN", _plain, 0.5), Case("MLP", _mlp, 0.6),
        Case("transformer", _transformer, 0.75, epochs=25, heads=0.25,
             tuning=("--epochs", "25", "--patience", "0", "--learning-rate", "5e-4")),
        Case("small CNN", _small, 0.5, epochs=12, tuning=("--epochs", "15", "--patience", "0"), bar=False),
    ]  # fmt: skip


def _split() -> dict[str, tuple[Any, Any]]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = (digits.images / 16.0).astype(np.float32)[..., np.newaxis], digits.target.astype(np.int32)
    order = np.random.default_rng(SEED).permutation(len(x))
    parts = np.split(order, [TEST, TEST + VALIDATION])
    return {name: (x[rows], y[rows]) for name, rows in zip(("test", "validation", "train"), parts, strict=True)}


def _normed(value: Any, width: int, act: bool = True) -> Any:
    from keras import layers

    value = layers.Conv2D(width, 3, padding="same", use_bias=False)(value)
    value = layers.BatchNormalization(momentum=0.9)(value)  # few steps: statistics must follow faster than by default
    return layers.ReLU()(value) if act else value


def _residual(image: Any) -> Any:
    """Two residual blocks of 176 channels and a head."""
    from keras import layers

    value = _normed(image, 176)
    for _ in range(2):
        value = layers.ReLU()(layers.Add()([value, _normed(_normed(value, 176), 176, act=False)]))
    value = layers.GlobalAveragePooling2D()(value)
    return layers.Dense(10, "softmax", name="digit")(value)


def _plain(image: Any) -> Any:
    """Convolutions, a pooling, and a hidden layer."""
    from keras import layers

    value = _normed(_normed(image, 176), 256)
    value = layers.MaxPooling2D()(value)
    value = _normed(_normed(value, 352), 352)
    value = layers.Dense(256, "relu")(layers.Dropout(0.3)(layers.Flatten()(value)))
    return layers.Dense(10, "softmax", name="digit")(value)


def _mlp(image: Any) -> Any:
    """Two hidden layers of 3,072 units."""
    from keras import layers

    value = layers.Flatten()(image)
    for _ in range(2):
        value = layers.Dropout(0.2)(layers.Dense(3072, "relu")(value))
    return layers.Dense(10, "softmax", name="digit")(value)


def _transformer(image: Any) -> Any:
    """Sixteen patches of 2 x 2, two blocks of eight heads and 3,072 hidden units at width 256."""
    from keras import layers

    value = layers.Reshape((16, 256))(layers.Conv2D(256, 2, strides=2)(image))
    value = layers.Add()([value, _positions(value)])
    for _ in range(2):
        normed = layers.LayerNormalization(epsilon=1e-6)(value)
        value = layers.Add()([value, layers.MultiHeadAttention(8, 32)(normed, normed)])
        normed = layers.LayerNormalization(epsilon=1e-6)(value)
        value = layers.Add()([value, layers.Dense(256)(layers.Dense(3072, "gelu")(normed))])
    value = layers.GlobalAveragePooling1D()(layers.LayerNormalization(epsilon=1e-6)(value))
    return layers.Dense(10, "softmax", name="digit")(value)


def _positions(value: Any) -> Any:
    """A learned position for each patch: an Embedding of the patches' numbers."""
    import keras

    numbers = keras.ops.cumsum(keras.ops.ones_like(value[:, :, 0], dtype="int32"), axis=1) - 1
    return keras.layers.Embedding(16, 256)(numbers)


def _small(image: Any) -> Any:
    """The widths that a hand would choose for this task: overhead per node rules here."""
    from keras import layers

    value = layers.MaxPooling2D()(_normed(_normed(image, 16), 32))
    value = layers.Dense(32, "relu")(layers.Flatten()(value))
    return layers.Dense(10, "softmax", name="digit")(value)
