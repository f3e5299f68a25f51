"""A lock made by hand, of a model with four Adds and two Convs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from joulec.gating.lock import Lock, LockedAccuracy, LockedEnergy, LockedLatency, LockedModel, LockedOperator

TERMS = {"energy:fp32": 4e7, "launch": 6.0, "memory:cache": 4e5, "static:launch": 6.0}
OPERATORS = {"Add": LockedOperator(4, 1e-4, 100, 400), "Conv": LockedOperator(2, 2e-3, 10**6, 4000)}
MACHINE = "a CPU (x86_64, features 0, 2 cores)"

LOCK = Lock(
    "0.1.0", "m.onnx", "cpu", ("batch=8",), LockedModel(1000, 6, "ab" * 32),
    LockedEnergy("generic-server-cpu", "sha256:0", 2.1e-3, 7e-4, 6.3e-3, TERMS, OPERATORS),
    {"INT8": "kept"}, LockedLatency(2.0, 1.9, 2.1, 5.0, MACHINE, 1), LockedAccuracy("metric", "its own", 0.98, 0.004),
)  # fmt: skip


def lock(**changes: Any) -> Lock:
    """The sample with other values; `operators`, `unknown`, `terms` and `joules` are those of its energy."""
    inside = {name: changes.pop(name) for name in ("operators", "unknown", "terms", "joules") if name in changes}
    return replace(LOCK, energy=replace(LOCK.energy, **inside), **changes)
