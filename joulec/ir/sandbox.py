"""Child processes with limits: where untrusted models are loaded and run. Messages are JSON; nothing is unpickled."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joulec import errors
from joulec.errors import InputError, JoulecError

MEMORY_VARIABLE = "JOULEC_CHILD_MEMORY"
PROGRESS_VARIABLE = "JOULEC_CHILD_PROGRESS"
MAX_LINE = 4096
"""Bytes of one line of progress; longer ones are cut, and writes of this size do not mix."""

Heard = Callable[[str, float | None], None]

STDERR_LINES = 3
TAIL_BYTES = 4096
"""Kept of what a child prints."""

MAX_ANSWER = 64 << 20
"""Bytes of a child's JSON."""


@dataclass(frozen=True)
class Limits:
    """What a child may use.

    Attributes:
        memory_bytes: address space, None for no limit.
        seconds: wall time per request, None for no limit.
    """

    memory_bytes: int | None = None
    seconds: float | None = None

    @classmethod
    def default(cls) -> Limits:
        """80 % of this machine's memory and ten minutes."""
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls(int(physical * 0.8), 600.0)


def start_child(module: str, *arguments: str, limits: Limits, **popen: Any) -> subprocess.Popen[bytes]:
    """Start `python -m module arguments...`; the child applies the memory limit to itself before it does anything else.

    Args:
        module: must call `apply_limits_from_environment` first.
        arguments: passed on.
        limits: only the memory limit is applied here; the caller watches the time.
        popen: passed to `subprocess.Popen`.
    """
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONHASHSEED": "0", **popen.pop("env", {})}
    environment.pop(MEMORY_VARIABLE, None)
    if limits.memory_bytes is not None:
        environment[MEMORY_VARIABLE] = str(limits.memory_bytes)
    # -P: the current folder, which may hold an untrusted model, is no place to import from.
    return subprocess.Popen([sys.executable, "-P", "-m", module, *arguments], env=environment, **popen)


def apply_limits_from_environment() -> None:
    """In the child: limit the address space as the parent asked, and leave no core file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    wanted = os.environ.get(MEMORY_VARIABLE)
    if wanted is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = int(wanted) if hard == resource.RLIM_INFINITY else min(int(wanted), hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))  # the hard limit too: it cannot be raised again


def call_in_child(
    function: str, arguments: Mapping[str, Any], limits: Limits, what: str, heard: Heard | None = None
) -> dict[str, Any]:
    """Call `package.module:function` with JSON keyword arguments in a fresh child; its result is a JSON object.

    Args:
        function: where to find it.
        arguments: JSON-able keyword arguments.
        limits: of the child.
        what: what the child does, for errors: `loading model.keras`.
        heard: called with what the child tells of its progress (`tell`), from another thread.

    Raises:
        JoulecError: the error that the function raised, of the same class and with the same text.
        InputError: the child died or exceeded a limit.
    """
    with tempfile.TemporaryDirectory(prefix="joulec-") as folder:
        Path(folder, "request.json").write_text(json.dumps({"function": function, "arguments": dict(arguments)}))
        with _listening(heard) as more:
            child = start_child(
                __spec__.name, folder, limits=limits,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **more,
            )  # fmt: skip
            noise = _Tail(child)
            code = _wait(child, limits, what)
        answer = Path(folder, "answer.json")
        if not answer.is_file():
            raise InputError(f"{what} failed: {_death(code)}{noise.said()}")
        result = _answer(answer, what)
    if "error" in result:
        raise rebuild_error(result)
    return result


# -- progress: lines of JSON on a pipe of their own ----------------------------------------------------------------


@contextlib.contextmanager
def _listening(heard: Heard | None) -> Iterator[dict[str, Any]]:
    """What `Popen` needs for a child that tells of its progress; what it tells is handed on inside."""
    if heard is None:
        yield {}
        return
    reading, writing = os.pipe()
    reader = threading.Thread(target=_hear, args=(reading, heard), daemon=True)
    reader.start()
    try:
        yield {"pass_fds": (writing,), "env": {PROGRESS_VARIABLE: str(writing)}}
    finally:
        os.close(writing)
        reader.join(1.0)


def _hear(reading: int, heard: Heard) -> None:
    with os.fdopen(reading, "rb") as stream:
        while line := stream.readline(MAX_LINE):
            # a hostile child may write anything
            with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                told = json.loads(line)
                done = told["done"]
                heard(str(told["message"]), None if done is None else min(max(float(done), 0.0), 1.0))


def tell(message: str, done: float | None = None) -> None:
    """In a child: say what runs now and, where known, which share of it is done, to the parent that listens."""
    pipe = os.environ.get(PROGRESS_VARIABLE)
    if pipe is not None:
        line = json.dumps({"message": message[: MAX_LINE // 16], "done": done}) + "\n"
        with contextlib.suppress(OSError):  # the parent went away
            os.write(int(pipe), line.encode())


def _wait(child: subprocess.Popen[bytes], limits: Limits, what: str) -> int:
    try:
        return child.wait(limits.seconds)
    except subprocess.TimeoutExpired:
        raise InputError(f"{what} took longer than {limits.seconds:g} s (raise --time-limit)") from None
    finally:
        child.kill()
        child.wait()


def _death(code: int) -> str:
    if code in (-signal.SIGKILL, -signal.SIGABRT, -signal.SIGSEGV):
        return f"the process died ({signal.Signals(-code).name}); if it ran out of memory, raise --memory-limit"
    return f"the process ended with status {code}"


class _Tail:
    """The end of what a child prints, in bounded space however much that is."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._stream, self._kept = child.stdout, b""
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()

    def _drain(self) -> None:
        if self._stream is None:
            return
        with self._stream as stream:
            while chunk := os.read(stream.fileno(), TAIL_BYTES):
                self._kept = (self._kept + chunk)[-TAIL_BYTES:]

    def said(self) -> str:
        """The last lines, on one line."""
        self._reader.join(1.0)  # a grandchild may hold the pipe open
        lines = self._kept.decode(errors="replace").splitlines()
        kept = [line.strip() for line in lines if line.strip()][-STDERR_LINES:]
        return f": {' | '.join(kept)}"[:400] if kept else ""


def _answer(path: Path, what: str) -> dict[str, Any]:
    """Read what the child wrote: it ran an untrusted model, so its answer is bounded and checked."""
    if path.is_symlink() or path.stat().st_size > MAX_ANSWER:
        raise InputError(f"{what} failed: the child's answer is larger than {MAX_ANSWER >> 20} MiB, or a link")
    try:
        result = json.loads(path.read_text())
    except (ValueError, RecursionError):
        raise InputError(f"{what} failed: the child's answer is not JSON") from None
    if not isinstance(result, dict):
        raise InputError(f"{what} failed: the child's answer is not an object")
    return result


def rebuild_error(answer: Mapping[str, Any]) -> JoulecError:
    """The error that a child reported, as one of joulec's own classes."""
    kind = getattr(errors, str(answer.get("kind")), InputError)
    safe = kind if isinstance(kind, type) and issubclass(kind, JoulecError) else InputError
    return safe(str(answer["error"]))


def main(folder: str) -> None:
    """Entry point of the child."""
    apply_limits_from_environment()
    request = json.loads(Path(folder, "request.json").read_text())
    module, _, name = request["function"].partition(":")
    try:
        answer = getattr(importlib.import_module(module), name)(**request["arguments"])
    except JoulecError as error:
        answer = {"error": str(error), "kind": type(error).__name__}
    except MemoryError:
        answer = {"error": "it ran out of memory (raise --memory-limit)", "kind": "InputError"}
    Path(folder, "answer.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1])
