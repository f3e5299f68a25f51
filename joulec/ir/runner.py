"""Running models under ONNX Runtime: one interface, in this process or in a limited child process.

Modules that joulec made may run here; a whole input model, which is untrusted, runs in a child with memory and time
limits when the caller is the command line (see `joulec.ir.child`).
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from joulec.ir.feeds import Feed
from joulec.ir.module import INLINE_LIMIT, Module, inline_proto
from joulec.ir.session import (
    SessionOptions,
    open_session,
    optimized_operators,
    profile_nodes,
    run_session,
    spend_sessions,
)
from joulec.ir.staging import stage
from joulec.ir.values import Array


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

    def time(self, handles: Sequence[int], feed: Feed, *, rounds: int) -> Array:
        """Time sessions in turn, A B A B ..., so that drift of the machine hits all alike.

        Returns:
            float64 array (rounds, len(handles)) of wall seconds per inference.

        Raises:
            InputError: the feed does not fit the models, or one of them fails on it.
        """
        seconds: Array = self.spend(handles, feed, rounds=rounds)[..., 0]
        return seconds

    @abstractmethod
    def spend(self, handles: Sequence[int], feed: Feed, *, rounds: int, pause: float = 0.0) -> Array:
        """Like `time`, with the CPU seconds of all threads beside the wall seconds: (rounds, len(handles), 2).

        After every run come `pause` seconds of rest; what threads burn meanwhile is among the CPU seconds.
        """

    @abstractmethod
    def profile(
        self, module: Module, feed: Feed, *, rounds: int, options: SessionOptions | None = None
    ) -> dict[str, float]:
        """Median seconds per inference in each kernel, by the name that ONNX Runtime gives its node.

        Names start with those of the module's nodes or values; fusions and layouts change or add some.

        Raises:
            InputError: ONNX Runtime refuses the model, or it fails on the feed.
        """

    @abstractmethod
    def kernels(self, module: Module, options: SessionOptions | None = None) -> Counter[str]:
        """Operators of the graph that ONNX Runtime really runs for `module`, after its portable optimizations.

        Raises:
            InputError: ONNX Runtime refuses the model.
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
        chosen = options or options_for(module)
        if exposed.weight_bytes() <= INLINE_LIMIT:
            return self.add(open_session(inline_proto(exposed.model).SerializeToString(), chosen))
        with tempfile.TemporaryDirectory(prefix="joulec-") as folder:
            return self.add(stage(exposed, Path(folder)).open(chosen))

    def add(self, session: Any) -> int:
        """Adopt an open session."""
        self._next += 1
        self._sessions[self._next] = session
        return self._next

    def run(self, handle: int, feed: Feed) -> dict[str, Array]:
        return run_session(self._sessions[handle], feed)

    def spend(self, handles: Sequence[int], feed: Feed, *, rounds: int, pause: float = 0.0) -> Array:
        return spend_sessions([self._sessions[handle] for handle in handles], feed, rounds, pause)

    def profile(
        self, module: Module, feed: Feed, *, rounds: int, options: SessionOptions | None = None
    ) -> dict[str, float]:
        with tempfile.TemporaryDirectory(prefix="joulec-") as folder:
            staged = stage(module, Path(folder))
            return profile_nodes(staged.source(), staged.options(options or options_for(module)), feed, rounds)

    def kernels(self, module: Module, options: SessionOptions | None = None) -> Counter[str]:
        with tempfile.TemporaryDirectory(prefix="joulec-") as folder:
            staged = stage(module, Path(folder))
            return optimized_operators(staged.source(), staged.options(options or options_for(module)))

    def unload(self, handle: int) -> None:
        self._sessions.pop(handle, None)

    def close(self) -> None:
        self._sessions.clear()


def options_for(module: Module) -> SessionOptions:
    """The default options, with the custom operator libraries that the user named for this module."""
    return SessionOptions(custom_ops=module.origin.custom_ops)


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
