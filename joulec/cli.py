"""The command line: one function a command. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import gc
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from joulec import __version__, cli_carbon, cli_diagnosis, cli_energy, cli_gate, cli_targets, cli_training
from joulec import cli_options as options
from joulec.cli_output import epilog, print_json
from joulec.errors import CheckError, InputError, JoulecError
from joulec.report import units

if TYPE_CHECKING:
    from joulec.passes.base import Pass

INTERNAL_ERROR, INTERRUPTED = 1, 130
MAX_MESSAGE = 1500

EXIT_CODES = (
    "Exit codes: 0 done · 2 bad input or usage · 3 a budget (accuracy, energy) not met · 4 a check failed · "
    "5 target or extra not available here · 1 a bug in joulec"
)

app = typer.Typer(
    name="joulec",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


class _TeachesPasses(typer.core.TyperCommand):
    """A command whose `--help` ends with the passes that exist, read from the registry only then."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        names = ", ".join(_known_passes(()))
        self.epilog = epilog(self.epilog or "", f"Passes for --passes: {names}. More: joulec passes NAME")
        super().format_help(ctx, formatter)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"joulec {__version__}\n")
        raise typer.Exit


@app.callback(
    invoke_without_command=True,
    epilog=epilog(
        "joulec optimize model.keras -o build/ --data calib.npz --metric metric.py:accuracy",
        "joulec estimate model.onnx",
        "joulec optimize --help   explains the options, joulec passes lists the passes",
        EXIT_CODES,
    ),
)
def _root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and what libraries warn of.")] = False,
) -> None:
    """Compile trained models into the artefact that spends the fewest joules per inference."""
    if ctx.invoked_subcommand is None:
        sys.stdout.write(ctx.get_help() + "\n")
        raise typer.Exit(2)


@app.command(
    cls=_TeachesPasses,
    epilog=epilog(
        "Examples:",
        "joulec optimize model.keras -o build/ --data calib.npz --metric metric.py:accuracy --max-drop 0.5%",
        "joulec optimize model.onnx -o build/ --target cpu --target tensorrt --shape batch=8",
        "joulec optimize model.onnx -o build/ --passes 'fold-constants,prune-magnitude{sparsity=0.5}'",
        "joulec optimize model.onnx -o build/ --max-energy 2.5mJ   exit 3 beyond 2.5 mJ an inference",
        "joulec optimize --config joulec.toml   in CI: says 'up to date' when nothing changed",
        EXIT_CODES,
    ),
)
def optimize(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", show_default=False, help=".keras, .h5, SavedModel folder, .tflite, .pt2 or .onnx"
        ),
    ] = None,
    out: options.Out = None,
    target: options.Target = None,
    shape: options.Shape = None,
    json: options.Json = False,
    data: options.Data = None,
    metric: options.Metric = None,
    max_drop: options.MaxDrop = None,
    max_energy: options.MaxEnergy = None,
    passes: options.Passes = None,
    sparsity: options.Sparsity = None,
    prune: options.Prune = False,
    int8: options.Int8 = None,
    float16: options.Float16 = None,
    keep_float: options.KeepFloat = None,
    search_budget: options.SearchBudget = None,
    tune: options.Tune = None,
    plugin: options.Plugin = None,
    config: options.Config = None,
    decisions: options.Decisions = None,
    remeasure: options.Remeasure = False,
    dump: options.Dump = None,
    tensorboard: options.TensorBoard = None,
    threads: options.Threads = None,
    seed: options.Seed = None,
    device: options.Device = None,
    trust_code: options.TrustCode = False,
    custom_ops: options.CustomOps = None,
    memory_limit: options.MemoryLimit = None,
    time_limit: options.TimeLimit = None,
) -> None:
    """Compile MODEL for a target and write the artefact.

    Exact passes (folding, fusion) always run; with --data, INT8 is tried.

    What joulec chooses stays only where it is measured to pay within the budget; what you order is carried out.
    """
    chosen = options.merged({name: value for name, value in ctx.params.items() if name not in ("json", "dump")})
    run = chosen.pop("tensorboard", None)
    from joulec import api
    from joulec.passes.observers import Dump
    from joulec.report import tensorboard as scalars
    from joulec.report import terminal
    from joulec.report.progress import Watcher

    if run is not None:
        scalars.require()  # before any work
    dumps = [] if dump is None else [Dump(dump)]
    with Watcher(quiet=json) as watch:
        result = api.optimize(**chosen, observers=[watch, *dumps], progress=watch)
    if run is not None:
        for name, report in result.reports.items():
            scalars.write(report, run if len(result.reports) == 1 else run / name)
    if json:
        print_json(result.to_json())
        return
    for report in result.reports.values():
        terminal.summary(terminal.console(), report)


