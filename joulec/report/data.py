"""The report as data: what `--json` prints, what manifest.json keeps, what the terminal and the HTML page draw."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

MAX_REFUSALS = 200
"""Refusals listed per pass; their number is always exact."""


@dataclass(frozen=True)
class Data:
    """A frozen dataclass that turns into JSON and back."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the field names as keys."""
        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            TypeError, KeyError, ValueError: not what `to_json` wrote: the file is foreign or was tampered with.
        """
        if not isinstance(data, Mapping):
            raise TypeError(f"{cls.__name__} must be an object")
        hints = typing.get_type_hints(cls)
        if unknown := sorted(set(data) - set(hints)):
            raise TypeError(f"unknown key {unknown[0]!r:.60}")
        return cls(**{name: _typed(hints[name], value) for name, value in data.items()})


def plain(value: Any) -> Any:
    """Any of joulec's values as what JSON can hold; infinities and NaN become strings."""
    if isinstance(value, Data):
        return value.to_json()
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no infinity and no NaN
    return value


def _typed(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return _typed(next(a for a in arguments if a is not type(None)), value)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError(f"{value!r:.60} is no list")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_typed(kind, item) for kind, item in zip(kinds, value, strict=True))
    if isinstance(hint, type) and issubclass(hint, Data):
        return hint.from_json(value)
    if hint is float and not isinstance(value, bool):
        return float(value)  # infinity and NaN are strings in JSON
    if isinstance(hint, type) and (not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool)):
        raise TypeError(f"{value!r:.60} is not of type {hint.__name__}")
    return value


@dataclass(frozen=True)
class RefusalReport(Data):
    """A rewrite that was not made."""

    rule: str
    node: str
    reason: str


@dataclass(frozen=True)
class StepReport(Data):
    """What one pass did.

    Attributes:
        spelling: the pass with its options.
        fidelity: `exact` or `lossy`.
        status: `applied`, `unchanged`, `rolled back`, or `dropped` (made, then undone because it did not pay).
        rules: rewrites made, by rule.
        refusals: the first `MAX_REFUSALS`; `refusal_count` counts all.
        joules_before, joules_after: predicted joules per inference around this pass, if priced.
        seconds: time in the pass.
        deviation: measured deviation of the outputs, relative to their largest magnitude, for exact passes.
        reason: why it was rolled back or dropped.
    """

    spelling: str
    fidelity: str
    status: str
    rewrites: int
    rules: dict[str, int]
    refusals: tuple[RefusalReport, ...]
    refusal_count: int
    notes: tuple[str, ...]
    nodes_before: int
    nodes_after: int
    joules_before: float | None = None
    joules_after: float | None = None
    seconds: float | None = None
    deviation: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Decision(Data):
    """Something kept or dropped.

    Attributes:
        what: e.g. `exact passes`, `INT8`.
        kept: whether it is in the artefact.
        ordered: whether the user ordered it; otherwise joulec chose, and it had to pay.
        reason: in plain words, with the numbers.
        ratio, low, high: measured time before over after, with its 95 % interval, where it was timed.
        drop: loss of accuracy in absolute points, where it was judged.
        basis: `measured` or `predicted`: what decided where joulec chose by cost; None where something else did.
        saved, saved_low, saved_high: joules saved per inference, with their paired interval, where they were predicted.
    """

    what: str
    kept: bool
    ordered: bool
    reason: str
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    drop: float | None = None
    basis: str | None = None
    saved: float | None = None
    saved_low: float | None = None
    saved_high: float | None = None


@dataclass(frozen=True)
class Point(Data):
    """One set of operators that was tried in INT8.

    Attributes:
        operators: how many compute in integers, of `total` that could.
        drop: loss of accuracy in absolute points, where it was judged.
        bound: what the drop stays below on other data of this kind, 5 times in 6, where that can be told.
        ratio, low, high: time of the float model over its own, with its 95 % interval, where it was timed.
        joules: predicted per inference, where every operator has a price.
        kept: whether it is the one in the artefact.
        reason: why it is not, or None.
    """

    operators: int
    total: int
    drop: float | None = None
    bound: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    joules: float | None = None
    kept: bool = False
    reason: str | None = None


@dataclass(frozen=True)
class Cost(Data):
    """What one operator costs in accuracy where it alone computes in integers.

    Attributes:
        node, op: the operator, by the value that it makes.
        noise: squared error in the outputs over the squares of the outputs.
    """

    node: str
    op: str
    noise: float


