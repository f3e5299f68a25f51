"""Running models under ONNX Runtime: one interface, in this process or in a limited child process.

Modules that joulec made may run here; a whole input model, which is untrusted, runs in a child with memory and time
limits when the caller is the command line (see `joulec.ir.child`).
"""

from __future__ import annotations

import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from joulec.errors import InputError, missing_extra
from joulec.ir.feeds import Feed
from joulec.ir.module import INLINE_LIMIT, Module, inline_proto
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
    """

    threads: int = 1
    optimization: str = "all"
    config: Mapping[str, str] = field(default_factory=lambda: {"session.intra_op.allow_spinning": "0"})
    disabled_optimizers: tuple[str, ...] = ()
    custom_ops: tuple[Path, ...] = ()


class Runner(ABC):
    """Loads modules and runs them. Handles are small integers; close the runner (or use `with`) to free everything."""

    @abstractmethod
    def load(self, module: Module, *, extra_outputs: Sequence[str] = (), options: SessionOptions | None = None) -> int:
        """Open a session for `module`; values named in `extra_outputs` are returned by `run` too.

        Raises:
            InputError: ONNX Runtime refuses the model.
        """

    @abstractmethod
    def run(self, handle: int, feed: Feed) -> dict[str, Array]:
        """Run one feed: output name -> array, in the model's output order, then the extra outputs.

        Raises:
            InputError: the feed does not fit the model, or the model fails on it.
        """

    @abstractmethod
    def time(self, handles: Sequence[int], feed: Feed, *, rounds: int) -> Array:
        """Time sessions in turn, A B A B ..., so that drift of the machine hits all alike.

        Returns:
            float64 array (rounds, len(handles)) of wall seconds per inference.
        """

    @abstractmethod
    def unload(self, handle: int) -> None:
        """Free one session."""

    @abstractmethod
    def close(self) -> None:
        """Free everything."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class LocalRunner(Runner):
    """Runs in this process."""

    def __init__(self) -> None:
        self._sessions: dict[int, Any] = {}
        self._next = 0

    def load(self, module: Module, *, extra_outputs: Sequence[str] = (), options: SessionOptions | None = None) -> int:
        exposed = with_outputs(module, extra_outputs)
        chosen = options or SessionOptions(custom_ops=module.origin.custom_ops)
        if exposed.weight_bytes() <= INLINE_LIMIT:
            return self.add(open_session(inline_proto(exposed.model).SerializeToString(), chosen))
        with tempfile.TemporaryDirectory(prefix="joulec-") as folder:
            path = Path(folder, "model.onnx")
            exposed.save(path)
            return self.add(open_session(str(path), chosen))

    def add(self, session: Any) -> int:
        """Adopt an open session."""
        self._next += 1
        self._sessions[self._next] = session
        return self._next

    def run(self, handle: int, feed: Feed) -> dict[str, Array]:
        return run_session(self._sessions[handle], feed)

    def time(self, handles: Sequence[int], feed: Feed, *, rounds: int) -> Array:
        return time_sessions([self._sessions[handle] for handle in handles], feed, rounds)

    def unload(self, handle: int) -> None:
        self._sessions.pop(handle, None)

    def close(self) -> None:
        self._sessions.clear()


def with_outputs(module: Module, names: Sequence[str]) -> Module:
    """A copy of `module` whose main graph also returns the values called `names`."""
    if not names:
        return module
    exposed = module.clone()
    graph = exposed.graph
    present = {value.name for value in graph.outputs}
    values = {output.name: output for node in graph for output in node.outputs}
    values.update({value.name: value for value in graph.inputs})
    graph.outputs.extend(values[name] for name in names if name not in present)
    return exposed


def open_session(
    model: bytes | str, options: SessionOptions, providers: Sequence[Any] = ("CPUExecutionProvider",)
) -> Any:
    """Open an `onnxruntime.InferenceSession`.

    Raises:
        InputError: ONNX Runtime refuses the model.
        UnavailableError: onnxruntime is not installed.
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
    for key, value in options.config.items():
        settings.add_session_config_entry(key, value)
    for library in options.custom_ops:
        settings.register_custom_ops_library(str(library))
    try:
        return ort.InferenceSession(
            model, settings, providers=list(providers), disabled_optimizers=list(options.disabled_optimizers)
        )
    except Exception as error:
        raise InputError(f"ONNX Runtime cannot load the model: {first_line(error)}") from error


def run_session(session: Any, feed: Feed) -> dict[str, Array]:
    """Run one feed and name the outputs."""
    names = [output.name for output in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, dict(feed)), strict=True))
    except Exception as error:
        raise InputError(f"the model fails on this feed: {first_line(error)}") from error


def time_sessions(sessions: Sequence[Any], feed: Feed, rounds: int) -> Array:
    """Interleaved wall times, (rounds, len(sessions)) seconds; the order inside a round alternates."""
    given = dict(feed)
    seconds = np.zeros((rounds, len(sessions)))
    order = list(range(len(sessions)))
    for index in range(rounds):
        for column in order if index % 2 == 0 else order[::-1]:
            start = time.perf_counter()
            sessions[column].run(None, given)
            seconds[index, column] = time.perf_counter() - start
    return seconds