@app.command(epilog="joulec simplify model.onnx smaller.onnx")
def simplify(
    model: Annotated[str, typer.Argument(metavar="IN", help="The model, in any format that optimize takes.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The file to write.")],
    shape: options.Shape = None,
    json: options.Json = False,
    trust_code: options.TrustCode = False,
    custom_ops: options.CustomOps = None,
    memory_limit: options.MemoryLimit = None,
    time_limit: options.TimeLimit = None,
) -> None:
    """Run the exact passes only: same numbers, same opset, same names, fewer nodes."""
    limits = options.limits(memory_limit, time_limit)
    from joulec import api
    from joulec.report import terminal
    from joulec.report.progress import Watcher

    with Watcher(quiet=json) as watch:
        report = api.simplify_file(
            model, out, limits=limits, shape=options.shapes(shape), trust_code=trust_code,
            custom_ops=custom_ops or (), observers=[watch], progress=watch,
        )  # fmt: skip
    if json:
        print_json(report.to_json())
    else:
        terminal.summary(terminal.console(), report)


app.command(epilog=cli_energy.ESTIMATE_HELP)(cli_energy.estimate)
app.command(epilog=cli_carbon.CARBON_HELP)(cli_carbon.carbon)
app.command(epilog=cli_gate.GATE_HELP)(cli_gate.gate)


@app.command(epilog="joulec verify model.onnx build/ --data calib.npz")
def verify(
    a: Annotated[str, typer.Argument(metavar="A", help="The reference: a model or an artefact's directory.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The model in question.")],
    data: options.Data = None,
    shape: options.Shape = None,
    seed: options.Seed = None,
    json: options.Json = False,
    trust_code: options.TrustCode = False,
    custom_ops: options.CustomOps = None,
    memory_limit: options.MemoryLimit = None,
    time_limit: options.TimeLimit = None,
) -> None:
    """Compare every output of two models on the same feeds; exit 4 where they differ."""
    limits = options.limits(memory_limit, time_limit)
    from joulec import api
    from joulec.report import terminal

    found = api.verify(
        a,
        b,
        data,
        options.shapes(shape),
        limits=limits,
        trust_code=trust_code,
        seed=seed or 0,
        custom_ops=custom_ops or (),
    )
    if json:
        print_json(found.to_json())
    else:
        terminal.comparison(terminal.console(), found.to_json())
    if not found.equal:
        raise typer.Exit(CheckError.exit_code)


app.command(
    epilog=epilog("joulec explain smaller.onnx", "joulec explain build/ conv_3", "joulec explain model.onnx --json")
)(cli_diagnosis.explain)

app.command(
    epilog=epilog(
        "joulec bisect model.onnx --data calib.npz",
        "joulec bisect model.onnx --passes fold-constants,my-pass --plugin my_passes.py -o small.onnx",
        "Exit code 4 and a small model where a pass deviates, 0 where none does.",
    )
)(cli_diagnosis.bisect)


app.command(epilog=cli_energy.MEASURE_HELP)(cli_energy.measure)


app.command(
    epilog=epilog(
        "Examples:",
        "joulec finetune model.keras --masks build/ --data train.npz --teacher model.keras -o tuned.keras",
        "joulec finetune model.keras --sparsity 0.8 --data train.py:dataset --epochs 30 -o sparse.keras",
        "joulec finetune model.keras --new-head 5 --data other.npz -o other.keras",
        "Channels that the masks emptied go for good with: joulec optimize ... --passes 'prune-channels{dead=true}'",
        EXIT_CODES,
    )
)(cli_training.finetune)


