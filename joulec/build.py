"""One build: what was asked, and the way of one lowered model to the artefacts of several targets."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

import joulec
from joulec import decisions as recording
from joulec import describe
from joulec.accuracy import FidelityJudge, Judge, MetricJudge
from joulec.backends import Backend, artefact, backend
from joulec.backends.base import Artefact
from joulec.compiler import Compiled, Compiler, Inputs, Orders
from joulec.data import data_fingerprint, held_out, load_feeds, load_metric, synthetic_feeds
from joulec.decisions import Decisions
from joulec.energy import DeviceProfile, EnergyModel, profile_for
from joulec.energy.bind import bind, still_open
from joulec.energy.profile import DEFAULT
from joulec.errors import BudgetError, CheckError, InputError, JoulecError
from joulec.ir.feeds import Feed, Feeds
from joulec.ir.layers import layers
from joulec.ir.lower import Lowered
from joulec.ir.machine import cpu_name
from joulec.ir.module import Module
from joulec.ir.onnx_file import external_files
from joulec.ir.runner import LocalRunner, Runner
from joulec.ir.session import SessionOptions
from joulec.ir.sources import source_masks, tracked
from joulec.key import content_key, file_fingerprint
from joulec.passes import spelling
from joulec.passes._calibration_file import to_json as ranges_to_json
from joulec.passes.base import Fidelity
from joulec.passes.pipeline import PROBES, Observer
from joulec.report import units, words
from joulec.report.data import Accuracy, Report
from joulec.report.html import render
from joulec.shapespec import spelled_size

if TYPE_CHECKING:
    from joulec.ir.sandbox import Limits

Shapes = Mapping[str, int | tuple[int, ...]]
Progress = Callable[[str, float | None], None]

CHECKED = 64
"""The most of the user's feeds on which an artefact is compared with the input model."""


@dataclass(frozen=True)
class Request:
    """Everything `optimize` was asked, in one value that can be fingerprinted."""

    model: Any
    data: Any
    metric: Any
    orders: Orders
    shapes: Shapes
    threads: int
    seed: int
    device: str | None
    plugins: tuple[str, ...]
    custom_ops: tuple[Path, ...]
    trust_code: bool
    max_energy: float | None = None

    def __post_init__(self) -> None:
        if self.max_energy is not None and not 0 < self.max_energy < math.inf:
            raise InputError(f"max_energy must be a number of joules above 0, not {self.max_energy}")
        for name, value, least in (("threads", self.threads, 0), ("seed", self.seed, 0)):
            if not isinstance(value, int) or value < least:
                raise InputError(f"{name} must be an integer from {least} up, not {value!r}")

    def _code_files(self) -> list[Path]:
        """Plugins, libraries and what passes read; entry points count by their packages' versions."""
        of_passes = [Path(file) for one in self.orders.passes or () for file in one.files()]
        named = [*(Path(plugin) for plugin in self.plugins), *self.custom_ops, *of_passes]
        return [file for file in named if file.exists()]

    def key(self, target: str) -> str | None:
        """The content key, or None where the model is a live object whose content has no file."""
        if not isinstance(self.model, str | Path):
            return None
        path = Path(self.model)
        if not path.exists():
            raise InputError(f"{path}: no such file or directory")
        passes = None if self.orders.passes is None else spelling.spell(self.orders.passes)
        return content_key(
            {
                "model": [file_fingerprint(file) for file in _model_files(path)],
                "data": None if self.data is None else data_fingerprint(self.data),
                "metric": None if self.metric is None else load_metric(self.metric).source,
                "orders": [passes, *dataclasses.astuple(dataclasses.replace(self.orders, passes=None))],
                "shapes": sorted((name, str(size)) for name, size in self.shapes.items()),
                "options": [target, self.threads, self.seed, self.trust_code],
                "device": profile_for(self.device, backend(target).target.device, self.threads).to_json(),
                "code": [file_fingerprint(file) for file in self._code_files()],
            }
        )


def _model_files(path: Path) -> list[Path]:
    """The files that make up a model: itself, and for ONNX the external data it refers to."""
    return [path, *external_files(path)]


