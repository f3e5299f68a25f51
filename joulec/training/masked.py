"""Masks that hold while Keras trains: after every step of any optimizer a masked weight is exactly zero.

Keras calls the constraint of a variable behind each update and before anybody reads it, in every optimizer, with
gradient accumulation and with loss scaling alike. A mask is such a constraint, on the variable and not on the layer:
so it follows shared layers and nested models, and the saved model does not know of it. The masks themselves are
variables, so that a schedule may change them without tracing the training step again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from joulec.errors import CheckError, InputError
from joulec.ir.values import Array

SMALLEST = 64
"""Weights with fewer elements are not pruned, as in `prune-magnitude`."""

KERNELS = ("*kernel",)
"""How Keras' layers call what they multiply with."""


def prunable(named: Mapping[str, Any]) -> dict[str, Any]:
    """The kernels among named variables: of rank 2 at least, not too small, and learning."""
    return {
        name: variable for name, variable in named.items()
        if len(variable.shape) >= 2 and math.prod(variable.shape) >= SMALLEST and variable.trainable
        and any(fnmatchcase(name, pattern) for pattern in KERNELS)
    }  # fmt: skip


@dataclass
class Masked:
    """Variables held at zero where their masks say so; use it as a context, which ends with their own constraints.

    Args:
        named: the model's variables by name.
        masks: name -> boolean array of the variable's shape, True = kept.
    """

    named: Mapping[str, Any]
    masks: dict[str, Array]

    def __enter__(self) -> Masked:
        import keras

        self._held = {name: keras.Variable(mask, dtype="bool", trainable=False) for name, mask in self.masks.items()}
        self._own = {name: self.named[name].constraint for name in self.masks}
        for name, held in self._held.items():
            variable = self.named[name]
            variable.constraint = _constraint(held, self._own[name])
            variable.assign(keras.ops.where(held, variable, keras.ops.zeros_like(variable)))
        return self

    def __exit__(self, *_: object) -> None:
        for name, own in self._own.items():
            self.named[name].constraint = own

    def change(self, masks: Mapping[str, Array]) -> None:
        """Other masks for some of the variables, from this step on."""
        for name, mask in masks.items():
            self.masks[name] = mask
            self._held[name].assign(mask)
            variable = self.named[name]
            variable.assign(np.where(mask, np.asarray(variable.numpy()), 0).astype(str(variable.dtype)))

    def sparsity(self) -> float:
        """Share of the masked variables' weights that are gone."""
        total = sum(mask.size for mask in self.masks.values())
        return sum(int(mask.size - np.count_nonzero(mask)) for mask in self.masks.values()) / max(total, 1)

    def verify(self) -> None:
        """Look whether the masks held.

        Raises:
            CheckError: a masked weight is not zero.
        """
        for name, mask in self.masks.items():
            if np.any(np.asarray(self.named[name].numpy())[~mask]):
                raise CheckError(f"weight '{name}' is not zero where its mask says so; something wrote to it")


def _constraint(mask: Any, own: Any) -> Any:
    """A Keras constraint: the variable's own one, seeing and leaving zeros where the mask has them."""
    import keras

    class KeepMask(keras.constraints.Constraint):  # type: ignore[misc]
        """w * mask."""

        def __call__(self, weight: Any) -> Any:
            kept = keras.ops.where(mask, weight, keras.ops.zeros_like(weight))
            return kept if own is None else keras.ops.where(mask, own(kept), keras.ops.zeros_like(weight))

    return KeepMask()


# -- the gradual schedule -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """Sparsity by step: final * (1 - (1 - step / steps)^3), Zhu & Gupta 2017, equation 1, from nothing.

    Attributes:
        final: the sparsity at the end, 0 to 1.
        steps: the step at which it is reached.
        every: steps from one pruning to the next, in which the model recovers.
    """

    final: float
    steps: int
    every: int

    @classmethod
    def over(cls, final: float, steps: int) -> Schedule:
        """A schedule that prunes about a hundred times."""
        return cls(final, max(steps, 1), max(1, steps // 100))

    def at(self, step: int) -> float:
        """The sparsity due at a step, counted from 0."""
        done = min(1.0, step / self.steps)
        return self.final if done >= 1.0 else self.final * (1.0 - (1.0 - done) ** 3)

    def due(self, step: int) -> bool:
        """Whether to prune before this step."""
        return step <= self.steps and (step % self.every == 0 or step == self.steps)


def smallest(weights: Mapping[str, Array], share: float, free: Mapping[str, Array] | None = None) -> dict[str, Array]:
    """Masks that drop the smallest `share` of all these weights together, O(weights).

    Args:
        weights: name -> numbers.
        share: of the elements that may be dropped.
        free: name -> boolean array, True where a weight may be dropped; everywhere if None.

    Returns:
        name -> mask, True = kept. Exactly round(share * elements) are dropped; among equals, those that come first.
    """
    allowed = {name: np.ones(array.shape, bool) if free is None else free[name] for name, array in weights.items()}
    sizes = np.concatenate([np.abs(array[allowed[name]]).astype(np.float32) for name, array in weights.items()])
    count = round(share * sizes.size)
    kept = np.ones(sizes.size, bool)
    kept[np.argsort(sizes, kind="stable")[:count]] = False
    masks, start = {}, 0
    for name, places in allowed.items():
        mask, end = np.ones(places.shape, bool), start + int(np.count_nonzero(places))
        mask[places] = kept[start:end]
        masks[name], start = mask, end
    return masks


def gradual(masked: Masked, schedule: Schedule, free: Mapping[str, Array] | None) -> Any:
    """A Keras callback that prunes along the schedule, the smallest of what may go first.

    Args:
        masked: what is held.
        schedule: its `final` is the share of what may go.
        free: see `smallest`.
    """
    import keras

    class Pruning(keras.callbacks.Callback):  # type: ignore[misc]
        """Counts steps, and prunes before those that are due."""

        def __init__(self) -> None:
            super().__init__()
            self.step = 0

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if schedule.due(self.step):
                self.prune()
            self.step += 1

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if self.step == schedule.steps:  # the last step of training: no batch begins after it
                self.prune()

        def prune(self) -> None:
            weights = {name: np.asarray(masked.named[name].numpy()) for name in masked.masks}
            masked.change(smallest(weights, schedule.at(self.step), free))

    return Pruning()


def require_finite(named: Mapping[str, Any]) -> None:
    """Look whether training kept the weights finite.

    Raises:
        InputError: it did not.
    """
    for name, variable in named.items():
        array = np.asarray(variable.numpy())
        if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
            raise InputError(f"training diverged: weight '{name}' is no longer finite; lower --learning-rate")