@app.command(epilog=epilog("joulec passes", "joulec passes prune-magnitude"))
def passes(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", show_default=False, help="Explain this pass and its options.")
    ] = None,
    plugin: options.Plugin = None,
) -> None:
    """List the passes, or explain one."""
    from joulec.passes.spelling import options_of
    from joulec.report import terminal

    known, out = _known_passes(plugin or ()), terminal.console()
    if name is None:
        terminal.pass_table(out, [(n, kind.fidelity.value, kind.summary()) for n, kind in known.items()])
        return
    if name not in known:
        raise InputError(f"no pass is called '{units.safe(name)}'; 'joulec passes' lists them")
    kind = known[name]
    terminal.pass_help(out, name, kind.fidelity.value, terminal.documentation(kind), options_of(kind))


app.command(epilog=epilog("joulec targets", "joulec targets cuda", "joulec targets --json"))(cli_targets.targets)

app.command(
    epilog=epilog(
        "joulec lint quantized.onnx --target tensorrt",
        "joulec lint quantized.onnx --target tensorrt --fix mended.onnx",
        "joulec lint --rules --target tensorrt",
        "Exit code 4 where an error is left, 0 where none is; --strict counts warnings.",
    )
)(cli_targets.lint)
app.command(
    epilog=epilog("joulec package build/cuda -o models --name digits", "joulec package build/cpu -o edge --for edge")
)(cli_targets.package)
app.command(epilog=epilog("joulec place model.onnx --shape batch=8 --latency 5ms -o build/both"))(cli_targets.place)


app.command(epilog=cli_energy.DEVICES_HELP)(cli_energy.devices)
app.command("calibrate-device", epilog=cli_energy.CALIBRATE_HELP)(cli_energy.calibrate_device)


def _known_passes(plugins: Sequence[str]) -> dict[str, type[Pass]]:
    from joulec.passes import registry

    return registry.with_plugins(plugins)


# -- errors and exit codes ------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; `--debug` may stand anywhere."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    gc.set_threshold(100_000, 20, 50)  # large graphs are millions of live objects; looking for cycles costs a quarter
    _limit_memory()
    debug = "--debug" in given
    if not debug:
        _silence_libraries()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no crash
    try:
        code = app([word for word in given if word != "--debug"], prog_name="joulec", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        return _broken_pipe()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        if debug:
            raise
        return _explain(error, given)
    if code == INTERRUPTED:
        _say("interrupted; nothing was left half-written")
    return code if isinstance(code, int) else 0


def _limit_memory() -> None:
    """What joulec allocates itself ends where its children end, so that a bomb becomes an error, not a dead machine."""
    import resource

    from joulec.ir.sandbox import Limits

    wanted = Limits.default().memory_bytes
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if wanted is not None and (soft == resource.RLIM_INFINITY or soft > wanted):
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


def _explain(error: Exception, arguments: Sequence[str]) -> int:
    """At most three plain lines on stderr, and the exit code."""
    if isinstance(error, JoulecError):
        _say(f"error: {error}")
        return error.exit_code
    if isinstance(error, typer.TyperException):
        command = next((word for word in arguments if word in _command_names()), None)
        _say(f"error: {error.format_message()}")
        _say(f"try 'joulec {command} --help'" if command else "try 'joulec --help'")
        return InputError.exit_code
    if isinstance(error, OSError) and error.strerror:
        _say(f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error.strerror}")
        return InputError.exit_code
    if isinstance(error, MemoryError):
        _say("error: out of memory; a smaller --shape or fewer feeds may fit")
        return InputError.exit_code
    _say(f"internal error: {type(error).__name__}: {error} (a bug in joulec; --debug shows where)")
    return INTERNAL_ERROR


def _command_names() -> set[str]:
    return {str(command.callback.__name__) for command in app.registered_commands if command.callback}


def _say(line: str) -> None:
    """One line on stderr, whatever the text holds."""
    sys.stderr.write(units.safe(" ".join(line.split()), MAX_MESSAGE) + "\n")


def _broken_pipe() -> int:
    """The reader went away (`| head`): be quiet, also when Python flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _silence_libraries() -> None:
    """Warnings of libraries are for developers; what a user must know is in joulec's own words."""
    warnings.simplefilter("ignore")
    logging.getLogger().addHandler(logging.NullHandler())
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
