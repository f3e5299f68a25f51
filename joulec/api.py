"""The Python interface. `optimize` reads top to bottom: lower, compile for each target, write."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joulec
from joulec import decisions as recording
from joulec import describe, shapespec
from joulec.backends import BACKENDS, Backend, artefact, backend
from joulec.build import Build, Progress, Request, Shapes, runner_for, within_energy
from joulec.compile.orders import SEARCH_SECONDS
from joulec.compiler import DEFAULT_MAX_DROP, Compiled, Orders
from joulec.data import load_feeds, probing_feeds, synthetic_feeds
from joulec.decisions import Decisions
from joulec.energy import EnergyModel, Estimate, profile_for
from joulec.errors import CheckError, InputError, UnavailableError
from joulec.ir.equal_sizes import declare_equal_sizes
from joulec.ir.feeds import Feeds
from joulec.ir.lower import lower
from joulec.ir.module import INLINE_LIMIT, Module, inline_proto
from joulec.ir.runner import Runner
from joulec.ir.session import SessionOptions
from joulec.ir.size_names import forget_names
from joulec.measuring import Measured, measure_pair
from joulec.passes import registry, spelling
from joulec.passes.base import Context
from joulec.passes.default import simplifying_passes
from joulec.passes.equivalence import Deviation, require_equal
from joulec.passes.excerpts import too_large
from joulec.passes.pipeline import PROBES, Observer, Outcome, Pipeline
from joulec.passes.target import Target
from joulec.report.data import Report

if TYPE_CHECKING:
    import onnx

    from joulec.ir.sandbox import Limits


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
    float16: bool | None = None,
    keep_float: Sequence[str] = (),
    search_budget: float = SEARCH_SECONDS,
    tune: str | None = None,
    prune: bool = False,
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
    max_energy: float | None = None,
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
        float16: True insists on 16-bit floats (cuda and tensorrt), False forbids them, None lets joulec decide by
            emulation.
        keep_float: patterns (`conv_1*`) of node names or operator types that stay float, whoever chooses INT8.
        search_budget: seconds that the search for operators worth quantizing may take, beside the fixed ways.
        tune: `latency` or `energy`: threads, spinning, arena, packed weights and (with `shape`) fixed sizes of the
            session are chosen by measurement; None keeps one thread that does not spin.
        prune: lets joulec remove channels and residual blocks where that spends the accuracy budget better than INT8
            alone, or on top of it.
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
        max_energy: the most joules per inference that the result may be predicted to cost; more is a BudgetError.
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
        None if ordered is None else tuple(ordered), sparsity, int8, budget, not isinstance(max_drop, _Unset),
        tuple(keep_float), search_budget, float16, tune, prune,
    )  # fmt: skip
    request = Request(
        model, data, metric, orders, shape or {}, threads, seed, device,
        tuple(plugins), tuple(map(Path, custom_ops)), trust_code, max_energy,
    )  # fmt: skip
    backends = _backends(target)
    places = _places(out, backends)
    keys = {b.target.name: request.key(b.target.name) for b in backends}
    repeated = _repeated(decisions, orders, backends)
    reports = {b.target.name: _current(places, keys, b, repeated) for b in backends} if not remeasure else {}
    todo = [b for b in backends if reports.get(b.target.name) is None]
    modules: dict[str, Module] = {}
    if todo:
        progress("lowering the model", None)
        lowered = lower(
            model, trust_code=trust_code, custom_ops=request.custom_ops, example_inputs=example_inputs, limits=limits
        )
        with runner_for(limits) as runner:
            build = Build(request, lowered, runner, observers, progress, repeated, remeasure)
            for one in todo:
                name = one.target.name
                reports[name], modules[name] = build.run(one, keys[name], places.get(name))
    allowed = {b.target.name: within_energy(_known(reports, b), max_energy) for b in backends}
    return Result(allowed, places, modules)


def _known(reports: Mapping[str, Report | None], one: Backend) -> Report:
    report = reports[one.target.name]
    if report is None:
        raise RuntimeError(f"no report for {one.target.name}")
    return report


def _backends(target: str | Sequence[str]) -> list[Backend]:
    names = list(dict.fromkeys([target] if isinstance(target, str) else target))
    if not names:
        raise InputError(f"no target given; one or more of {', '.join(BACKENDS)}")
    return [backend(name) for name in names]


def _repeated(file: str | Path | None, orders: Orders, backends: Sequence[Backend]) -> dict[str, Decisions]:
    """The decisions that the user wants repeated, by target."""
    if file is None:
        return {}
    return {b.target.name: recording.from_file(Path(file), b.target.name, orders.spelled()) for b in backends}


def _places(out: str | Path | None, backends: Sequence[Backend]) -> dict[str, Path]:
    if out is None:
        return {}
    names = [b.target.name for b in backends]
    places = {names[0]: Path(out)} if len(names) == 1 else {name: Path(out, name) for name in names}
    for place in places.values():
        artefact.require_replaceable(place.absolute())
    return places


def _current(
    places: Mapping[str, Path], keys: Mapping[str, str | None], one: Backend, repeated: Mapping[str, Decisions]
) -> Report | None:
    """The report of the artefact that is already there, if nothing it depends on changed."""
    name = one.target.name
    key, place = keys[name], places.get(name)
    if key is None or place is None or not artefact.is_current(place, key):
        return None
    try:
        found = Report.from_json(artefact.read_json(place / artefact.MANIFEST_FILE)["report"])
        same = name not in repeated or recording.from_file(place, name, repeated[name].orders) == repeated[name]
    except (InputError, TypeError, KeyError, ValueError):  # somebody changed it: build again
        return None
    return replace(found, status="up to date", directory=str(place)) if same else None


# -- the other commands ---------------------------------------------------------------------------------------------


SIMPLIFY = Target("simplify", "CPUExecutionProvider", 0, 0, None, "generic-server-cpu")
"""No target: `simplify` keeps the input's opset and knows no kernels."""


