"""The Python interface. `optimize` reads top to bottom: lower, compile for each target, write."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joulec
from joulec import decisions as recording
from joulec import describe
from joulec.accuracy import FidelityJudge, Judge, MetricJudge
from joulec.backends import Backend, artefact, backend
from joulec.compiler import DEFAULT_MAX_DROP, Compiled, Compiler, Inputs, Orders, with_latency
from joulec.data import data_fingerprint, load_feeds, load_metric, synthetic_feeds
from joulec.decisions import Decisions
from joulec.energy import EnergyModel, Estimate, load_profile
from joulec.energy.bind import bind
from joulec.errors import CheckError, InputError, UnavailableError
from joulec.ir.feeds import Feed
from joulec.ir.lower import Lowered, lower
from joulec.ir.module import Module, inline_proto
from joulec.ir.runner import LocalRunner, Runner, SessionOptions
from joulec.key import content_key, file_fingerprint
from joulec.passes import registry, spelling
from joulec.passes.base import Context
from joulec.passes.calibrate import to_json as ranges_to_json
from joulec.passes.default import exact_passes
from joulec.passes.equivalence import Deviation, require_equal
from joulec.passes.pipeline import Observer, Outcome, Pipeline
from joulec.passes.target import Target
from joulec.payoff import Paired, time_pair
from joulec.report.data import Accuracy, Report
from joulec.report.html import render

if TYPE_CHECKING:
    import onnx

    from joulec.ir.sandbox import Limits

Shapes = Mapping[str, int | tuple[int, ...]]
Progress = Callable[[str, float | None], None]

PROBES = 2
"""Feeds on which exact passes are compared with the module before them."""


class _Unset:
    """The default of `max_drop`: a budget that the user did not choose."""


UNSET = _Unset()


@dataclass(frozen=True)
class Result:
    """What `optimize` did: a report per target, and where the artefacts are (None if `out` was None).

    Attributes:
        reports: target -> report.
        directories: target -> artefact directory.
        modules: target -> the optimized module (empty where everything was up to date).
    """

    reports: dict[str, Report]
    directories: dict[str, Path]
    modules: dict[str, Module]

    def to_json(self) -> dict[str, Any]:
        """The reports as JSON, by target."""
        return {"targets": {name: report.to_json() for name, report in self.reports.items()}}


@dataclass(frozen=True)
class _Request:
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

    def _code_files(self) -> list[Path]:
        """Plugins and libraries that are files; entry points count by their packages' versions."""
        named = [*(Path(plugin) for plugin in self.plugins), *self.custom_ops]
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
                "options": [target, self.threads, self.seed, self.device, self.trust_code],
                "code": [file_fingerprint(file) for file in self._code_files()],
            }
        )


def _model_files(path: Path) -> list[Path]:
    """The files that make up a model: itself, and for ONNX the external data it refers to."""
    from joulec.ir.onnx_file import external_files

    return [path, *external_files(path)]


