"""`joulec lint`: what a target has against a model that somebody made, and the same model mended."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from joulec.api import model_file, writable_file
from joulec.backends import Backend, artefact, backend
from joulec.build import Shapes, runner_for, synthetic_probes
from joulec.data import load_feeds
from joulec.errors import InputError, JoulecError
from joulec.ir.feeds import Feed
from joulec.ir.lower import lower
from joulec.ir.module import Module
from joulec.ir.runner import Runner
from joulec.passes._qdq_lint import ERROR, NOTE, RULES, Finding, lint
from joulec.passes.base import Context, Pass
from joulec.passes.equivalence import require_equal
from joulec.passes.pipeline import PROBES, Pipeline

if TYPE_CHECKING:
    from joulec.ir.sandbox import Limits


@dataclass(frozen=True)
class Linted:
    """What `joulec lint` found.

    Attributes:
        model: the file's name.
        target: whose rules.
        findings: of the model as it was.
        fixed: where the mended model was written, None if it was not asked for.
        left: findings of the mended model.
        rewrites: what was done, by rule.
        refusals: what was not done, and why.
        deviation: how far the mended model's worst output is from the model's, relative to its largest magnitude;
            None where they could not be run, or where integers of theirs differ, which have no such measure.
        feeds: what they were run on.
    """

    model: str
    target: str
    findings: tuple[Finding, ...]
    fixed: str | None = None
    left: tuple[Finding, ...] = ()
    rewrites: dict[str, int] | None = None
    refusals: tuple[str, ...] = ()
    deviation: float | None = None
    feeds: str | None = None

    @property
    def remaining(self) -> tuple[Finding, ...]:
        """What there is to say of the model that the user now has."""
        return self.findings if self.fixed is None else self.left

    def ok(self, strict: bool = False) -> bool:
        """Whether no error remains; under `strict`, no warning either."""
        return not any(one.severity == ERROR or (strict and one.severity != NOTE) for one in self.remaining)

    def to_json(self) -> dict[str, Any]:
        """As JSON, with the number of findings of each severity."""
        counts = Counter(one.severity for one in self.remaining)
        return {**asdict(self), "counts": dict(sorted(counts.items())), "ok": self.ok()}


def check(
    model: Any, target: str = "tensorrt", fix: str | Path | None = None, *, shape: Shapes | None = None,
    data: Any = None, limits: Limits | None = None, trust_code: bool = False,
    custom_ops: Sequence[str | Path] = (), seed: int = 0,
) -> Linted:  # fmt: skip
    """Look a model up in the rules of `target`; with `fix`, write it mended.

    Args:
        model: anything `optimize` takes, or an artefact's directory.
        target: `tensorrt`, `cuda` or `cpu`.
        fix: the .onnx file to write; only rules of TensorRT's have a fix.
        shape: sizes of symbolic dimensions for comparing the two.
        data: feeds to compare them on; made-up ones if None.

    Raises:
        InputError: no such target or model, or no fix for that target.
    """
    one = backend(target)
    destination = None if fix is None else writable_file(fix)
    if destination is not None and not one.mending():
        raise InputError(f"--fix: {target} has rules but no fixes; 'joulec optimize --target {target}' emits for it")
    libraries = tuple(map(Path, custom_ops))
    module = lower(model_file(model), trust_code=trust_code, limits=limits, custom_ops=libraries).module
    name = Path(model).name if isinstance(model, str | Path) else type(model).__name__
    found = Linted(name, target, tuple(lint(module.clone(), one.kernels)))
    if destination is None:
        return found
    with runner_for(limits) as runner:
        feeds, said = _feeds(module, data, shape or {}, seed)
        return _mended(found, module, one, destination, runner, feeds, said)


def _feeds(module: Module, data: Any, shapes: Shapes, seed: int) -> tuple[Sequence[Feed], str]:
    if data is None:
        return synthetic_probes(module, shapes, seed)[0], "made-up feeds"
    given = load_feeds(data, module.inputs(), shapes=shapes, seed=seed)
    return given.head(PROBES), given.description


def _mended(
    found: Linted, module: Module, one: Backend, destination: Path, runner: Runner, feeds: Sequence[Feed], said: str
) -> Linted:
    passes: list[Pass] = one.mending()
    outcome = Pipeline(passes).run(module, Context(one.target, runner=runner))
    failed = next((step for step in outcome.steps if step.status == "rolled back"), None)
    if failed is not None:
        raise InputError(f"--fix: {failed.spelling} was rolled back: {failed.reason}")
    with artefact.replacing_file(destination) as staging:
        one.finished(outcome.module).save(staging)
    rules: Counter[str] = Counter(rewrite.rule for step in outcome.steps for rewrite in step.result.rewrites)
    refusals = [f"{r.node}: {r.rule}: {r.reason}" for step in outcome.steps for r in step.result.refusals]
    return replace(
        found, fixed=str(destination), left=tuple(lint(outcome.module.clone(), one.kernels)),
        rewrites=dict(sorted(rules.items())), refusals=tuple(dict.fromkeys(refusals)),
        deviation=_deviation(module, outcome.module, runner, feeds), feeds=said,
    )  # fmt: skip


def _deviation(before: Module, after: Module, runner: Runner, feeds: Sequence[Feed]) -> float | None:
    if not feeds:
        return None
    try:
        worst = require_equal(before, after, runner, list(feeds))
    except JoulecError:
        return None
    return None if worst is None or not math.isfinite(worst.value) else worst.value


def rules_of(target: str) -> list[dict[str, str]]:
    """The rules of a target: name, severity, and what it means."""
    return [
        {"rule": name, "severity": severity, "text": text}
        for name, (severity, text, targets) in RULES.items()
        if target in targets
    ]
