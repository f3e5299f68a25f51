"""One run of training: compile, fit under masks, keep the best, judge. Everything here is handed live objects."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from joulec.errors import BudgetError, InputError, missing_extra
from joulec.ir.shapes import first_line
from joulec.ir.values import Array
from joulec.training import preparing
from joulec.training.examples import Examples, steps_per_epoch
from joulec.training.masked import Masked, Schedule, gradual, prunable, require_finite
from joulec.training.objectives import Objective, distiller
from joulec.training.recipe import Recipe
from joulec.training.tuned import Tuned

Progress = Callable[[str, float | None], None]

SECONDS_BETWEEN = 0.2
"""Progress is told this often at most."""


@dataclass
class Trainer:
    """Tunes one model.

    Args:
        model: a live Keras model, tuned in place.
        objectives: of each output.
        train: what it learns from.
        judge: what judges it.
        masks: name -> mask; what they drop is gone from the start, or at the end of the schedule.
        recipe: how.
        teacher: a live Keras model, or None.
        logs: a folder for TensorBoard, or None.
        progress: told about epochs.
        frozen: names of layers that were frozen, for the result.
        notes: things to say.
    """

    model: Any
    objectives: list[Objective]
    train: Examples
    judge: Examples
    masks: dict[str, Array]
    recipe: Recipe
    named: Mapping[str, Any]
    teacher: Any = None
    logs: Path | None = None
    progress: Progress = lambda message, done: None
    frozen: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    _twin: Any = field(default=None, init=False)

    def run(self) -> Tuned:
        """Train, and keep the best weights under the masks.

        Raises:
            InputError: the data do not fit, or training diverged.
            CheckError: a masked weight is not zero at the end.
            BudgetError: the result misses the budget; the model has the weights that it came with.
        """
        began, before = time.monotonic(), self.model.get_weights()
        try:
            return self._run(before, began)
        except BaseException:
            self.model.set_weights(before)  # a live model is not left half-tuned
            raise

    def _run(self, before: list[Array], began: float) -> Tuned:
        self.progress("judging the model as it is", None)
        original = self._score()
        with Masked(self.named, self._first_masks()) as masked:
            pruned = None if self.recipe.gradually or not self.masks else self._score()
            start = self.model.get_weights()
            history, stopper = self._fit(masked)
            require_finite(self.named)
            tuned, best = self._score(), self._best_epoch(history, stopper)
            reference = pruned or (None if self.masks else original)
            if reference is not None and not self._better(tuned, reference):
                self.model.set_weights(start)
                self.notes.append("no epoch was better than the model before training, whose weights were kept")
                tuned, best = reference, 0
            masked.verify()
            self.masks = masked.masks
        self._require_budget(original, tuned)
        sizes = sum(mask.size for mask in masked.masks.values()), sum(array.size for array in before)
        return Tuned(
            self._metric, self.judge.said, original, pruned, tuned, self._said(), len(history["loss"]), best,
            history, masked.sparsity() if masked.masks else None, sizes, self.frozen,
            round(time.monotonic() - began, 3), tuple(self.notes),
        )  # fmt: skip

    # -- judging ----------------------------------------------------------------------------------------------

    @property
    def _metric(self) -> str:
        """What is judged: the metric of a model with one output, the loss of any other."""
        only = self.objectives[0].metric if len(self.objectives) == 1 else None
        return only or "loss"

    def _score(self) -> dict[str, float]:
        with _explained("judging the model"):
            found = self._judged().evaluate(
                self.judge.x, self.judge.y, batch_size=self._batch(self.judge), verbose=0, return_dict=True
            )
        return {name: float(value) for name, value in found.items()}

    def _judged(self) -> Any:
        """The same layers as a model of their own, so that it need not be compiled anew around each training."""
        import keras

        if self._twin is None:
            inputs = getattr(self.model, "_inputs_struct", None) if getattr(self.model, "inputs", None) else None
            functional = inputs is not None and self.teacher is None
            self._twin = keras.Model(inputs, self.model._outputs_struct) if functional else self.model
        if self._twin is self.model or not self._twin.compiled:
            self._twin.compile(loss=self._loss(), metrics=self._metrics())
        return self._twin

    def _better(self, one: Mapping[str, float], other: Mapping[str, float]) -> bool:
        """Better by the metric, at equal ones by the loss."""
        sign = -1.0 if self._metric == "loss" else 1.0
        return (sign * one[self._metric], -one["loss"]) >= (sign * other[self._metric], -other["loss"])

    def _require_budget(self, original: Mapping[str, float], tuned: Mapping[str, float]) -> None:
        budget = self.recipe.max_drop
        if budget is None:
            return
        if self._metric == "loss":
            raise InputError("--max-drop: there is no accuracy to hold it against, only a loss")
        drop = original[self._metric] - tuned[self._metric]
        if drop > budget:
            raise BudgetError(
                f"{self._metric} drops by {drop:.4f} ({original[self._metric]:.4f} to {tuned[self._metric]:.4f}), "
                f"the budget is {budget:g}; more --epochs, a --teacher or less sparsity may help"
            )

    # -- training ---------------------------------------------------------------------------------------------

    def _fit(self, masked: Masked) -> tuple[dict[str, list[float]], Any]:
        total = self._total_steps()
        kernels = list(prunable(self.named).values())
        with (
            preparing.dropout(self.model, self.recipe.dropout),
            preparing.penalized(kernels, self.recipe.l2),
            preparing.computing_in(self.model, self.recipe.precision),
        ):
            trained = self._trained()
            self._compile(trained, total)
            callbacks, stopper = self._callbacks(masked, total)
            with _explained("training"):
                found = trained.fit(
                    self.train.x, self.train.y, batch_size=self._batch(self.train), epochs=self.recipe.epochs,
                    validation_data=self._validation(), validation_batch_size=self._batch(self.judge),
                    callbacks=callbacks, verbose=0,
                )  # fmt: skip
        self.model.compile(loss=self._loss(), metrics=self._metrics())  # what was traced had the masks in it
        history = {name: [float(value) for value in values] for name, values in found.history.items()}
        if not all(map(math.isfinite, history["loss"])):
            raise InputError("training diverged: the loss is no longer finite; lower --learning-rate")
        return history, stopper

    def _trained(self) -> Any:
        """The model, or the distiller around it."""
        if self.teacher is None:
            return self.model
        if len(self.objectives) > 1:
            raise InputError("--teacher: only models with one output can learn from another, this has several")
        if self.train.weighted:
            self.notes.append("weights of samples do not count beside a teacher: Keras' Distiller takes none")
        recipe = self.recipe
        return distiller(self.model, self.teacher, self.objectives[0], recipe.teacher_weight, recipe.temperature)

    def _compile(self, trained: Any, total: int | None) -> None:
        import keras

        optimizer = self._optimizer(total)
        others = [one for one in self.model.trainable_variables if not one.path.endswith("kernel")]
        optimizer.exclude_from_weight_decay(var_list=others)
        if self.recipe.precision == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        trained.compile(optimizer, loss=self._loss(), metrics=self._metrics(), auto_scale_loss=False)

    def _optimizer(self, total: int | None) -> Any:
        from keras import optimizers

        recipe, rate = self.recipe, self.recipe.learning_rate
        if total is not None:
            rate = optimizers.schedules.CosineDecay(rate, max(1, -(-total // recipe.accumulate)))
        steps = recipe.accumulate if recipe.accumulate > 1 else None
        kind = {"adamw": optimizers.AdamW, "adam": optimizers.Adam, "sgd": optimizers.SGD}[recipe.optimizer]
        more = {"momentum": 0.9} if recipe.optimizer == "sgd" else {}
        return kind(rate, weight_decay=recipe.weight_decay, gradient_accumulation_steps=steps, **more)

    def _callbacks(self, masked: Masked, total: int | None) -> tuple[list[Any], Any]:
        """In the order in which they must see an epoch's end: pruning first, then what looks at the result."""
        import keras

        found, first = [], 0
        if self.recipe.gradually and masked.masks:
            schedule, free, first = self._schedule(total)
            found.append(gradual(masked, schedule, free))
        found += [_telling(self.progress, self.recipe.epochs, total, masked), keras.callbacks.TerminateOnNaN()]
        if self.logs is not None:
            found.append(_tensorboard(self.logs))
        name = "loss" if self._metric == "loss" else self._metric
        stopper = keras.callbacks.EarlyStopping(
            monitor=f"val_{name}", mode="min" if name == "loss" else "max",
            patience=self.recipe.patience or self.recipe.epochs, restore_best_weights=True, start_from_epoch=first,
        )  # fmt: skip
        if self.judge is not self.train:
            found.append(stopper)
        return found, stopper

    def _best_epoch(self, history: Mapping[str, list[float]], stopper: Any) -> int:
        return len(history["loss"]) if stopper.best_weights is None else int(stopper.best_epoch) + 1

    def _schedule(self, total: int | None) -> tuple[Schedule, dict[str, Array] | None, int]:
        """The schedule, what may go, and the first epoch whose weights have all masks."""
        if total is None:
            raise InputError("a schedule needs to know how many batches there are: give the Dataset a cardinality")
        steps = max(1, round(self.recipe.prune_until * total))
        free = None if self.recipe.sparsity is not None else {name: ~mask for name, mask in self.masks.items()}
        share = 1.0 if self.recipe.sparsity is None else self.recipe.sparsity
        return Schedule.over(share, steps), free, steps // max(1, total // self.recipe.epochs)

    def _first_masks(self) -> dict[str, Array]:
        if not self.recipe.gradually:
            return dict(self.masks)
        return {name: np.ones(mask.shape, bool) for name, mask in self.masks.items()}

    # -- small things -----------------------------------------------------------------------------------------

    def _loss(self) -> Any:
        losses = [one.loss for one in self.objectives]
        return losses[0] if len(losses) == 1 else dict(zip(self.model.output_names, losses, strict=True))

    def _metrics(self) -> Any:
        only = self.objectives[0].metric if len(self.objectives) == 1 else None
        return [only] if only else None

    def _said(self) -> str:
        said = "; ".join(dict.fromkeys(one.said for one in self.objectives))
        if self.teacher is None:
            return said
        weight = self.recipe.teacher_weight
        return f"{1 - weight:g} x {said} + {weight:g} x distillation at temperature {self.recipe.temperature:g}"

    def _batch(self, examples: Examples) -> int | None:
        return None if examples.streamed else self.recipe.batch

    def _total_steps(self) -> int | None:
        steps = steps_per_epoch(self.train, self.recipe.batch)
        return None if steps is None else steps * self.recipe.epochs

    def _validation(self) -> Any:
        if self.judge is self.train:
            return None
        return self.judge.x if self.judge.streamed else (self.judge.x, self.judge.y)


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """What Keras and TensorFlow raise over data that do not fit, in one line."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError, KeyError, IndexError) as error:
        raise InputError(f"{what} failed: {first_line(error)}") from error
    except Exception as error:
        if type(error).__module__.startswith("tensorflow"):
            raise InputError(f"{what} failed: {first_line(error)}") from error
        raise


def _tensorboard(folder: Path) -> Any:
    """Keras' own callback.

    Raises:
        UnavailableError: the package that writes its files is not installed.
    """
    import keras

    if importlib.util.find_spec("tensorboard") is None:
        raise missing_extra("tensorboard", "tensorboard", "writing logs for TensorBoard")
    return keras.callbacks.TensorBoard(str(folder), write_graph=False, profile_batch=0)


def _telling(progress: Progress, epochs: int, total: int | None, masked: Masked) -> Any:
    import keras

    class Telling(keras.callbacks.Callback):  # type: ignore[misc]
        """Tells how far training is, and adds the sparsity to what is logged."""

        def __init__(self) -> None:
            super().__init__()
            self.epoch, self.step, self.said, self.told = 0, 0, "", 0.0

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.epoch = epoch

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.step += 1
            if time.monotonic() - self.told > SECONDS_BETWEEN:
                self.told = time.monotonic()
                done = None if total is None else self.step / max(total, 1)
                progress(f"epoch {self.epoch + 1} of {epochs}{self.said}", done)

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logs = {} if logs is None else logs
            name = next((one for one in ("val_accuracy", "val_loss", "loss") if one in logs), None)
            self.said = "" if name is None else f", {name.removeprefix('val_')} {logs[name]:.4g}"
            if masked.masks:
                logs["sparsity"] = masked.sparsity()

    return Telling()