def optimize(
    model: Any,
    out: str | Path | None = None,
    target: str | Sequence[str] = "cpu",
    data: Any = None,
    metric: Any = None,
    max_drop: float | _Unset | None = UNSET,
    passes: str | Sequence[joulec.Pass] | None = None,
    sparsity: float | None = None,
    int8: bool | None = None,
    shape: Shapes | None = None,
    decisions: str | Path | None = None,
    plugins: Sequence[str] = (),
    custom_ops: Sequence[str | Path] = (),
    example_inputs: Any = None,
    trust_code: bool = False,
    limits: Limits | None = None,
    threads: int = 1,
    seed: int = 0,
    device: str | None = None,
    remeasure: bool = False,
    observers: Sequence[Observer] = (),
    progress: Progress = lambda message, fraction: None,
) -> Result:
    """Compile a trained model into the artefact that spends the fewest joules within the accuracy budget.

    Args:
        model: a path (`.keras`, `.h5`, SavedModel, `.tflite`, `.onnx`, `.pt2`), a live Keras or torch model, a
            tf.function, an onnx.ModelProto or an onnx_ir.Model.
        out: the artefact directory; with several targets, one directory below it for each. None writes nothing.
        target: `cpu`, `cuda`, `tensorrt`, or several of them.
        data: calibration feeds (see `joulec.data.load_feeds`).
        metric: `metric(infer) -> float`, higher is better, or `FILE.py:FUNCTION`.
        max_drop: accuracy budget in absolute points; None switches it off. Unset, it is 0.01 and binds only what
            joulec chooses by itself.
        passes: replaces the default pipeline: text, or passes.
        sparsity: share of weights to prune by magnitude.
        int8: True insists on INT8, False forbids it, None lets joulec decide by measurement.
        shape: sizes of symbolic dimensions, by symbol, or whole shapes by input name.
        decisions: decisions.json to repeat instead of measuring.
        plugins: Python files or entry points with passes of your own.
        custom_ops: shared libraries with custom operators.
        example_inputs: for a torch.nn.Module.
        trust_code: allow code inside the model (Lambda layers, Python and file operators).
        limits: run untrusted models in a child process with these limits; None runs them in this process.
        threads: intra-op threads, for measurement and in the artefact.
        seed: of random and synthetic data.
        device: device profile that prices nodes.
        remeasure: ignore decisions cached by earlier builds.
        observers: told about every pass.
        progress: told about long work.

    Raises:
        InputError, BudgetError, CheckError, UnavailableError: see joulec.errors; nothing was written then.
    """
    known = registry.with_plugins(plugins)
    ordered = spelling.parse(passes, known) if isinstance(passes, str) else passes
    budget = DEFAULT_MAX_DROP if isinstance(max_drop, _Unset) else max_drop
    orders = Orders(
        None if ordered is None else tuple(ordered), sparsity, int8, budget, not isinstance(max_drop, _Unset)
    )
    request = _Request(
        model, data, metric, orders, shape or {}, threads, seed, device,
        tuple(plugins), tuple(map(Path, custom_ops)), trust_code,
    )  # fmt: skip
    backends = [backend(name) for name in dict.fromkeys([target] if isinstance(target, str) else target)]
    places = _places(out, backends)
    keys = {b.target.name: request.key(b.target.name) for b in backends}
    reports = {b.target.name: _current(places, keys, b) for b in backends} if not remeasure else {}
    todo = [b for b in backends if reports.get(b.target.name) is None]
    modules: dict[str, Module] = {}
    if todo:
        progress("lowering the model", None)
        lowered = lower(
            model, trust_code=trust_code, custom_ops=request.custom_ops, example_inputs=example_inputs, limits=limits
        )
        with _runner(limits) as runner:
            build = _Build(request, lowered, runner, observers, progress, decisions, remeasure)
            for one in todo:
                name = one.target.name
                reports[name], modules[name] = build.run(one, keys[name], places.get(name))
    return Result({b.target.name: _known(reports, b) for b in backends}, places, modules)


def _known(reports: Mapping[str, Report | None], one: Backend) -> Report:
    report = reports[one.target.name]
    if report is None:
        raise RuntimeError(f"no report for {one.target.name}")
    return report


def _places(out: str | Path | None, backends: Sequence[Backend]) -> dict[str, Path]:
    if out is None:
        return {}
    names = [b.target.name for b in backends]
    return {names[0]: Path(out)} if len(names) == 1 else {name: Path(out, name) for name in names}


def _current(places: Mapping[str, Path], keys: Mapping[str, str | None], one: Backend) -> Report | None:
    """The report of the artefact that is already there, if nothing it depends on changed."""
    name = one.target.name
    key, place = keys[name], places.get(name)
    if key is None or place is None or not artefact.is_current(place, key):
        return None
    manifest = artefact.read_json(place / artefact.MANIFEST_FILE)
    return replace(Report.from_json(manifest["report"]), status="up to date", directory=str(place))


@contextlib.contextmanager
def _runner(limits: Limits | None) -> Iterator[Runner]:
    if limits is None:
        with LocalRunner() as runner:
            yield runner
        return
    from joulec.ir.child import ChildRunner

    with ChildRunner(limits) as child:
        yield child


