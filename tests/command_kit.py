"""Many runs of the real command line for the price of one start: a fresh process imports joulec and forks for each.

Run as a script it reads `[[arguments, ...], ...]` as JSON from stdin and writes what came of each run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SECONDS = 60
"""A run that takes longer is killed."""


@dataclass(frozen=True)
class Done:
    """What one run left: exit code (negative: a signal), both streams, seconds, and MiB of its own memory."""

    code: int
    out: str
    err: str
    seconds: float
    memory: float


def run_all(commands: Sequence[Sequence[str]], folder: Path) -> list[Done]:
    """Run `joulec` with each list of arguments in `folder`, one after the other."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / ".cache"), "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, __file__], input=json.dumps([list(command) for command in commands]), capture_output=True,
        text=True, timeout=600, check=True, cwd=folder, env=environment,
    )  # fmt: skip
    return [Done(**one) for one in json.loads(done.stdout)]


def _main() -> None:
    import resource

    import joulec.api  # noqa: F401 - imported once, before the forks
    from joulec import cli
    from joulec.report import html, progress, terminal  # noqa: F401

    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results = []
    for arguments in json.loads(sys.stdin.read()):
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as peak:
            start = time.monotonic()
            pid = os.fork()
            if pid == 0:
                _child(cli, arguments, out.fileno(), err.fileno(), peak.fileno())
            _, status = os.waitpid(pid, 0)
            *texts, most = [_text(stream) for stream in (out, err, peak)]
        # of the process alone: what the sandbox of the model takes has its own limit
        seconds, memory = time.monotonic() - start, max(0, int(most or 0) - base) / 1024
        results.append(Done(os.waitstatus_to_exitcode(status), *texts, seconds, memory).__dict__)
    sys.stdout.write(json.dumps(results))


def _child(cli: object, arguments: list[str], out: int, err: int, peak: int) -> None:
    import resource

    os.dup2(out, 1)
    os.dup2(err, 2)
    signal.alarm(SECONDS)
    code = 99
    try:
        code = cli.main(arguments)  # type: ignore[attr-defined]
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001 - whatever gets past main is what a test must see
        import traceback

        traceback.print_exc()
    sys.stderr.flush()
    os.write(peak, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss).encode())
    os._exit(code)


def _text(stream: object) -> str:
    stream.seek(0)  # type: ignore[attr-defined]
    return str(stream.read().decode(errors="replace"))  # type: ignore[attr-defined]


if __name__ == "__main__":
    _main()
