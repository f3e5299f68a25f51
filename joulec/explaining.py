"""`joulec explain`: where each node comes from, what the exact passes would do to it, and what nearly matched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from joulec.api import SIMPLIFY, model_file, run_exact
from joulec.backends import artefact
from joulec.build import Progress, Shapes
from joulec.errors import InputError
from joulec.ir import walk
from joulec.ir.lower import lower
from joulec.ir.module import Module
from joulec.ir.provenance import history_of, sources_of, without_provenance
from joulec.passes.base import Context, Pass
from joulec.passes.default import exact_passes, simplifying_passes
from joulec.passes.pipeline import Outcome, Pipeline, Step
from joulec.report import units
from joulec.report.data import Cost, Data, Report, Tensor

if TYPE_CHECKING:
    from joulec.ir.sandbox import Limits


@dataclass(frozen=True)
class NodeStory(Data):
    """One node of the model.

    Attributes:
        name, op: what it is; `outputs` are the values it computes.
        sources: the nodes of the model that joulec was given, long ago, for which it stands.
        history: the rewrites that made it what it is, oldest first, as `pass/rule`; empty for one never touched.
        becomes: the nodes that stand for it after the exact passes; itself where they leave it alone.
        removed: the rewrite that would take it away for good, as `pass/rule`, or None.
    """

    name: str
    op: str
    outputs: tuple[str, ...]
    sources: tuple[str, ...]
    history: tuple[str, ...]
    becomes: tuple[str, ...]
    removed: str | None = None


@dataclass(frozen=True)
class Change(Data):
    """A rewrite that the exact passes would make now: the pass, the rule, and the node it starts from."""

    by: str
    rule: str
    node: str
    removed: tuple[str, ...]
    created: tuple[str, ...]


@dataclass(frozen=True)
class NearMiss(Data):
    """A pattern that nearly matched, why it was left alone, and the nodes where that happened."""

    by: str
    rule: str
    reason: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Undone(Data):
    """A pass whose work was thrown away, and why."""

    spelling: str
    reason: str


@dataclass(frozen=True)
class Explanation(Data):
    """The stories of a model's nodes.

    Attributes:
        model: what was asked about.
        nodes: one story a node, subgraphs and functions included, Constants left out.
        changes: what `simplify` would do to the model; nothing where it has been simplified.
        refusals: what nearly matched and was left alone; the nodes are those of the model after these changes.
        undone: passes that were rolled back or dropped.
        notes: what else there is to say.
        tensors: of an artefact: its calibrated activations.
        costs: of an artefact: what single operators cost in accuracy, where there was time to measure it.
    """

    model: str
    nodes: tuple[NodeStory, ...]
    changes: tuple[Change, ...] = ()
    refusals: tuple[NearMiss, ...] = ()
    undone: tuple[Undone, ...] = ()
    notes: tuple[str, ...] = ()
    tensors: tuple[Tensor, ...] = ()
    costs: tuple[Cost, ...] = ()


def explain(
    model: Any, node: str | None = None, *, shape: Shapes | None = None, limits: Limits | None = None,
    trust_code: bool = False, custom_ops: Sequence[str | Path] = (),
    progress: Progress = lambda message, fraction: None,
) -> Explanation:  # fmt: skip
    """Tell where nodes come from, what the exact passes would do to them, and which rewrites were refused and why.

    Where a node comes from is read from the model's own metadata. Refusals are found by running the exact passes: on
    their own result they change nothing and refuse what they refused, so no file has to carry them along.

    Args:
        model: anything `optimize` takes, or an artefact directory, whose report adds what other passes refused.
        node: only the story of this node: its name, a value it computes, or a node of the source model that went
            into it.
        shape, limits, trust_code, custom_ops: see `optimize`.
        progress: told about long work.

    Raises:
        InputError: the model cannot be used, or has no such node.
    """
    progress("lowering the model", None)
    libraries = tuple(map(Path, custom_ops))
    module = lower(model_file(model), trust_code=trust_code, limits=limits, custom_ops=libraries).module
    bare = without_provenance(module)
    progress("looking for what matches and what nearly does", None)
    outcome = run_exact(bare, shape or {}, limits, ())
    recorded = _recorded(model)
    name = Path(model).name if isinstance(model, str | Path) else type(model).__name__
    whole = Explanation(
        name or str(model),
        _stories(module, outcome),
        tuple(_changes(outcome.steps)),
        _grouped([*_near_misses(outcome, shape or {}), *_recorded_misses(recorded)]),
        (*_undone(outcome.steps), *_recorded_undone(recorded)),
        outcome.notes,
        () if recorded is None else recorded.tensors,
        () if recorded is None else recorded.costs,
    )
    return whole if node is None else _only(whole, node)


# -- nodes ----------------------------------------------------------------------------------------------------------


def _stories(module: Module, outcome: Outcome) -> tuple[NodeStory, ...]:
    becomes = _successors(outcome.module)
    left = {node.name for node in walk.nodes(outcome.module.model)}
    gone = {name: f"{_name_of(step)}/{r.rule}" for step in _applied(outcome.steps) for r in step.result.rewrites
            for name in r.removed}  # fmt: skip
    return tuple(_story(node, becomes, left, gone) for node in walk.nodes(module.model) if _counts(node))


def _counts(node: ir.Node) -> bool:
    return not walk.is_onnx(node, "Constant")


def _story(
    node: ir.Node, becomes: Mapping[str, list[str]], left: set[str | None], gone: Mapping[str, str]
) -> NodeStory:  # fmt: skip
    name = node.name or ""
    after = becomes.get(name, [])
    return NodeStory(
        name,
        node.op_type,
        tuple(output.name or "" for output in node.outputs if output.name),
        tuple(sources_of(node)),
        tuple(f"{by}/{rule}" for by, rule in history_of(node)),
        tuple(after),
        gone.get(name) if name not in left else None,
    )


def _successors(module: Module) -> dict[str, list[str]]:
    """Node of the model that the passes were given -> the nodes that stand for it in their result."""
    found: dict[str, list[str]] = {}
    for node in filter(_counts, walk.nodes(module.model)):
        for source in sources_of(node):
            found.setdefault(source, []).append(node.name or "")
    return found


# -- what the passes do ---------------------------------------------------------------------------------------------


def _name_of(step: Step) -> str:
    return step.spelling.partition("{")[0]


def _applied(steps: Iterable[Step]) -> Iterator[Step]:
    return (step for step in steps if step.status == "applied")


def _changes(steps: Iterable[Step]) -> Iterator[Change]:
    for step in _applied(steps):
        for rewrite in step.result.rewrites:
            yield Change(_name_of(step), rewrite.rule, rewrite.node, rewrite.removed, rewrite.created)


def _near_misses(outcome: Outcome, shapes: Shapes) -> Iterator[NearMiss]:
    """What is refused in the result: refusals on the way there may have been overcome by later passes."""
    steps = outcome.steps
    if any(_applied(steps)):
        ran = zip(simplifying_passes(), steps, strict=True)
        kept: list[Pass] = [one for one, step in ran if step.status != "rolled back"]
        steps = Pipeline(kept).run(outcome.module, Context(SIMPLIFY, bindings=shapes)).steps
    for step in steps:
        for refusal in step.result.refusals:
            yield NearMiss(_name_of(step), refusal.rule, refusal.reason, (refusal.node,))


def _grouped(misses: Iterable[NearMiss]) -> tuple[NearMiss, ...]:
    """One entry for each pass, rule and reason, in the order of first appearance; each node once."""
    found: dict[tuple[str, str, str], dict[str, None]] = {}
    for miss in misses:
        found.setdefault((miss.by, miss.rule, miss.reason), {}).update(dict.fromkeys(miss.nodes))
    return tuple(NearMiss(*key, tuple(nodes)) for key, nodes in found.items())


def _undone(steps: Iterable[Step]) -> Iterator[Undone]:
    return (Undone(step.spelling, step.reason or "") for step in steps if step.status == "rolled back")


# -- what an artefact remembers -------------------------------------------------------------------------------------


def _recorded(model: Any) -> Report | None:
    """The report of an artefact, which knows the passes that are not exact; None for anything else.

    Raises:
        InputError: its manifest was changed by somebody.
    """
    if not isinstance(model, str | Path) or not (Path(model) / artefact.MANIFEST_FILE).is_file():
        return None
    path = Path(model) / artefact.MANIFEST_FILE
    try:
        return Report.from_json(artefact.read_json(path)["report"])
    except (TypeError, KeyError, ValueError, AttributeError):
        raise InputError(f"{path}: not a manifest of joulec's, or one that was changed; build again") from None


def _recorded_misses(report: Report | None) -> Iterator[NearMiss]:
    exact = {one.pass_name() for one in exact_passes()}
    for step in () if report is None else report.steps:
        name = step.spelling.partition("{")[0]
        for refusal in step.refusals if name not in exact else ():
            yield NearMiss(name, refusal.rule, refusal.reason, (refusal.node,))


def _recorded_undone(report: Report | None) -> Iterator[Undone]:
    for step in () if report is None else report.steps:
        if step.status in ("dropped", "rolled back"):
            yield Undone(step.spelling, step.reason or step.status)


# -- one node -------------------------------------------------------------------------------------------------------


def _only(whole: Explanation, asked: str) -> Explanation:
    """What concerns the node called `asked`, the node that computes a value of this name, or what came of it."""
    stories = [s for s in whole.nodes if asked == s.name] or [s for s in whole.nodes if asked in s.outputs]
    stories = stories or [s for s in whole.nodes if asked in s.sources]
    if not stories:
        said = f"{units.safe(whole.model)}: no node is called '{units.safe(asked)}', computes it or stands for it"
        raise InputError(f"{said}; 'joulec explain' without a name lists them all with --json")
    names = {name for story in stories for name in (story.name, *story.becomes)}
    return replace(
        whole,
        nodes=tuple(stories),
        changes=tuple(c for c in whole.changes if names & {c.node, *c.removed, *c.created}),
        refusals=tuple(
            replace(miss, nodes=tuple(node for node in miss.nodes if node in names))
            for miss in whole.refusals
            if names & set(miss.nodes)
        ),
        tensors=tuple(one for one in whole.tensors if any(one.name in story.outputs for story in stories)),
        costs=tuple(one for one in whole.costs if any(one.node in story.outputs for story in stories)),
    )