@dataclass
class _Build:
    """One lowered model on its way to the artefacts of several targets."""

    request: _Request
    lowered: Lowered
    runner: Runner
    observers: Sequence[Observer]
    progress: Progress
    decisions: str | Path | None
    remeasure: bool

    def run(self, one: Backend, key: str | None, place: Path | None) -> tuple[Report, Module]:
        """Compile for one target and write the artefact."""
        base = self.lowered.module
        inputs = self._inputs(base, one)
        energy = EnergyModel(load_profile(self.request.device or one.target.device), one.target.name)
        recorded = self._recorded(key, one.target.name)
        compiler = Compiler(
            base, one, self.request.orders, inputs, self.runner, energy, self.request.threads, recorded,
            self.observers, self.progress,
        )  # fmt: skip
        compiled = compiler.compile()
        if recorded is None:
            compiled = replace(compiled, decisions=self._measured(compiled, one, inputs))
        report = self._report(compiled, one, inputs, energy)
        if place is not None:
            report = self._write(report, compiled, one, key, place)
        if recorded is None and key is not None and (problem := recording.remember(key, compiled.decisions)):
            report = replace(report, notes=(*report.notes, problem))
        return report, compiled.module

    def _inputs(self, base: Module, one: Backend) -> Inputs:
        request = self.request
        bind(base, request.shapes)  # names that do not exist are refused here, before any work
        feeds = None if request.data is None else load_feeds(
            request.data, base.inputs(), shapes=request.shapes, seed=request.seed
        )  # fmt: skip
        probes = feeds.head(PROBES) if feeds is not None else _synthetic(base, request)
        options = one.settings(request.threads).options(base.origin.custom_ops)
        judge: Judge | None = None
        if request.metric is not None:
            self.progress("measuring accuracy of the input model", None)
            judge = MetricJudge(load_metric(request.metric), self.runner, base, options)
        elif feeds is not None:
            judge = FidelityJudge(self.runner, base, feeds, options)
        return Inputs(feeds, probes, request.shapes, judge)

    def _recorded(self, key: str | None, target: str) -> Decisions | None:
        if self.decisions is not None:
            return recording.from_file(Path(self.decisions), target)
        return None if key is None or self.remeasure else recording.cached(key, target)

    def _measured(self, compiled: Compiled, one: Backend, inputs: Inputs) -> Decisions:
        """The decisions with the paired latency of the whole build, where this machine can run it."""
        paired = self._time(compiled, one, inputs) if inputs.probes else None
        return with_latency(compiled.decisions, paired)

    def _time(self, compiled: Compiled, one: Backend, inputs: Inputs) -> Paired | None:
        if one.target.name != "cpu":
            return None
        self.progress("timing the result against the input", None)
        options = one.settings(self.request.threads).options(self.lowered.module.origin.custom_ops)
        try:
            return time_pair(self.runner, self.lowered.module, compiled.module, inputs.probes[0], options)
        except (InputError, UnavailableError):
            return None  # the pipeline's notes already say why the model cannot be run

    def _report(self, compiled: Compiled, one: Backend, inputs: Inputs, energy: EnergyModel) -> Report:
        base, request = self.lowered.module, self.request
        report = describe.report(
            base, compiled, target=one.target.name, device=energy.profile.name, orders=request.orders.spelled(),
            model=_model_name(request.model), status="written",
        )  # fmt: skip
        before, after = energy.estimate(base, request.shapes), energy.estimate(compiled.module, request.shapes)
        return replace(
            report,
            accuracy=self._accuracy(compiled, inputs),
            energy=describe.energy_change(before, after),
            parity=None if self.lowered.parity is None else self.lowered.parity.to_json(),
            notes=(*report.notes, *_input_notes(inputs)),
        )

    def _accuracy(self, compiled: Compiled, inputs: Inputs) -> Accuracy | None:
        judge = inputs.judge
        if judge is None or compiled.score is None:
            return None
        own = judge.name == "metric" or inputs.feeds is None
        feeds = "the metric's own data" if own or inputs.feeds is None else inputs.feeds.description
        drop = judge.baseline - compiled.score
        return Accuracy(judge.name, judge.baseline, compiled.score, drop, self.request.orders.max_drop, feeds)

    def _write(self, report: Report, compiled: Compiled, one: Backend, key: str | None, place: Path) -> Report:
        """Write the whole artefact beside its place, check it, then rename it there."""
        with artefact.replacing(place) as folder:
            one.emit(compiled.module, folder, self.request.threads)
            if compiled.module.masks:
                artefact.write_arrays(folder / artefact.MASKS_FILE, compiled.module.masks)
            if compiled.module.ranges:
                text = ranges_to_json(compiled.module.ranges)
                (folder / artefact.CALIBRATION_FILE).write_text(text, encoding="utf-8")
            recording.to_file(compiled.decisions, folder / artefact.DECISIONS_FILE)
            self.progress("checking the artefact", None)
            found = one.check(compiled.module, folder)
            failed = [rung for rung in found if rung.status == "failed"]
            if failed:
                raise CheckError(f"{failed[0].name}: {failed[0].detail}; nothing was written to {place}")
            report = replace(report, checks=describe.rungs(found), files=describe.files(artefact.digests(folder)))
            (folder / artefact.REPORT_FILE).write_text(render(report), encoding="utf-8")
            artefact.write_manifest(folder, key or "", one.target.name, report.to_json(), joulec.__version__)
        return replace(report, directory=str(place))


