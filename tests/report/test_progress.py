"""Progress is for people at a terminal, and for nobody else."""

from __future__ import annotations

from joulec.report.progress import Watcher


def test_without_a_terminal_nothing_is_printed(capfd):
    for quiet in (True, False):
        with Watcher(quiet) as watch:
            watch("timing", None)
            watch("calibrating", 0.5)
    assert capfd.readouterr() == ("", "")


def test_in_a_terminal_stderr_shows_what_runs_and_stdout_stays_clean(capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with Watcher() as watch:
        watch("timing [red]x[/red]\x1b[31m", 0.5)
    out, err = capfd.readouterr()
    assert out == ""
    assert "timing [red]x[/red]\\x1b[31m" in err
