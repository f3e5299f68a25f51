"""Child processes: limits hold, errors come back as themselves, noise stays away."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from joulec.errors import CheckError, InputError
from joulec.ir import sandbox
from joulec.ir.sandbox import Limits

HERE = "sandbox_tasks"
NO_LIMITS = Limits()


def call_in_child(function: str, arguments: dict[str, Any], limits: Limits) -> dict[str, Any]:
    return sandbox.call_in_child(function, arguments, limits, "lowering m.keras")


@pytest.fixture(autouse=True)
def tasks_on_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """The child imports what it runs: these functions, from a module of their own."""
    (tmp_path / f"{HERE}.py").write_text(TASKS)
    own = str(Path(sandbox.__file__).parents[2])  # the joulec that is tested, wherever the shared environment has one
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), own]))


TASKS = """
import os, resource, signal, sys, time
from joulec.errors import CheckError

def echo(**arguments): return arguments
def noisy(): print("noise"); print("more", file=sys.stderr); os.write(1, b"raw"); return {"ok": True}
def flood(lines):
    for _ in range(lines): os.write(2, b"x" * 63 + b"\\n")
    os.write(2, b"the last word\\n"); os._exit(7)
def chatty(size): return {"text": "x" * size}
def tells():
    from joulec.ir.sandbox import tell
    tell("half way", 0.5); tell("m" * 9000, 7); os.write(int(os.environ["JOULEC_CHILD_PROGRESS"]), b'[1]\\nnoise\\n{}\\n'); tell("done")
    return {}
def refuse(text): raise CheckError(text)
def wait(seconds): time.sleep(seconds); return {}
def kill(): os.kill(os.getpid(), signal.SIGKILL)
def broken(): raise ValueError("a bug of ours")
def greedy(size): return {"length": len(bytearray(size))}
def limits():
    soft = lambda what: resource.getrlimit(what)[0]
    return {"memory": soft(resource.RLIMIT_AS), "core": soft(resource.RLIMIT_CORE)}
"""


def test_arguments_and_results_are_json() -> None:
    given = {"a": [1, 2.5, None], "b": {"c": "ü"}}
    assert call_in_child(f"{HERE}:echo", given, NO_LIMITS) == given


def test_noise_is_kept_out_of_the_answer_and_off_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    assert call_in_child(f"{HERE}:noisy", {}, NO_LIMITS) == {"ok": True}
    assert capfd.readouterr() == ("", "")


def test_a_flood_of_noise_is_drained_and_only_its_end_kept() -> None:
    with pytest.raises(InputError, match=r"ended with status 7: .*the last word$") as caught:
        call_in_child(f"{HERE}:flood", {"lines": 100_000}, NO_LIMITS)
    assert len(str(caught.value)) < 500


def test_an_answer_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_ANSWER", 1000)
    assert call_in_child(f"{HERE}:chatty", {"size": 10}, NO_LIMITS) == {"text": "x" * 10}
    with pytest.raises(InputError, match=r"lowering m\.keras failed: the child's answer is larger than"):
        call_in_child(f"{HERE}:chatty", {"size": 1000}, NO_LIMITS)


def test_an_error_comes_back_as_the_same_class() -> None:
    with pytest.raises(CheckError, match=r"^output 'y' differs$"):
        call_in_child(f"{HERE}:refuse", {"text": "output 'y' differs"}, NO_LIMITS)


def test_time_limit_is_named() -> None:
    start = time.monotonic()
    with pytest.raises(InputError, match=r"took longer than 0\.5 s \(raise --time-limit\)"):
        call_in_child(f"{HERE}:wait", {"seconds": 60}, Limits(None, 0.5))
    assert time.monotonic() - start < 10


def test_memory_limit_is_named() -> None:
    with pytest.raises(InputError, match=r"ran out of memory \(raise --memory-limit\)"):
        call_in_child(f"{HERE}:greedy", {"size": 2_000_000_000}, Limits(1_000_000_000, 60))


def test_a_killed_child_is_said_with_its_signal() -> None:
    with pytest.raises(InputError, match=r"lowering m\.keras failed: the process died \(SIGKILL\)"):
        call_in_child(f"{HERE}:kill", {}, NO_LIMITS)


def test_the_tail_of_a_crash_is_told() -> None:
    with pytest.raises(InputError, match="ValueError: a bug of ours"):
        call_in_child(f"{HERE}:broken", {}, NO_LIMITS)


def test_limits_are_set_inside_the_child() -> None:
    assert call_in_child(f"{HERE}:limits", {}, Limits(3_000_000_000, None)) == {"memory": 3_000_000_000, "core": 0}


def test_default_limits_leave_a_fifth_of_the_memory() -> None:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert Limits.default() == Limits(int(physical * 0.8), 600.0)


def test_the_current_folder_is_not_imported_from(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "json.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(tmp_path / "here")
    assert call_in_child(f"{HERE}:echo", {"a": 1}, NO_LIMITS) == {"a": 1}


def test_progress_of_a_child_is_heard_and_its_noise_is_not() -> None:
    heard: list[tuple[str, float | None]] = []
    sandbox.call_in_child(f"{HERE}:tells", {}, NO_LIMITS, "tuning", lambda message, done: heard.append((message, done)))
    assert heard == [("half way", 0.5), ("m" * 256, 1.0), ("done", None)]


def test_a_child_that_nobody_listens_to_may_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOULEC_CHILD_PROGRESS", raising=False)
    sandbox.tell("nobody hears it", 0.5)