def simplify(
    model: Any, *, limits: Limits | None = None, trust_code: bool = False, custom_ops: Sequence[str | Path] = ()
) -> onnx.ModelProto:
    """Run the exact passes and return the model; its opset, names and signature stay.

    Weights beyond 1 GiB stay references to the external data of the input, because protobuf ends at 2 GiB.

    Args:
        model: anything `optimize` takes.
        limits: run the model in a child process with these limits while comparing; None runs it here.
        trust_code: see `optimize`.
        custom_ops: see `optimize`.
    """
    lowered = lower(model, trust_code=trust_code, limits=limits, custom_ops=tuple(map(Path, custom_ops)))
    outcome = run_exact(lowered.module, {}, limits, ())
    result = outcome.module
    return inline_proto(result.model) if result.weight_bytes() <= INLINE_LIMIT else result.to_proto()


def simplify_file(
    source: str | Path, out: str | Path, *, limits: Limits | None = None, shape: Shapes | None = None,
    trust_code: bool = False, custom_ops: Sequence[str | Path] = (), observers: Sequence[Observer] = (),
    progress: Progress = lambda message, fraction: None,
) -> Report:  # fmt: skip
    """`simplify` from file to file; `out` is replaced only when everything held."""
    destination = writable_file(out)
    progress("lowering the model", None)
    lowered = lower(source, trust_code=trust_code, limits=limits, custom_ops=tuple(map(Path, custom_ops)))
    outcome = run_exact(lowered.module, shape or {}, limits, observers)
    with artefact.replacing_file(destination) as staging:
        outcome.module.save(staging)
    compiled = Compiled(outcome.module, outcome.steps, Decisions("simplify"), None, outcome.notes)
    return replace(
        describe.report(
            lowered.module, compiled, target="simplify", device="", orders=(), model=Path(source).name, status="written"
        ),
        directory=str(destination),
    )


def writable_file(out: str | Path) -> Path:
    """The place of a model to write.

    Raises:
        InputError: it is a directory, or in none.
    """
    destination = Path(out)
    if destination.is_dir():
        raise InputError(f"{destination}: is a directory; name the file to write")
    if not destination.absolute().parent.is_dir():
        raise InputError(f"{destination}: its folder does not exist")
    return destination


def run_exact(module: Module, shapes: Shapes, limits: Limits | None, observers: Sequence[Observer]) -> Outcome:
    """What `simplify` runs: the exact passes, verified and compared on made-up feeds."""
    with contextlib.ExitStack() as stack:
        runner = _available_runner(stack, limits)
        large = too_large(module)
        candidates, obstacle = _candidates(module, shapes) if large is None else (None, large)
        context = Context(
            SIMPLIFY, candidates=candidates, obstacle=obstacle, runner=runner, bindings=shapes,
            excerpts=large is not None,
        )  # fmt: skip
        outcome = Pipeline(simplifying_passes(), observers).run(module, context)
    forget_names(outcome.module)
    declare_equal_sizes(outcome.module)
    return outcome


def _candidates(module: Module, shapes: Shapes) -> tuple[Feeds | None, str | None]:
    """Made-up feeds to compare outputs on, or none and why."""
    try:
        return probing_feeds(module.inputs(), shapes, 0), None
    except InputError as error:
        return None, str(error)


def _available_runner(stack: contextlib.ExitStack, limits: Limits | None) -> Runner | None:
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        return None
    return stack.enter_context(runner_for(limits))