def _synthetic(base: Module, request: _Request) -> list[Feed]:
    """Made-up probes; a model whose inputs cannot be made up is compiled without running it, and that is noted."""
    try:
        return synthetic_feeds(base.inputs(), request.shapes, PROBES, request.seed).head(PROBES)
    except InputError:
        return []


def _input_notes(inputs: Inputs) -> list[str]:
    if inputs.feeds is None:
        return ["no --data: exact passes only; calibration data would unlock INT8. Timing used synthetic inputs."]
    if inputs.feeds.kind == "random":
        return [f"data: {inputs.feeds.description}: random because ordered; accuracy on it means little"]
    return [f"data: {inputs.feeds.description}"]


def _model_name(model: Any) -> str:
    return Path(model).name if isinstance(model, str | Path) else f"{type(model).__name__} in memory"


# -- the other commands ---------------------------------------------------------------------------------------------


_SIMPLIFY = Target("simplify", "CPUExecutionProvider", 0, 0, None, "generic-server-cpu")
"""No target: `simplify` keeps the input's opset and knows no kernels."""


def simplify(model: Any, *, limits: Limits | None = None, trust_code: bool = False) -> onnx.ModelProto:
    """Run the exact passes and return the model; its opset, names and signature stay.

    Args:
        model: anything `optimize` takes.
        limits: run the model in a child process with these limits while comparing; None runs it here.
        trust_code: see `optimize`.
    """
    lowered = lower(model, trust_code=trust_code, limits=limits)
    outcome = _simplified(lowered.module, {}, limits, ())
    return inline_proto(outcome.module.model)


def simplify_file(
    source: str | Path, out: str | Path, *, limits: Limits | None = None, shape: Shapes | None = None,
    trust_code: bool = False, observers: Sequence[Observer] = (),
) -> Report:  # fmt: skip
    """`simplify` from file to file; `out` is replaced only when everything held."""
    lowered = lower(source, trust_code=trust_code, limits=limits)
    outcome = _simplified(lowered.module, shape or {}, limits, observers)
    destination = Path(out)
    if destination.is_dir():
        raise InputError(f"{destination}: is a directory; name the .onnx file to write")
    with artefact.replacing_file(destination) as staging:
        outcome.module.save(staging)
    compiled = Compiled(
        outcome.module, tuple((step, None) for step in outcome.steps), Decisions("simplify"), None, outcome.notes
    )
    return replace(
        describe.report(
            lowered.module, compiled, target="simplify", device="", orders=(), model=Path(source).name, status="written"
        ),
        directory=str(destination),
    )


def _simplified(module: Module, shapes: Shapes, limits: Limits | None, observers: Sequence[Observer]) -> Outcome:
    with contextlib.ExitStack() as stack:
        runner = _available_runner(stack, limits)
        try:
            probes = synthetic_feeds(module.inputs(), shapes, PROBES, 0).head(PROBES)
        except InputError:
            probes = []
        context = Context(target=_SIMPLIFY, probes=probes, runner=runner, bindings=shapes)
        return Pipeline(exact_passes(), observers).run(module, context)


def _available_runner(stack: contextlib.ExitStack, limits: Limits | None) -> Runner | None:
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        return None
    return stack.enter_context(_runner(limits))


def estimate(
    model: Any, target: str = "cpu", shape: Shapes | None = None, device: str | None = None,
    *, limits: Limits | None = None, trust_code: bool = False,
) -> Estimate:  # fmt: skip
    """Predict the joules of every node, without running anything.

    Args:
        model: anything `optimize` takes, or an artefact directory.
        target: whose kernels run it.
        shape: sizes of symbolic dimensions; those left open count as 1 and are named in `assumed`.
        device: a device profile's name or file; the target's default otherwise.
    """
    one = backend(target)
    profile = load_profile(device or one.target.device)
    module = lower(_model_file(model), trust_code=trust_code, limits=limits).module
    return EnergyModel(profile, one.target.name).estimate(module, shape or {})