@contextlib.contextmanager
def runner_for(limits: Limits | None) -> Iterator[Runner]:
    if limits is None:
        with LocalRunner() as runner:
            yield runner
        return
    from joulec.ir.child import ChildRunner

    with ChildRunner(limits) as child:
        yield child


@dataclass
class Build:
    """One lowered model on its way to the artefacts of several targets."""

    request: Request
    lowered: Lowered
    runner: Runner
    observers: Sequence[Observer]
    progress: Progress
    repeated: Mapping[str, Decisions]
    remeasure: bool

    def run(self, one: Backend, key: str | None, place: Path | None) -> tuple[Report, Module]:
        """Compile for one target and write the artefact."""
        base = tracked(self.lowered.module) if self.request.orders.prunes else self.lowered.module
        inputs = replace(self._inputs(base, one), journal=self._journal(key, one.target.name))
        energy = EnergyModel(profile_for(self.request.device, one.target.device, self.request.threads), one.target.name)
        recorded = self._recorded(key, one.target.name)
        compiler = Compiler(
            base, one, self.request.orders, inputs, self.runner, energy, self.request.threads, recorded,
            self.observers, self.progress, self._is_here(energy.profile),
        )  # fmt: skip
        compiled = compiler.compile()
        report = within_energy(self._report(compiled, one, inputs, energy), self.request.max_energy)
        if place is not None:
            report = self._write(report, compiled, one, inputs, key, place, compiler.times_target)
        if recorded is None and key is not None and (problem := recording.remember(key, compiled.decisions)):
            report = replace(report, notes=(*report.notes, problem))
        return report, compiled.module

    def _is_here(self, profile: DeviceProfile) -> bool:
        """Whether a profile that the user named stands for this machine, so that times measured here hold for it."""
        if self.request.device is None:
            return True
        made = profile.calibration
        return profile == profile_for(None, DEFAULT["cpu"], self.request.threads) or (
            made is not None and made.machine == cpu_name()
        )

    def _inputs(self, base: Module, one: Backend) -> Inputs:
        request = self.request
        bind(base, request.shapes)  # names that do not exist are refused here, before any work
        feeds = None if request.data is None else load_feeds(
            request.data, base.inputs(), shapes=request.shapes, seed=request.seed
        )  # fmt: skip
        probes, obstacle = (
            (feeds.head(PROBES), None) if feeds is not None else synthetic_probes(base, request.shapes, request.seed)
        )
        options = one.settings(request.threads).options(base.origin.custom_ops)
        obstacle = obstacle or self._obstacle(base, options, probes, feeds)
        calibration, selection = (feeds, feeds) if feeds is None or request.metric else held_out(feeds)
        judge = self._judge(base, options, selection, obstacle)
        cache = recording.cache_folder("calibration")
        return Inputs(calibration, [] if obstacle else probes, request.shapes, judge, obstacle, cache)

    def _obstacle(
        self, base: Module, options: SessionOptions, probes: Sequence[Feed], feeds: Feeds | None
    ) -> str | None:
        """Why the input model does not run here, or None.

        Raises:
            InputError: it fails on the data that the user named.
        """
        try:
            handle = self.runner.load(base, options=options)
        except JoulecError as error:  # an operator of an unknown domain, or one without a kernel on CPU
            return str(error)
        try:
            for feed in probes:
                self.runner.run(handle, feed)
        except InputError as error:
            if feeds is None:
                return f"{error} (inputs made up here; --shape or --data gives real ones)"
            hint = "; --shape sets the sizes of random inputs" if feeds.kind == "random" else ""
            raise InputError(f"{error}{hint}") from error
        finally:
            self.runner.unload(handle)
        return None

    def _judge(self, base: Module, options: SessionOptions, feeds: Feeds | None, obstacle: str | None) -> Judge | None:
        if self.request.metric is not None:
            if obstacle is not None:
                raise InputError(f"--metric cannot be measured: {obstacle}")
            self.progress("measuring accuracy of the input model", None)
            return MetricJudge(load_metric(self.request.metric), self.runner, base, options)
        if feeds is None or obstacle is not None:
            return None
        return FidelityJudge(self.runner, base, feeds, options)

    def _recorded(self, key: str | None, target: str) -> Decisions | None:
        if target in self.repeated:
            return self.repeated[target]
        if key is None or self.remeasure:
            return None
        return recording.cached(key, target, self.request.orders.spelled())

    def _journal(self, key: str | None, target: str) -> Path | None:
        """Where a search of this very build notes what it finds; a new one where everything is to be measured anew."""
        if key is None:
            return None
        file = recording.cache_folder("search") / f"{key}-{target}.json"
        if self.remeasure:
            file.unlink(missing_ok=True)
        return file

    def _report(self, compiled: Compiled, one: Backend, inputs: Inputs, energy: EnergyModel) -> Report:
        base, request = self.lowered.module, self.request
        report = describe.report(
            base, compiled, target=one.target.name, device=energy.profile.name, orders=request.orders.spelled(),
            model=_model_name(request.model), status="written",
        )  # fmt: skip
        sizes = still_open(compiled.module, request.shapes)
        before, after = energy.estimate(base, request.shapes), energy.estimate(compiled.module, sizes)
        return replace(
            report,
            accuracy=self._accuracy(compiled, inputs),
            energy=describe.energy_change(
                before, after, layers(compiled.module, base), describe.roofs(energy.profile, after)
            ),
            parity=None if self.lowered.parity is None else self.lowered.parity.to_json(),
            notes=(*report.notes, *_input_notes(inputs)),
            shapes=tuple(f"{name}={spelled_size(size)}" for name, size in request.shapes.items()),
        )

    def _accuracy(self, compiled: Compiled, inputs: Inputs) -> Accuracy | None:
        judge = inputs.judge
        if judge is None or compiled.score is None:
            return None
        drop, found = judge.baseline - compiled.score, compiled.verdict
        samples, bound = (None, None) if found is None else (found.samples, found.bound)
        budget = self.request.orders.max_drop
        return Accuracy(judge.name, judge.baseline, compiled.score, drop, budget, judge.data, samples, bound)

    def _artefact(self, compiled: Compiled, folder: Path, inputs: Inputs) -> Artefact:
        """What the checks look at: the user's feeds where they have the sizes of the artefact, else made-up ones."""
        module = compiled.module
        spent = any(step.status == "applied" and step.fidelity is Fidelity.LOSSY for step in compiled.steps)
        feeds = [] if inputs.feeds is None or inputs.obstacle else _stacked(inputs.feeds, module)
        said = "" if inputs.feeds is None else inputs.feeds.description
        if not inputs.obstacle and not (feeds and _fit(feeds, module)):
            feeds = list(synthetic_probes(module, still_open(module, self.request.shapes), self.request.seed)[0])
            said = "made-up feeds"
        reference, shapes = self.lowered.module, self.request.shapes
        return Artefact(module, folder, self.runner, inputs.obstacle, reference, feeds, said, shapes, spent)

    def _write(
        self, report: Report, compiled: Compiled, one: Backend, inputs: Inputs, key: str | None, place: Path,
        measured: bool,
    ) -> Report:  # fmt: skip
        """Write the whole artefact beside its place, check it, then rename it there."""
        with artefact.replacing(place) as folder:
            one.emit(compiled.module, folder, self.request.threads, self.request.shapes, compiled.session)
            if compiled.module.masks:
                artefact.write_arrays(folder / artefact.MASKS_FILE, compiled.module.masks)
            if source := source_masks(compiled.module):
                artefact.write_arrays(folder / artefact.SOURCE_MASKS_FILE, source)
            if compiled.module.ranges:
                text = ranges_to_json(compiled.module.ranges)
                (folder / artefact.CALIBRATION_FILE).write_text(text, encoding="utf-8")
            recording.to_file(compiled.decisions, folder / artefact.DECISIONS_FILE)
            self.progress("checking the artefact", None)
            found = one.check(self._artefact(compiled, folder, inputs))
            failed = [rung for rung in found if rung.status == "failed" and rung.binding]
            if failed:
                raise CheckError(f"{failed[0].name}: {failed[0].detail}; nothing was written to {place}")
            report = replace(report, checks=describe.rungs(found), files=describe.files(artefact.digests(folder)))
            (folder / artefact.REPORT_FILE).write_text(render(report), encoding="utf-8")
            artefact.write_manifest(folder, key or "", one.target.name, report.to_json(), joulec.__version__, measured)
            written = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        return replace(report, directory=str(place), files=written)