def estimate(
    model: Any, target: str | None = None, shape: Shapes | None = None, device: str | None = None,
    *, limits: Limits | None = None, trust_code: bool = False,
) -> Estimate:  # fmt: skip
    """Predict the joules of every node, without running anything.

    Args:
        model: anything `optimize` takes, or an artefact directory.
        target: whose kernels run it; None for those that an artefact was made for, and the CPU's for any other model.
        shape: sizes of symbolic dimensions; those left open count as 1 and are named in `assumed`.
        device: a device profile's name or file; otherwise one calibrated on this CPU, or the target's default.
    """
    priced = energy_model(model, target, device)
    module = lower(model_file(model), trust_code=trust_code, limits=limits).module
    return priced.told(module, shape or {})


def sweep(
    model: Any, target: str | None = None, shape: Shapes | None = None, device: str | None = None,
    *, limits: Limits | None = None, trust_code: bool = False,
) -> list[tuple[Shapes, Estimate]]:  # fmt: skip
    """`estimate` at every size of the one range in `shape`, doubling from its smallest to its largest.

    Returns:
        Shapes and the estimate at them; empty where no size is a range.

    Raises:
        InputError: several sizes are ranges.
    """
    points = shapespec.sweep(dict(shape or {}))
    if not points:
        return []
    priced = energy_model(model, target, device)
    module = lower(model_file(model), trust_code=trust_code, limits=limits).module
    return [(point, priced.estimate(module, point)) for point in points]


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
    first = lower(model_file(a), trust_code=trust_code, limits=limits, custom_ops=libraries).module
    second = lower(model_file(b), trust_code=trust_code, limits=limits, custom_ops=libraries).module
    _require_same_interface(first, second)
    if data is None:
        feeds, most = probing_feeds(first.inputs(), shape or {}, seed), PROBES
    else:
        feeds, most = load_feeds(data, first.inputs(), shapes=shape or {}, seed=seed), None
    with runner_for(limits) as runner:
        return Comparison(require_equal(first, second, runner, feeds, most), feeds.description)


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
    custom_ops: Sequence[str | Path] = (),
) -> Measured:  # fmt: skip
    """Measure a model on this machine's CPU, paired with another one (itself if None is given, which shows the noise).

    Latency percentiles, CPU seconds and, where a counter can be read, joules; each ratio with its 95 % interval.

    Args:
        model: the candidate; a path, an artefact directory, or a live model.
        against: what it is compared with.
        data: its first feed is timed; a synthetic one if None.
        shape: sizes of symbolic dimensions for the synthetic feed.
        threads: intra-op threads of both.
        seconds: about how long to time.
        custom_ops: see `optimize`.

    Raises:
        UnavailableError: an artefact for another execution provider than the CPU's.
    """

    def lowered(source: Any) -> Module:
        _require_cpu(source)
        return lower(model_file(source), trust_code=trust_code, limits=limits, custom_ops=libraries).module

    libraries = tuple(map(Path, custom_ops))
    candidate = lowered(model)
    base = candidate if against is None else lowered(against)
    feeds = (
        synthetic_feeds(base.inputs(), shape or {}, 1, seed)
        if data is None
        else load_feeds(data, base.inputs(), shapes=shape or {}, seed=seed)
    )
    options = SessionOptions(threads, custom_ops=libraries)
    with runner_for(limits) as runner:
        return measure_pair(runner, base, candidate, feeds.head(1)[0], options, seconds)


def _require_cpu(model: Any) -> None:
    """Timing an artefact of another provider on the CPU would say nothing about it."""
    if not isinstance(model, str | Path) or not (Path(model) / artefact.MANIFEST_FILE).is_file():
        return
    provider = artefact.settings(Path(model)).provider
    if provider != BACKENDS["cpu"].target.provider:
        raise UnavailableError(f"{model}: made for {provider}; joulec times on the CPU only")


def model_file(model: Any) -> Any:
    """An artefact directory stands for the model inside it."""
    if isinstance(model, str | Path) and (Path(model) / artefact.MANIFEST_FILE).is_file():
        return Path(model) / "model.onnx"
    return model


def energy_model(model: Any, target: str | None, device: str | None) -> EnergyModel:
    """What prices a model; the arguments are those of `estimate`."""
    one = backend(target or target_of(model))
    return EnergyModel(profile_for(device, one.target.device), one.target.name)


def target_of(model: Any) -> str:
    """What an artefact was made for; `cpu` for any other model."""
    file = model_file(model)
    manifest = None if file is model else artefact.read_json(file.with_name(artefact.MANIFEST_FILE))
    return str(manifest.get("target", "cpu")) if isinstance(manifest, dict) else "cpu"
