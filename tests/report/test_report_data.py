"""The report as data: to JSON and back."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from report_sample import EVIL, report

from joulec.report.data import Report


def test_a_report_survives_json():
    one = report(EVIL)
    assert Report.from_json(json.loads(json.dumps(one.to_json()))) == dataclasses.replace(
        one, energy=Report.from_json(one.to_json()).energy
    )
    assert Report.from_json(one.to_json()).to_json() == one.to_json()


def test_infinite_deviations_are_valid_json():
    step = dataclasses.replace(report().steps[0], deviation=math.inf)
    text = json.dumps(step.to_json(), allow_nan=False)
    assert type(step).from_json(json.loads(text)).deviation == math.inf


def test_an_unknown_key_is_an_error():
    with pytest.raises((TypeError, KeyError)):
        Report.from_json({**report().to_json(), "surprise": 1})


def test_keys_that_others_rely_on():
    assert list(report().to_json()) == [
        "joulec", "model", "format", "target", "device", "status", "orders", "steps", "decisions", "nodes_before",
        "nodes_after", "size_before", "size_after", "accuracy", "latency", "energy", "checks", "sparsity", "notes",
        "parity", "files", "directory", "points", "shapes", "max_energy", "costs", "tensors",
        "compressed_before", "compressed_after",
    ]  # fmt: skip
    assert list(report().to_json()["steps"][0]) == [
        "spelling", "fidelity", "status", "rewrites", "rules", "refusals", "refusal_count", "notes", "nodes_before",
        "nodes_after", "joules_before", "joules_after", "seconds", "deviation", "reason",
    ]  # fmt: skip


def test_without_timings_only_the_seconds_are_gone():
    bare = report().without_timings()
    assert all(step.seconds is None for step in bare.steps)
    assert dataclasses.replace(bare, steps=report().steps) == report()
