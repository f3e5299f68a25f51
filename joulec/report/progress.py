"""Progress of long work on stderr: one live line in a terminal, silence everywhere else."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from joulec.ir.module import Module
from joulec.passes.base import Pass
from joulec.passes.pipeline import Observer
from joulec.passes.spelling import spell_pass
from joulec.report import terminal, units


class Watcher(Observer):
    """Shows what runs now; an observer of the pipeline, and a `progress(message, fraction)` function.

    Args:
        quiet: show nothing, as with `--json`. Without a terminal nothing is shown either.
    """

    def __init__(self, quiet: bool = False) -> None:
        out = terminal.console(stderr=True)
        self._task: TaskID | None = None
        self._live: Progress | None = None
        if not quiet and out.is_terminal:
            columns = (SpinnerColumn(), _Plain(""), BarColumn(bar_width=20), TimeElapsedColumn())
            self._live = Progress(*columns, console=out, transient=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._task = self._live.add_task("starting", total=None)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, message: str, fraction: float | None) -> None:
        """Show `message`, with a bar where the fraction done is known."""
        if self._live is None or self._task is None:
            return
        total, done = (None, 0.0) if fraction is None else (1.0, fraction)
        self._live.update(self._task, description=units.safe(message, 50), total=total, completed=done)

    def before_pass(self, index: int, total: int, one: Pass, module: Module) -> None:
        """Name the pass and how many have run."""
        self(spell_pass(one), index / max(total, 1))


class _Plain(TextColumn):
    """The task's description as it is, never as markup."""

    def render(self, task: object) -> Text:
        return Text(str(getattr(task, "description", "")))