def _stacked(feeds: Feeds, module: Module) -> list[Feed]:
    """The first feeds, put together where `module` fixes a larger batch than they have."""
    first = next(iter(feeds), {})
    sizes = ((_batch(value), np.shape(first.get(str(value.name), 0))) for value in module.inputs())
    batches = {batch / shape[0] for batch, shape in sizes if batch and shape and shape[0]}
    count = int(batches.pop()) if len(batches) == 1 else 1
    single = feeds.head(CHECKED * max(count, 1))
    alike = len({tuple((name, one[name].shape) for name in first) for one in single}) == 1
    if count <= 1 or not alike:
        return single[:CHECKED]
    groups = [single[start : start + count] for start in range(0, len(single) - count + 1, count)]
    return [{name: np.concatenate([one[name] for one in group]) for name in first} for group in groups]


def _batch(value: ir.Value) -> int:
    """The fixed leading size of an input; 0 where it is open, or where there is none."""
    dims = tuple(value.shape or ())
    return dims[0] if dims and isinstance(dims[0], int) else 0


def _fit(feeds: Sequence[Feed], module: Module) -> bool:
    """Whether feeds have the sizes that `module` fixes."""
    return all(_fits(feed[str(value.name)].shape, value) for feed in feeds for value in module.inputs())


