"""joulec.toml: the options of `joulec optimize` in a file. Read only when the user names it; flags win over it."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

from joulec.errors import InputError

SIZE_LIMIT = 1 << 20
"""A configuration larger than this many bytes is some other file."""

_WORDS: dict[Any, str] = {
    str: "a string", Path: "a path", int: "a whole number", float: "a number", bool: "true or false",
    list: "a list of strings", dict: "a table",
}  # fmt: skip


def load_config(path: str | Path, known: Mapping[str, Any], paths: Collection[str] = ()) -> dict[str, Any]:
    """The options that the TOML file at `path` sets.

    Args:
        path: the file.
        known: option name -> type, or a union of types: str, Path, int, float, bool, list[str], dict. Names are
            spelled with `_` or `-`; so are the file's keys.
        paths: further names, of type str or list[str], whose values are files (`FILE.py:FUNCTION` included): like
            those of type Path they are relative to the folder of the file, so that a build does not depend on where
            it is started.

    Returns:
        Name as in `known` -> value, of the types asked for; one string stands for a list of one.

    Raises:
        InputError: no such file, not TOML, an unknown key, a key given twice, or a value of another type.
    """
    file = Path(path)
    names = {_plain(name): name for name in known}
    found: dict[str, Any] = {}
    for key, value in _read(file).items():
        name = names.get(_plain(key))
        if name is None:
            raise InputError(f"{file}: unknown key '{key}'{_closest(key, names)}")
        if name in found:
            raise InputError(f"{file}: '{key}' is given twice")
        found[name] = _located(_checked(file, key, value, known[name]), file.parent, name in paths)
    return found


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InputError(f"{file}: {'not a regular file' if file.exists() else 'no such file'}")
    try:
        with file.open("rb") as stream:
            data = stream.read(SIZE_LIMIT + 1)
        if len(data) > SIZE_LIMIT:
            raise InputError(f"{file}: larger than {SIZE_LIMIT >> 20} MiB, so not a joulec.toml")
        return tomllib.loads(data.decode())
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not valid TOML ({str(error).splitlines()[0]})") from error


def _plain(name: str) -> str:
    return name.replace("-", "_")


def _closest(key: str, names: Mapping[str, str]) -> str:
    close = difflib.get_close_matches(_plain(key), names, n=1)
    if close:
        return f"; did you mean '{close[0].replace('_', '-')}'?"
    return f"; known keys: {', '.join(name.replace('_', '-') for name in names)}"


def _checked(file: Path, key: str, value: Any, wanted: Any) -> Any:
    kinds = [kind for kind in _kinds(wanted) if kind is not NoneType]
    for kind in kinds:
        if (fitting := _fit(value, kind)) is not None:
            return fitting
    said = " or ".join(_WORDS.get(get_origin(kind) or kind, str(kind)) for kind in kinds)
    raise InputError(f"{file}: '{key}' must be {said}, not {value!r}"[:300])


def _kinds(wanted: Any) -> tuple[Any, ...]:
    return get_args(wanted) if isinstance(wanted, UnionType) else (wanted,)


def _fit(value: Any, kind: Any) -> Any:
    """`value` as `kind`, or None. TOML's booleans are ints to Python, but not to a person."""
    base = get_origin(kind) or kind
    if base is Path:
        return Path(value) if isinstance(value, str) and value else None
    if base is list:
        items = [value] if isinstance(value, str) else value
        return list(items) if isinstance(items, list) and all(isinstance(item, str) for item in items) else None
    if isinstance(value, bool) != (base is bool):
        return None
    if base is float and isinstance(value, int):
        return float(value) if abs(value) < 1 << 53 else None
    return value if isinstance(value, base) else None


def _located(value: Any, folder: Path, is_path: bool) -> Any:
    if isinstance(value, Path):
        return folder / value
    if is_path and isinstance(value, list):
        return [_located(item, folder, True) for item in value]
    if is_path and isinstance(value, str) and value != "random":
        return str(folder / value)
    return value
