"""What fine-tuning is asked to do: one value that is checked once and travels to the child process as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from joulec.errors import InputError

OPTIMIZERS = ("adamw", "adam", "sgd")
PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")


@dataclass(frozen=True)
class Recipe:
    """How a model is tuned. The defaults fit models that were trained before and lost a little.

    Attributes:
        epochs: runs over the data, at most.
        batch: samples per step, where the data come unbatched.
        optimizer: `adamw`, `adam` or `sgd` (with momentum 0.9).
        learning_rate: at the start; it falls to zero along a cosine (Loshchilov & Hutter 2017, without restarts).
        weight_decay: share of each kernel subtracted per step and unit of learning rate (decoupled, as in AdamW).
        l2: factor of the sum of squares of the kernels in the loss.
        accumulate: batches whose gradients are averaged into one step.
        precision: Keras' dtype policy in training; what is written has the model's own.
        dropout: rate of the Dropout layers in training, or None for their own.
        patience: epochs without improvement after which training stops; 0 never stops it.
        holdout: share of the data that judges, where no validation data are given.
        loss: a Keras loss by name; None reads it off the output and `y`.
        sparsity: share of all kernels' weights that training prunes by magnitude.
        gradual: whether pruning follows the schedule of Zhu & Gupta; None: with `sparsity` yes, with masks no.
        prune_until: share of the steps after which the last weight is gone.
        teacher_weight: share of the distillation in the loss.
        temperature: by which logits are divided in distillation.
        new_head: units of a new last layer, in place of the old one.
        freeze_backbone: whether all but the last layer with weights stay as they are; None: with `new_head` yes.
        freeze: patterns of layer names that stay as they are.
        max_drop: budget in points of the metric (accuracy) against the model that was given; None for none.
        seed: of shuffling, dropout, the split of the data and a new head.
    """

    epochs: int = 20
    batch: int = 32
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    l2: float = 0.0
    accumulate: int = 1
    precision: str = "float32"
    dropout: float | None = None
    patience: int = 5
    holdout: float = 0.1
    loss: str | None = None
    sparsity: float | None = None
    gradual: bool | None = None
    prune_until: float = 0.6
    teacher_weight: float = 0.5
    temperature: float = 3.0
    new_head: int | None = None
    freeze_backbone: bool | None = None
    freeze: tuple[str, ...] = ()
    max_drop: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in _BOUNDS:
            value = getattr(self, name)
            if value is None and getattr(type(self), name) is None:
                continue
            if not isinstance(value, int | float) or not (low <= value <= high and math.isfinite(value)):
                least = f"from {low:g} " if math.isfinite(low) else ""
                raise InputError(f"{_option(name)} {value}: write a number {least}{_up_to(high)}")
        for name, known in (("optimizer", OPTIMIZERS), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise InputError(f"{_option(name)} {getattr(self, name)}: write {', '.join(known[:-1])} or {known[-1]}")

    @property
    def gradually(self) -> bool:
        """Whether weights go along the schedule."""
        return self.sparsity is not None if self.gradual is None else self.gradual

    @property
    def backbone_frozen(self) -> bool:
        """Whether only the last layer with weights learns."""
        return self.new_head is not None if self.freeze_backbone is None else self.freeze_backbone

    def to_json(self) -> dict[str, Any]:
        """For the child process."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        """What `to_json` wrote."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
        return cls(**values)


_BOUNDS = (
    ("epochs", 1, 1_000_000), ("batch", 1, 1_000_000), ("learning_rate", 0, 1000), ("weight_decay", 0, 1),
    ("l2", 0, 1), ("accumulate", 1, 10_000), ("dropout", 0, 0.99), ("patience", 0, 1_000_000), ("holdout", 0, 0.9),
    ("sparsity", 0, 0.999), ("prune_until", 0, 1), ("teacher_weight", 0, 1), ("temperature", 0.01, 1000),
    ("new_head", 1, 1_000_000), ("max_drop", 0, math.inf), ("seed", 0, 2**32 - 1),
)  # fmt: skip


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _up_to(high: float) -> str:
    return f"to {high:g}" if math.isfinite(high) else "up"