def _fits(shape: Sequence[int], value: ir.Value) -> bool:
    dims = value.shape
    if dims is None:
        return True
    fixed = zip(shape, dims, strict=False)
    return len(shape) == len(dims) and all(not isinstance(dim, int) or dim == size for size, dim in fixed)


def within_energy(report: Report, most: float | None) -> Report:
    """The report, which says what was allowed; `most` is in joules per inference.

    Raises:
        BudgetError: the predicted joules are more than that.
    """
    if most is None or report.energy is None:
        return replace(report, max_energy=most)
    after = report.energy.after
    if after["total_joules"] > most:
        spent = sorted(((joules or 0.0, op) for op, _, joules in report.energy.by_op), reverse=True)
        costliest = ", ".join(f"{op} {units.joules(joules)}" for joules, op in spent[:3])
        raise BudgetError(
            f"{units.joules(after['total_joules'])} per inference ({words.energy_basis(report.energy)}), "
            f"the energy budget is {units.joules(most)}; most of it: {costliest}"
        )
    unknown = ", ".join(after["unknown"][:6])
    more = [f"energy budget: nobody knows what {unknown} spends; it is not counted"] if unknown else []
    return replace(report, max_energy=most, notes=tuple(dict.fromkeys((*report.notes, *more))))


def synthetic_probes(module: Module, shapes: Shapes, seed: int) -> tuple[Sequence[Feed], str | None]:
    """Made-up probes, or none and why: a model whose inputs cannot be made up is compiled without running it."""
    try:
        return synthetic_feeds(module.inputs(), shapes, PROBES, seed).head(PROBES), None
    except InputError as error:
        return [], str(error)


def _input_notes(inputs: Inputs) -> list[str]:
    if inputs.obstacle is not None:
        return ["the input model does not run here: not timed, not calibrated, accuracy not known"]
    if inputs.feeds is None:
        return ["no --data: exact passes only; calibration data would unlock INT8. Timing used synthetic inputs."]
    if inputs.feeds.kind == "random":
        return [f"data: {inputs.feeds.description}: random because ordered; accuracy on it means little"]
    return [f"data: {inputs.feeds.description}"]


def _model_name(model: Any) -> str:
    return Path(model).name if isinstance(model, str | Path) else f"{type(model).__name__} in memory"
