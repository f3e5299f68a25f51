"""`joulec bisect`: from a model and its data to the rewrite that is wrong, and to files that show it."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from joulec.api import SIMPLIFY, model_file, writable_file
from joulec.backends import artefact, backend
from joulec.bisection import Bisection, Found, Search
from joulec.build import Progress, Shapes, runner_for
from joulec.data import load_feeds, synthetic_feeds
from joulec.errors import InputError
from joulec.ir.feeds import Feed, Feeds
from joulec.ir.lower import lower
from joulec.ir.module import Module
from joulec.ir.onnx_file import read
from joulec.passes import registry, spelling
from joulec.passes.base import Context, Pass
from joulec.passes.default import simplifying_passes
from joulec.passes.pipeline import PROBES
from joulec.reduction import Case

if TYPE_CHECKING:
    from joulec.ir.sandbox import Limits

MAX_FEEDS = 64
"""Feeds that are compared; they, and their outputs, are held in memory."""


def bisect(
    model: Any, data: Any = None, passes: str | Sequence[Pass] | None = None, *, out: str | Path | None = None,
    plugins: Sequence[str] = (), target: str | None = None, shape: Shapes | None = None, limits: Limits | None = None,
    trust_code: bool = False, custom_ops: Sequence[str | Path] = (), seed: int = 0,
    progress: Progress = lambda message, fraction: None,
) -> Bisection:  # fmt: skip
    """Find the first pass that changes a model's outputs beyond tolerance, breaks it or fails; then the rewrite.

    Args:
        model: anything `optimize` takes.
        data: feeds; the first `MAX_FEEDS` are compared. Seeded synthetic ones if None.
        passes: the pipeline, as text or passes; what `simplify` runs if None.
        out: where to write the smallest model found on which the guilty pass fails, with its feed beside it as .npz.
        plugins: Python files or entry points with passes of your own.
        target: whose passes are configured, for those that ask (`quantize`); none, as in `simplify`, if None.
        shape: sizes of symbolic dimensions for synthetic feeds.
        limits: run models in a child process with these limits; None runs them here.
        trust_code, custom_ops, seed: see `optimize`.
        progress: told about long work.

    Raises:
        InputError: the model, the data or a pass's spelling cannot be used, or the model fails on the data.
    """
    destination = None if out is None else writable_file(out)
    ordered = _ordered(passes, plugins)
    libraries = tuple(map(Path, custom_ops))
    progress("lowering the model", None)
    module = lower(model_file(model), trust_code=trust_code, limits=limits, custom_ops=libraries).module
    with runner_for(limits) as runner:
        feeds, obstacle = _feeds(module, data, shape or {}, seed)
        probes = [] if feeds is None else feeds.head(MAX_FEEDS)
        context = Context(
            SIMPLIFY if target is None else backend(target).target, feeds if data is not None else None, probes,
            obstacle, shape or {}, runner,
        )  # fmt: skip
        progress("looking for the pass, then for the rewrite", None)
        found = Search(ordered, context).run(module)
        if data is not None and found.obstacle is not None:
            raise InputError(found.obstacle)
        result = _told(found, feeds, len(probes))
        if destination is None or found.case is None or found.culprit is None:
            return result
        guilty = ordered[found.culprit.index - 1]
        return _written(result, found.case, guilty, context, destination, plugins)


def _ordered(passes: str | Sequence[Pass] | None, plugins: Sequence[str]) -> list[Pass]:
    known = registry.with_plugins(plugins)
    if passes is None:
        return simplifying_passes()
    return spelling.parse(passes, known) if isinstance(passes, str) else list(passes)


def _feeds(module: Module, data: Any, shapes: Shapes, seed: int) -> tuple[Feeds | None, str | None]:
    """The feeds; without data also none, and why: then only structure is looked at."""
    if data is not None:
        return load_feeds(data, module.inputs(), shapes=shapes, seed=seed), None
    try:
        return synthetic_feeds(module.inputs(), shapes, PROBES, seed), None
    except InputError as error:
        return None, str(error)


def _told(found: Found, feeds: Feeds | None, compared: int) -> Bisection:
    description = "none" if feeds is None else feeds.description
    if feeds is not None and (feeds.count is None or feeds.count > compared):
        description += f", the first {compared} of them"
    return Bisection(found.passes, found.rewrites, description, found.culprit, found.notes)


# -- the files ------------------------------------------------------------------------------------------------------


def _written(
    result: Bisection, case: Case, guilty: Pass, context: Context, path: Path, plugins: Sequence[str]
) -> Bisection:  # fmt: skip
    """Write the small model and its feed, and see whether what was written fails too."""
    case = _plainly_named(case)
    beside = path.with_suffix(".npz") if case.feed and _storable(case.feed) else None
    with artefact.replacing_file(path) as staging:
        case.module.save(staging)
        if beside is not None and case.feed is not None:
            rows = {name: _as_row(array) for name, array in case.feed.items()}
            artefact.write_arrays(staging.with_suffix(".npz"), rows)
    notes = [*result.notes]
    if case.feed and beside is None:
        notes.append("the feed holds element types that .npz cannot: it was not written")
    if not _fails_again(path, beside, guilty, context):
        notes.append("what was written does not fail by itself: the feed could not be kept exactly")
    command = ["joulec", "bisect", str(path), *(() if beside is None else ("--data", str(beside)))]
    command += ["--passes", spelling.spell_pass(guilty), *(word for one in plugins for word in ("--plugin", one))]
    return replace(
        result, notes=tuple(notes), minimal=str(path), minimal_nodes=case.module.node_count(),
        reproduce=shlex.join(command),
    )  # fmt: skip


def _plainly_named(case: Case) -> Case:
    """Inputs under names that an archive can hold as they are."""
    module = case.module.clone()
    taken, renamed = {value.name for value in module.graph.inputs}, dict[str, str]()
    for index, value in enumerate(module.graph.inputs):
        old = value.name or ""
        if artefact.member_name(old) != old and old not in module.graph.initializers:
            value.name = next(name for name in _fresh(index) if name not in taken)
            renamed[old] = value.name
    if case.feed is None:
        return Case(module, None)
    return Case(module, {renamed.get(name, name): array for name, array in case.feed.items()})


def _fresh(index: int) -> Iterator[str]:
    yield f"input_{index}"
    count = 0
    while True:
        count += 1
        yield f"input_{index}_{count}"


def _storable(feed: Feed) -> bool:
    return all(array.dtype.kind in "biufcOU" for array in feed.values())


def _as_row(array: Any) -> Any:
    """One sample of an .npz, which stacks samples along the first axis; strings as numpy's own."""
    whole = np.asarray(array)
    return (whole.astype(str) if whole.dtype.hasobject else whole)[np.newaxis]


def _fails_again(path: Path, beside: Path | None, guilty: Pass, context: Context) -> bool:
    module = read(path)
    probes: list[Feed] = []
    with contextlib.suppress(InputError):
        probes = [] if beside is None else load_feeds(beside, module.inputs()).head(1)
    return Search([guilty], replace(context, probes=probes), small=True).run(module).culprit is not None
