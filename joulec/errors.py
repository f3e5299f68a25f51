"""Errors a user can act on, and the exit code that each becomes at the prompt."""

from __future__ import annotations

from typing import ClassVar


class JoulecError(Exception):
    """Base of every error joulec raises on purpose; its text is one line that says what to do."""

    exit_code: ClassVar[int] = 4


class InputError(JoulecError):
    """A model, data file, option or configuration that cannot be used (exit 2)."""

    exit_code = 2


class BudgetError(JoulecError):
    """A budget is not met: accuracy by what was ordered, joules, or what a lock file allows (exit 3)."""

    exit_code = 3


class CheckError(JoulecError):
    """A verification, parity or equivalence check failed (exit 4)."""

    exit_code = 4


class UnavailableError(JoulecError):
    """A target, execution provider or optional extra that this machine lacks (exit 5)."""

    exit_code = 5


def missing_extra(package: str, extra: str, purpose: str) -> UnavailableError:
    """One wording for every optional dependency that is not installed."""
    return UnavailableError(f"{purpose} needs {package}: pip install 'joulec[{extra}]'")
