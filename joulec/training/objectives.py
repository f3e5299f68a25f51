"""Losses and metrics read off a model's outputs and its labels, and distillation from a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from joulec.errors import InputError
from joulec.training.examples import Examples, flat


@dataclass(frozen=True)
class Objective:
    """What one output is trained for.

    Attributes:
        loss: a Keras loss.
        metric: a Keras metric's name, or None where the loss itself is what counts.
        from_logits: whether the output is not normalized yet; None where it is no distribution.
        said: for the result.
    """

    loss: Any
    metric: str | None
    from_logits: bool | None
    said: str


def objectives(model: Any, examples: Examples, named: str | None) -> list[Objective]:
    """The objective of each output.

    Args:
        model: the Keras model.
        examples: their labels tell integers from one-hot rows from numbers.
        named: a Keras loss by name, for every output; None reads it off.

    Raises:
        InputError: labels do not fit an output, or no such loss.
    """
    outputs, labels = list(getattr(model, "outputs", None) or [None]), flat(examples.labels)
    if len(outputs) != len(labels):
        raise InputError(f"{examples.said}: labels for {len(labels)} outputs, the model has {len(outputs)}")
    return [_objective(output, np.asarray(y), named, examples) for output, y in zip(outputs, labels, strict=True)]


def _objective(output: Any, y: Any, named: str | None, examples: Examples) -> Objective:
    from keras import losses

    activation = activation_of(output)
    width = None if output is None else output.shape[-1]
    normalized = activation in ("softmax", "sigmoid")
    if named is not None:
        return _by_name(named, activation)
    rank = y.ndim if output is None else len(output.shape)
    whole = y.dtype.kind in "iub"
    if whole and (y.ndim == rank - 1 or y.shape[-1:] == (1,)) and width is not None and width > 1:
        _require_classes(y, width, examples)
        return Objective(
            losses.SparseCategoricalCrossentropy(from_logits=not normalized), "accuracy", not normalized,
            f"sparse categorical cross-entropy of {_of(normalized)}",
        )  # fmt: skip
    if activation == "softmax":
        return Objective(losses.CategoricalCrossentropy(), "accuracy", False, "categorical cross-entropy")
    if activation == "sigmoid" or (whole and width == 1 and set(np.unique(y)) <= {0, 1}):
        loss = losses.BinaryCrossentropy(from_logits=not normalized)
        return Objective(loss, "binary_accuracy", not normalized, f"binary cross-entropy of {_of(normalized)}")
    return Objective(losses.MeanSquaredError(), None, None, "mean squared error")


def _of(normalized: bool) -> str:
    return "probabilities" if normalized else "logits"


def _require_classes(y: Any, width: int, examples: Examples) -> None:
    low, high = int(y.min(initial=0)), int(y.max(initial=0))
    if low < 0 or high >= width:
        hint = "; --new-head gives it another last layer" if high >= width else ""
        raise InputError(f"{examples.said}: labels lie between {low} and {high}, the model has {width} classes{hint}")


def _by_name(named: str, activation: str | None) -> Objective:
    from keras import losses

    try:
        loss = losses.get(named)
    except (ValueError, TypeError):
        raise InputError(f"--loss {named}: Keras knows no such loss; one is 'mean_squared_error'") from None
    crossed = "crossentropy" in named.lower().replace("_", "")
    logits = crossed and activation not in ("softmax", "sigmoid")
    if logits and not isinstance(loss, losses.Loss):
        name = "".join(part.title() for part in named.split("_")) if "_" in named else named
        loss = getattr(losses, name, None)
        loss = None if loss is None else loss(from_logits=True)
    if loss is None:
        raise InputError(f"--loss {named}: write it as Keras does, e.g. 'sparse_categorical_crossentropy'")
    return Objective(loss, "accuracy" if crossed else None, logits if crossed else None, named)


def activation_of(output: Any) -> str | None:
    """`softmax`, `sigmoid` or whatever else an output has been through last; None where it is not known."""
    operation = getattr(getattr(output, "_keras_history", None), "operation", None)
    if operation is None:
        return None
    inner = getattr(operation, "outputs", None)
    if inner and hasattr(operation, "layers"):  # a nested model ends with a layer of its own
        return activation_of(inner[0])
    activation = getattr(operation, "activation", None)
    return getattr(activation, "__name__", type(operation).__name__.lower())


def distiller(student: Any, teacher: Any, objective: Objective, weight: float, temperature: float) -> Any:
    """Keras' Distiller around a student; its loss has the student's regularizers too, which Keras leaves out.

    Args:
        student: trains.
        teacher: does not.
        objective: what the student is trained for by itself.
        weight: share of the distillation in the loss.
        temperature: by which logits are divided (Hinton, Vinyals & Dean 2015).

    Raises:
        InputError: the two do not take and give the same.
    """
    import keras

    class Regularized(keras.distillation.Distiller):  # type: ignore[misc]
        """The loss of the Distiller, and the penalties of the student's layers."""

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            total = super().compute_loss(*args, **kwargs)
            penalties = self.student.losses
            return total + keras.ops.cast(sum(penalties), total.dtype) if penalties else total

    try:
        return Regularized(
            teacher, student, _distillation(objective, temperature), student_loss_weight=1.0 - weight, name=student.name
        )
    except ValueError as error:
        raise InputError(f"--teacher: {str(error).splitlines()[0]}") from error


def _distillation(objective: Objective, temperature: float) -> Any:
    """Soft targets where the outputs are a distribution over classes; else the difference of the outputs."""
    import keras

    base = keras.distillation.LogitsDistillation
    if objective.from_logits is None or objective.metric != "accuracy":
        return base(temperature=1.0, loss="mean_squared_error")
    divergence = keras.losses.KLDivergence()  # as an object: by name, Keras 3.15 takes it of the logits themselves
    if objective.from_logits:
        return base(temperature=temperature, loss=divergence)

    class OfProbabilities(base):  # type: ignore[misc, valid-type]
        """Logits are the logarithms of probabilities, up to a constant that softmax does not see."""

        def compute_loss(self, teacher_outputs: Any, student_outputs: Any, **kwargs: Any) -> Any:
            least = keras.config.epsilon()
            logits = [keras.ops.log(keras.ops.maximum(one, least)) for one in (teacher_outputs, student_outputs)]
            return super().compute_loss(*logits, **kwargs)

    return OfProbabilities(temperature=temperature, loss=divergence)
