"""A runner in a child process with memory and time limits: whole input models are untrusted, so they run there."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from joulec.errors import InputError, JoulecError
from joulec.ir import sandbox
from joulec.ir.feeds import Feed
from joulec.ir.module import Module
from joulec.ir.runner import LocalRunner, Runner, options_for, with_outputs
from joulec.ir.sandbox import Limits
from joulec.ir.session import SessionOptions, optimized_operators, profile_nodes
from joulec.ir.shapes import first_line
from joulec.ir.staging import Staged, stage
from joulec.ir.values import Array
from joulec.ir.wire import ClosedError, receive, send

_NO_LIMIT = 1 << 62

GRACE_SECONDS = 2.0
"""How long a child that closed its pipe may take to end, so that the error can name its exit status."""

Answer = tuple[dict[str, Any], dict[str, Any]]
"""A JSON object and named arrays."""


class ChildRunner(Runner):
    """Runs models in a child process; when the child dies or exceeds a limit, the error says so and a new one starts.

    Args:
        limits: memory of the child, and seconds that one request may take.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._child: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="joulec-")

    def load(self, module: Module, *, extra_outputs: Sequence[str] = (), options: SessionOptions | None = None) -> int:
        answer, _ = self._open("load", with_outputs(module, extra_outputs), options)
        return int(answer["handle"])

    def run(self, handle: int, feed: Feed) -> dict[str, Array]:
        _, outputs = self._request({"do": "run", "handle": handle}, dict(feed))
        return outputs

    def spend(self, handles: Sequence[int], feed: Feed, *, rounds: int, pause: float = 0.0) -> Array:
        asked = {"do": "spend", "handles": list(handles), "rounds": rounds, "pause": pause}
        _, values = self._request(asked, dict(feed))
        seconds: Array = values["seconds"]
        return seconds

    def kernels(self, module: Module, options: SessionOptions | None = None) -> Counter[str]:
        answer, _ = self._open("kernels", module, options)
        return Counter({str(name): int(count) for name, count in answer["kernels"].items()})

    def profile(
        self, module: Module, feed: Feed, *, rounds: int, options: SessionOptions | None = None
    ) -> dict[str, float]:
        answer, _ = self._open("profile", module, options, {"rounds": rounds}, dict(feed))
        return {str(name): float(seconds) for name, seconds in answer["seconds"].items()}

    def _open(
        self, what: str, module: Module, options: SessionOptions | None, more: dict[str, Any] | None = None,
        values: dict[str, Any] | None = None,
    ) -> Answer:  # fmt: skip
        """Ask the child for `what` about a module, through a file that is gone afterwards."""
        with tempfile.TemporaryDirectory(dir=self._folder.name) as folder:
            staged = stage(module, Path(folder))
            chosen = _options_json(options or options_for(module))
            return self._request({"do": what, **staged.to_json(), "options": chosen, **(more or {})}, values)

    def unload(self, handle: int) -> None:
        if self._child is not None:
            self._request({"do": "unload", "handle": handle})

    def close(self) -> None:
        if self._child is not None:
            self._stop(self._child)
        self._folder.cleanup()

    def _request(self, message: dict[str, Any], values: dict[str, Any] | None = None) -> Answer:
        if self._child is None:
            self._child = sandbox.start_child(
                "joulec.ir.child", limits=self._limits,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        child = self._child
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            child.kill()

        timer = threading.Timer(self._limits.seconds or threading.TIMEOUT_MAX, expire)
        timer.daemon = True
        timer.start()
        try:
            answer, outputs = self._exchange(child, message, values)
        except (ClosedError, OSError) as error:
            self._child = None
            raise self._death(child, expired.is_set()) from error
        finally:
            timer.cancel()
        if "error" in answer:
            raise sandbox.rebuild_error(answer)
        return answer, outputs

    def _exchange(
        self, child: subprocess.Popen[bytes], message: dict[str, Any], values: dict[str, Any] | None
    ) -> Answer:
        if child.stdin is None or child.stdout is None:
            raise ClosedError("no pipes")
        send(child.stdin, message, values)  # type: ignore[arg-type]
        return receive(child.stdout, self._limits.memory_bytes or _NO_LIMIT)  # type: ignore[arg-type]

    def _death(self, child: subprocess.Popen[bytes], expired: bool) -> InputError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_SECONDS)  # its own way to die, before ours
        self._stop(child)
        if expired:
            return InputError(f"running the model took longer than {self._limits.seconds:g} s (raise --time-limit)")
        how = f"signal {-child.returncode}" if child.returncode < 0 else f"exit status {child.returncode}"
        return InputError(f"the process running the model died ({how}); if it ran out of memory, raise --memory-limit")

    def _stop(self, child: subprocess.Popen[bytes]) -> None:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._child = None


def _options_json(options: SessionOptions) -> dict[str, Any]:
    return {**asdict(options), "config": dict(options.config), "custom_ops": [str(p) for p in options.custom_ops]}


def _options_from(data: dict[str, Any]) -> SessionOptions:
    data["disabled_optimizers"] = tuple(data["disabled_optimizers"])
    data["custom_ops"] = tuple(map(Path, data["custom_ops"]))
    return SessionOptions(**data)


def serve(stdin: BinaryIO, stdout: BinaryIO) -> None:
    """The child's loop: one answer per request until the parent closes the pipe."""
    runner = LocalRunner()
    while True:
        try:
            message, values = receive(stdin, _NO_LIMIT)
        except ClosedError:
            return
        try:
            answer, outputs = _answer(runner, message, values)
        except JoulecError as error:
            answer, outputs = {"error": str(error), "kind": type(error).__name__}, {}
        except MemoryError:
            answer, outputs = {"error": "running the model ran out of memory; raise --memory-limit"}, {}
        except Exception as error:  # noqa: BLE001 - whatever a hostile model provokes is told, not died of
            answer, outputs = {"error": f"running the model failed: {type(error).__name__}: {first_line(error)}"}, {}
        send(stdout, answer, outputs)


def _answer(runner: LocalRunner, message: dict[str, Any], values: dict[str, Any]) -> Answer:
    match message["do"]:
        case "load":
            return {"handle": runner.add(Staged.from_json(message).open(_options_from(message["options"])))}, {}
        case "kernels":
            staged, options = Staged.from_json(message), _options_from(message["options"])
            return {"kernels": optimized_operators(staged.source(), staged.options(options))}, {}
        case "profile":
            staged, options = Staged.from_json(message), _options_from(message["options"])
            seconds = profile_nodes(staged.source(), staged.options(options), values, message["rounds"])
            return {"seconds": seconds}, {}
        case "run":
            return {}, runner.run(message["handle"], values)
        case "spend":
            rounds, pause = message["rounds"], message["pause"]
            return {}, {"seconds": runner.spend(message["handles"], values, rounds=rounds, pause=pause)}
        case "unload":
            runner.unload(message["handle"])
            return {}, {}
    raise InputError(f"unknown request {message['do']}")


def main() -> None:
    """Entry point of the child: keep the pipe to the parent, send everything else that is printed to stderr."""
    sandbox.apply_limits_from_environment()
    stdout = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, stdout)


if __name__ == "__main__":
    main()
