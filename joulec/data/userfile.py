"""The user's own Python files: loaded only when named, and their failures told in one line."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, SupportsFloat

from joulec.errors import InputError, JoulecError
from joulec.ir.feeds import Feed
from joulec.ir.shapes import first_line
from joulec.ir.values import Array

Infer = Callable[[Feed], dict[str, Array]]
"""Runs one feed: output name -> array, in the model's output order."""


@dataclass(frozen=True)
class UserFunction:
    """A function of the user's, with its failures turned into one line.

    Attributes:
        function: the function itself.
        name: how the user named it, e.g. `metric.py:accuracy`.
        source: text that changes when the function changes: its whole file where there is one.
        path: the file it came from, if any.
    """

    function: Callable[..., Any]
    name: str
    source: str
    path: Path | None = None

    def __call__(self, *args: Any) -> Any:
        """Call it.

        Raises:
            InputError: the function raised something.
        """
        with self.told():
            return self.function(*args)

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Turn whatever the user's code raises inside into one line that names the function and the line."""
        try:
            yield
        except JoulecError:
            raise
        except (Exception, SystemExit) as error:  # sys.exit in a metric must not decide joulec's own exit code
            raise InputError(f"{self.name} failed{_where(error, self.path)}: {_say(error)}") from error


@dataclass(frozen=True)
class Metric:
    """An accuracy measure: higher is better.

    Attributes:
        function: the user's function, `metric(infer) -> float`.
        name: its name for reports.
        source: text that changes when the metric changes, for the content key.
    """

    function: UserFunction
    name: str
    source: str

    def __call__(self, infer: Infer) -> float:
        """The metric of the model behind `infer`.

        Raises:
            InputError: the function raised something, or returned anything but a finite number.
        """
        value = self.function(infer)
        number = _number(value)
        if number is None or not math.isfinite(number):
            raise InputError(f"metric {self.name} returned {_brief(value)}; it must return one finite number")
        return number


def load_metric(spec: str | Callable[[Infer], float]) -> Metric:
    """The metric that `--metric FILE.py:FUNCTION` or `metric=` names.

    Raises:
        InputError: no such file or function, or the file fails to load.
    """
    function = load_function(spec) if isinstance(spec, str) else wrap_function(spec)
    return Metric(function, function.name, function.source)


def load_function(spec: str) -> UserFunction:
    """The function that `FILE.py:FUNCTION` names. This runs the file: call it only for files that the user named.

    Raises:
        InputError: the spec is not of that form, no such file or function, or the file fails to load.
    """
    path, name = split_spec(spec)
    function = getattr(load_file(path), name, None)
    if function is None:
        raise InputError(f"{path}: has no function '{name}'")
    if not callable(function):
        raise InputError(f"{path}: '{name}' is not a function")
    return UserFunction(function, f"{path.name}:{name}", _source(path), path)


def is_function_spec(text: str) -> bool:
    """Whether `text` has the form `FILE.py:FUNCTION`."""
    path, colon, name = text.rpartition(":")
    return bool(colon) and path.endswith(".py") and name.isidentifier()


def split_spec(spec: str) -> tuple[Path, str]:
    """The two halves of `FILE.py:FUNCTION`.

    Raises:
        InputError: the spec is not of that form.
    """
    if not is_function_spec(spec):
        raise InputError(f"'{spec}' does not name a function; write FILE.py:FUNCTION")
    path, _, name = spec.rpartition(":")
    return Path(path), name


def wrap_function(function: Callable[..., Any]) -> UserFunction:
    """A function handed over in Python."""
    if not callable(function):
        raise InputError(f"{_brief(function)} is neither FILE.py:FUNCTION nor a function")
    name = getattr(function, "__qualname__", type(function).__name__)
    try:
        found = inspect.getsourcefile(function) or ""
        source = _source(Path(found))
    except (OSError, TypeError):
        # Typed at a prompt or built in: the name is all there is to know.
        return UserFunction(function, name, repr(name))
    return UserFunction(function, name, f"{name}\n{source}", Path(found))


def load_file(path: Path) -> ModuleType:
    """Run the Python file at `path` as a module of its own; its folder is importable while it loads.

    Raises:
        InputError: no such file, or it raises while loading.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(f"joulec_user_{path.stem}_{digest}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickling look their module up by name
    try:
        with _importable(path.resolve().parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise InputError(f"{path}: fails to load{_where(error, path)}: {_say(error)}") from error
    return module


def _source(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


def _where(error: BaseException, path: Path | None) -> str:
    """` at line N` of the user's own file, where the traceback passes through it."""
    if path is None:
        return ""
    if isinstance(error, SyntaxError):
        return f" at line {error.lineno}" if error.lineno else ""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    return f" at line {lines[-1]}" if lines else ""


def _say(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _number(value: object) -> float | None:
    if value is None or isinstance(value, str | bytes) or not isinstance(value, SupportsFloat):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _brief(value: object) -> str:
    text = repr(value).splitlines()[0] if repr(value) else type(value).__name__
    return text if len(text) <= 60 else f"a {type(value).__name__}"