@dataclass(frozen=True)
class Comparison:
    """Whether two models compute the same, and how far their worst output deviates."""

    worst: Deviation | None
    feeds: str

    @property
    def equal(self) -> bool:
        """Every output within tolerance."""
        return self.worst is None or self.worst.ok

    def to_json(self) -> dict[str, Any]:
        """As JSON; deviation is null where there was nothing to compare, infinity becomes a string."""
        value = None if self.worst is None else self.worst.value
        return {
            "equal": self.equal,
            "output": None if self.worst is None else self.worst.output,
            "deviation": str(value) if value == float("inf") else value,
            "tolerance": None if self.worst is None else self.worst.tolerance,
            "feeds": self.feeds,
        }


def verify(
    a: Any, b: Any, data: Any = None, shape: Shapes | None = None, *, limits: Limits | None = None,
    trust_code: bool = False, seed: int = 0, custom_ops: Sequence[str | Path] = (),
) -> Comparison:  # fmt: skip
    """Run two models on the same feeds and compare every output.

    Args:
        a: the reference; a path, an artefact directory, or a live model.
        b: the model in question, with the same inputs and outputs.
        data: feeds; seeded synthetic ones if None.
        shape: sizes of symbolic dimensions for synthetic feeds.

    Raises:
        InputError: the models do not have the same inputs, or `a` does not run.
        CheckError: `b` lacks an output of `a`.
    """
    libraries = tuple(map(Path, custom_ops))
    first = lower(_model_file(a), trust_code=trust_code, limits=limits, custom_ops=libraries).module
    second = lower(_model_file(b), trust_code=trust_code, limits=limits, custom_ops=libraries).module
    _require_same_interface(first, second)
    feeds = (
        synthetic_feeds(first.inputs(), shape or {}, PROBES, seed)
        if data is None
        else load_feeds(data, first.inputs(), shapes=shape or {}, seed=seed)
    )
    with _runner(limits) as runner:
        return Comparison(require_equal(first, second, runner, list(feeds)), feeds.description)


def _require_same_interface(first: Module, second: Module) -> None:
    ours, theirs = [v.name for v in first.inputs()], [v.name for v in second.inputs()]
    if ours != theirs:
        one, other = (", ".join(map(str, names)) for names in (ours, theirs))
        raise InputError(f"the models take different inputs: {one} and {other}")
    missing = [str(v.name) for v in first.graph.outputs if v.name not in {o.name for o in second.graph.outputs}]
    if missing:
        raise CheckError(f"the second model lacks output '{missing[0]}'")


def measure(
    model: Any, against: Any = None, data: Any = None, shape: Shapes | None = None, *, limits: Limits | None = None,
    trust_code: bool = False, threads: int = 1, seconds: float = 4.0, seed: int = 0,
) -> Paired:  # fmt: skip
    """Time a model on this machine's CPU, paired with another one (itself if None is given, which shows the noise).

    Args:
        model: the candidate; a path, an artefact directory, or a live model.
        against: what it is compared with.
        data: its first feed is timed; a synthetic one if None.
        shape: sizes of symbolic dimensions for the synthetic feed.
        threads: intra-op threads of both.
        seconds: about how long to time.
    """
    candidate = lower(_model_file(model), trust_code=trust_code, limits=limits).module
    base = candidate if against is None else lower(_model_file(against), trust_code=trust_code, limits=limits).module
    feeds = (
        synthetic_feeds(base.inputs(), shape or {}, 1, seed)
        if data is None
        else load_feeds(data, base.inputs(), shapes=shape or {}, seed=seed)
    )
    options = SessionOptions(threads)
    with _runner(limits) as runner:
        return time_pair(runner, base, candidate, feeds.head(1)[0], options, seconds)


def _model_file(model: Any) -> Any:
    """An artefact directory stands for the model inside it."""
    if isinstance(model, str | Path) and (Path(model) / artefact.MANIFEST_FILE).is_file():
        return Path(model) / "model.onnx"
    return model
