"""ONNX Runtime sessions: how one is opened, run and timed. Its many errors become joulec's own here."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from joulec.errors import InputError, missing_extra
from joulec.ir.feeds import Feed
from joulec.ir.shapes import first_line
from joulec.ir.values import Array


@dataclass(frozen=True)
class SessionOptions:
    """How a session is opened, the same fields that an artefact's session.json may hold.

    Attributes:
        threads: intra-op threads; 0 leaves it to ONNX Runtime (all cores).
        optimization: ONNX Runtime's graph optimization level.
        config: session configuration entries.
        disabled_optimizers: ONNX Runtime optimizers by name.
        custom_ops: shared libraries of custom operators, named by the user.
        arena: whether activations live in memory that is kept between runs.
        sizes: symbolic dimensions that have one size for good; other sizes are refused then.
    """

    threads: int = 1
    optimization: str = "all"
    config: Mapping[str, str] = field(default_factory=lambda: {"session.intra_op.allow_spinning": "0"})
    disabled_optimizers: tuple[str, ...] = ()
    custom_ops: tuple[Path, ...] = ()
    arena: bool = True
    sizes: Mapping[str, int] = field(default_factory=dict)


MAX_REASON = 500
_STATUS = re.compile(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")
_SOURCE = re.compile(
    r"Load model from \S+ failed: ?|Exception during initialization: |/onnxruntime_src/\S+:\d+ .*?\) (const )?"
)
_NODE = re.compile(r"running (?P<op>\w+) node\. Name:'(?P<name>[^']*)' Status Message: ")


def reason(error: Exception) -> str:
    """What ONNX Runtime says, on one line: the innermost node that failed and why, without codes and paths."""
    text = _SOURCE.sub("", _STATUS.sub("", " ".join(str(error).split())))[:MAX_REASON]
    nodes = list(_NODE.finditer(text))
    if not nodes:
        return text
    return f"{nodes[-1]['op']} '{nodes[-1]['name']}': {text[nodes[-1].end() :]}"


def open_session(
    model: bytes | str, options: SessionOptions, providers: Sequence[Any] = ("CPUExecutionProvider",)
) -> Any:
    """Open an `onnxruntime.InferenceSession`.

    Raises:
        InputError: ONNX Runtime refuses the model.
        UnavailableError: onnxruntime is not installed.
    """
    return _open(model, _settings(options), options, providers)


def _open(model: bytes | str, settings: Any, options: SessionOptions, providers: Sequence[Any]) -> Any:
    import onnxruntime as ort

    disabled = list(options.disabled_optimizers)
    try:
        return ort.InferenceSession(model, settings, providers=list(providers), disabled_optimizers=disabled)
    except Exception as error:
        raise InputError(f"ONNX Runtime cannot load the model: {reason(error)}") from error


def _settings(options: SessionOptions) -> Any:
    """`onnxruntime.SessionOptions`.

    Raises:
        UnavailableError: onnxruntime is not installed.
        InputError: a custom operator library does not load.
    """
    try:
        import onnxruntime as ort
    except ImportError:
        raise missing_extra("onnxruntime", "cpu", "running a model") from None
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = options.threads
    settings.graph_optimization_level = {
        "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
        "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    }[options.optimization]
    settings.enable_cpu_mem_arena = options.arena
    for key, value in options.config.items():
        settings.add_session_config_entry(key, value)
    for symbol, size in options.sizes.items():
        settings.add_free_dimension_override_by_name(symbol, size)
    for library in options.custom_ops:
        _register(settings, library)
    return settings


def optimized_operators(model: bytes | str, options: SessionOptions) -> Counter[str]:
    """Count the operators that ONNX Runtime's CPU provider runs for a model, after its EXTENDED optimizations.

    EXTENDED is the highest level whose graph does not depend on the machine.
    """
    settings = _settings(replace(options, optimization="extended"))
    with tempfile.TemporaryDirectory(prefix="joulec-") as folder:
        optimized = Path(folder, "optimized.onnx")
        settings.optimized_model_filepath = str(optimized)
        _open(model, settings, options, ("CPUExecutionProvider",))
        return Counter(node.op_type for node in onnx.load(optimized, load_external_data=False).graph.node)


def profile_nodes(model: bytes | str, options: SessionOptions, feed: Feed, rounds: int) -> dict[str, float]:
    """Median seconds per inference in the kernel of each node that ONNX Runtime runs, by the names it gives them.

    Raises:
        InputError: the model does not load, or fails on this feed.
    """
    settings = _settings(options)
    with tempfile.TemporaryDirectory(prefix="joulec-") as folder:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(Path(folder, "profile"))
        session = _open(model, settings, options, ("CPUExecutionProvider",))
        with _failing_on_feed():
            for _ in range(rounds):
                session.run(None, dict(feed))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8", errors="replace"))
    times: defaultdict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and str(event.get("name")).endswith(_KERNEL_TIME):
            times[event["name"].removesuffix(_KERNEL_TIME)].append(event["dur"] * 1e-6)
    return {name: float(np.median(seconds)) * len(seconds) / rounds for name, seconds in times.items()}


_KERNEL_TIME = "_kernel_time"


def _register(settings: Any, library: Path) -> None:
    try:
        settings.register_custom_ops_library(str(library))
    except Exception as error:
        raise InputError(f"{library}: not a library of custom operators: {first_line(error)}") from error


def run_session(session: Any, feed: Feed) -> dict[str, Array]:
    """Run one feed and name the outputs."""
    names = [output.name for output in session.get_outputs()]
    with _failing_on_feed():
        return dict(zip(names, session.run(names, dict(feed)), strict=True))


@contextlib.contextmanager
def _failing_on_feed() -> Iterator[None]:
    """ONNX Runtime's errors, of many types, as joulec's own. Entered once a call: it must not cost time in a timing."""
    try:
        yield
    except Exception as error:
        raise InputError(f"the model fails on this feed: {reason(error)}") from error


def time_sessions(sessions: Sequence[Any], feed: Feed, rounds: int) -> Array:
    """Interleaved wall times, (rounds, len(sessions)) seconds; the order inside a round alternates."""
    seconds: Array = spend_sessions(sessions, feed, rounds)[..., 0]
    return seconds


def spend_sessions(sessions: Sequence[Any], feed: Feed, rounds: int, pause: float = 0.0) -> Array:
    """Wall and CPU seconds of interleaved runs, (rounds, len(sessions), 2).

    CPU seconds are those of all threads of this process; the clock is read outside the wall time, which it must not
    lengthen.

    Args:
        sessions: run in turn.
        feed: of every run.
        rounds: runs of each.
        pause: seconds of rest behind every run; what threads burn in it counts as CPU seconds of that run.
    """
    with _failing_on_feed():
        return _interleaved(sessions, dict(feed), rounds, pause)


def _interleaved(sessions: Sequence[Any], given: dict[str, Array], rounds: int, pause: float) -> Array:
    spent = np.zeros((rounds, len(sessions), 2))
    order = list(range(len(sessions)))
    for index in range(rounds):
        for column in order if index % 2 == 0 else order[::-1]:
            cpu = time.process_time()
            start = time.perf_counter()
            sessions[column].run(None, given)
            wall = time.perf_counter() - start
            if pause:
                time.sleep(pause)
            spent[index, column] = wall, time.process_time() - cpu
    return spent