@dataclass(frozen=True)
class Tensor(Data):
    """A calibrated activation.

    Attributes:
        name: of the value.
        low, high: its range in 8 bits.
        method: how that was chosen.
        sqnr: signal over quantization noise in decibel, on the data.
        saturated: share of its numbers outside of the range.
    """

    name: str
    low: float
    high: float
    method: str
    sqnr: float | None = None
    saturated: float | None = None


@dataclass(frozen=True)
class Accuracy(Data):
    """Accuracy of the input model and of the artefact; `name` is `metric` or `fidelity`.

    Attributes:
        samples: how many it was judged on, where that is known.
        bound: what the drop stays below on other data of this kind, 5 times in 6, where that can be told.
    """

    name: str
    before: float
    after: float
    drop: float
    budget: float | None
    feeds: str
    samples: int | None = None
    bound: float | None = None


@dataclass(frozen=True)
class Latency(Data):
    """Paired latency on one machine, named `machine`; `ratio` is before over after, above 1 is faster."""

    before_ms: float
    after_ms: float
    ratio: float
    low: float
    high: float
    rounds: int
    threads: int
    machine: str = ""


@dataclass(frozen=True)
class Roofs(Data):
    """What bounds kernels on a device: peaks in operations per second and bandwidths in bytes per second, by name."""

    compute: tuple[tuple[str, float], ...]
    memory: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class EnergyChange(Data):
    """Predicted joules per inference, before and after, as `Estimate.to_json()` gives them.

    Attributes:
        by_op: rows (operator, joules before, joules after); None where nothing known has that operator.
        change: joules saved with the paired interval, and whether the model can tell (see joulec.energy).
        layers: node of the artefact -> path of the source model's node that it stands for, where that is another one.
        roofs: of the device that is priced, as far as the artefact uses them.
    """

    before: dict[str, Any]
    after: dict[str, Any]
    by_op: tuple[tuple[str, float | None, float | None], ...]
    change: dict[str, Any] | None = None
    layers: dict[str, str] = field(default_factory=dict)
    roofs: Roofs | None = None


@dataclass(frozen=True)
class RungReport(Data):
    """One rung of the ladder of evidence."""

    name: str
    status: str
    detail: str


@dataclass(frozen=True)
class Sparsity(Data):
    """Weights that a mask keeps, of all weights in one initializer."""

    tensor: str
    kept: int
    total: int


@dataclass(frozen=True)
class Report(Data):
    """Everything that one build for one target has to say.

    Attributes:
        joulec: joulec's version.
        model: the input's file name, or what it was.
        format: `keras`, `saved-model`, `tflite`, `torch`, `onnx` or `memory`.
        target: the execution provider compiled for.
        status: `written` or `up to date`.
        orders: what the user ordered, in their spelling.
        files: name -> bytes of the artefact's files.
        parity: how lowering compared with the source framework, or None for ONNX input.
        points: sets of operators that were tried in INT8, with accuracy, time and predicted energy.
        shapes: the sizes that the user gave to open dimensions, in their spelling.
        max_energy: the most joules per inference that the user allowed.
        costs: what single operators cost in accuracy, where there was time to measure it.
        tensors: calibrated activations of the artefact.
        compressed_before, compressed_after: bytes of the weights behind deflate, where masks put zeros into them; None
            elsewhere, and where there are more than 1 GiB of weights.
    """

    joulec: str
    model: str
    format: str
    target: str
    device: str
    status: str
    orders: tuple[str, ...]
    steps: tuple[StepReport, ...]
    decisions: tuple[Decision, ...]
    nodes_before: int
    nodes_after: int
    size_before: int
    size_after: int
    accuracy: Accuracy | None = None
    latency: Latency | None = None
    energy: EnergyChange | None = None
    checks: tuple[RungReport, ...] = ()
    sparsity: tuple[Sparsity, ...] = ()
    notes: tuple[str, ...] = ()
    parity: dict[str, Any] | None = None
    files: dict[str, int] = field(default_factory=dict)
    directory: str | None = None
    points: tuple[Point, ...] = ()
    shapes: tuple[str, ...] = ()
    max_energy: float | None = None
    costs: tuple[Cost, ...] = ()
    tensors: tuple[Tensor, ...] = ()
    compressed_before: int | None = None
    compressed_after: int | None = None

    def without_timings(self) -> Report:
        """The same report with every measured time left out: what must be identical on a rebuild."""
        steps = tuple(dataclasses.replace(step, seconds=None) for step in self.steps)
        return dataclasses.replace(self, steps=steps)
