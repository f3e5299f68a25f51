"""A build as TensorBoard scalars: what each pass did, and the input model beside the artefact."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path

from joulec.errors import InputError, missing_extra
from joulec.report.data import Report

Scalar = tuple[str, float, int]
"""(tag, value, step)."""


def require() -> None:
    """Say that something is missing before any work.

    Raises:
        UnavailableError: tensorboard is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise missing_extra("tensorboard", "tensorboard", "--tensorboard")


def scalars(report: Report) -> Iterator[Scalar]:
    """Every number of a report that has a place on an axis.

    `passes/...` has a step a pass, the input model being step 0; `build/...` and `operators/...` have the input model
    at step 0 and the artefact at step 1; `int8/...` has a step a set of operators that was tried.
    """
    yield from _passes(report)
    yield from _build(report)
    for op, before, after in () if report.energy is None else report.energy.by_op:
        yield f"operators/{op}", before or 0.0, 0
        yield f"operators/{op}", after or 0.0, 1
    for step, point in enumerate(report.points):
        measured = {"drop": point.drop, "speed": point.ratio, "joules": point.joules, "operators": point.operators}
        yield from ((f"int8/{name}", float(value), step) for name, value in measured.items() if value is not None)


def _passes(report: Report) -> Iterator[Scalar]:
    done = [step for step in report.steps if step.status in ("applied", "unchanged")]
    for index, step in enumerate(done):
        if index == 0:
            yield "passes/nodes", step.nodes_before, 0
            yield from _known("passes/joules", step.joules_before, 0)
        yield "passes/nodes", step.nodes_after, index + 1
        yield from _known("passes/joules", step.joules_after, index + 1)


def _build(report: Report) -> Iterator[Scalar]:
    pairs: dict[str, tuple[float | None, float | None]] = {
        "nodes": (report.nodes_before, report.nodes_after), "weight_bytes": (report.size_before, report.size_after),
    }  # fmt: skip
    if report.energy is not None:
        pairs["joules"] = report.energy.before["total_joules"], report.energy.after["total_joules"]
    if report.latency is not None:
        pairs["milliseconds"] = report.latency.before_ms, report.latency.after_ms
    if report.accuracy is not None:
        pairs[report.accuracy.name] = report.accuracy.before, report.accuracy.after
    for name, (before, after) in pairs.items():
        yield from _known(f"build/{name}", before, 0)
        yield from _known(f"build/{name}", after, 1)


def _known(tag: str, value: float | None, step: int) -> Iterator[Scalar]:
    if value is not None:
        yield tag, float(value), step


def write(report: Report, folder: Path) -> None:
    """Add an event file with the report's scalars to a run's folder.

    Raises:
        UnavailableError: tensorboard is not installed.
        InputError: the folder cannot be written.
    """
    require()
    from tensorboard.summary.writer.record_writer import RecordWriter  # the one writer that loads no TensorFlow

    now = time.time()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"events.out.tfevents.{now:.6f}.joulec").open("xb") as file:
            writer = RecordWriter(file)
            for event in _events(report, now):
                writer.write(event)
            writer.flush()
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror or error}") from error


def _events(report: Report, now: float) -> Iterator[bytes]:
    """The records of an event file: its version, then an event a scalar."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    yield Event(wall_time=now, file_version="brain.Event:2").SerializeToString()
    for tag, value, step in scalars(report):
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
        yield Event(wall_time=now, step=step, summary=summary).SerializeToString()
