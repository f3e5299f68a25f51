"""The textual form of a pipeline, `fold-constants,prune-magnitude{sparsity=0.5}`: parse, print, round-trip."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from joulec.errors import InputError
from joulec.passes.base import Pass

_STEP = re.compile(r"\s*(?P<name>[A-Za-z0-9_-]+)\s*(?:\{(?P<options>(?:[^{}\"]|\"(?:[^\"\\]|\\.)*\")*)\})?\s*(?:,|$)")
_OPTION = re.compile(r"\s*(?P<key>[A-Za-z0-9_-]+)\s*=\s*(?P<value>\"(?:[^\"\\]|\\.)*\"|[^,\"\s]+)\s*(?:,|$)")
_BARE = re.compile(r"[^,\"\s{}\\=]+")


def parse(text: str, known: Mapping[str, type[Pass]]) -> list[Pass]:
    """Read a pipeline.

    Args:
        text: passes separated by commas, options in braces: `name{option=value,...}`.
        known: pass name -> class.

    Raises:
        InputError: an unknown pass or option, or a value of the wrong type; the message lists what exists.
    """
    passes, position = [], 0
    while position < len(text):
        match = _STEP.match(text, position)
        if match is None:
            raise InputError(f"passes: cannot read {text[position:]!r}; write name{{option=value,...}},name,...")
        passes.append(_make(_lookup(match["name"], known), match["options"] or ""))
        position = match.end()
    return passes


def spell(passes: Iterable[Pass]) -> str:
    """Print a pipeline so that `parse` gives it back; options at their defaults are left out."""
    return ",".join(spell_pass(one) for one in passes)


def spell_pass(one: Pass) -> str:
    """Print one pass, e.g. `prune-magnitude{sparsity=0.5}`."""
    given = [(f.name, getattr(one, f.name)) for f in dataclasses.fields(one) if getattr(one, f.name) != f.default]
    options = ",".join(f"{_spelled(name)}={_format(value)}" for name, value in given)
    return one.pass_name() + (f"{{{options}}}" if options else "")


def options_of(kind: type[Pass]) -> list[tuple[str, str, str, str]]:
    """For help: (option, type, default, help) of every option of a pass."""
    hints = typing.get_type_hints(kind)
    return [
        (_spelled(f.name), _type_text(hints[f.name]), _format(f.default), str(f.metadata.get("help", "")))
        for f in dataclasses.fields(kind)
    ]


def _lookup(name: str, known: Mapping[str, type[Pass]]) -> type[Pass]:
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(sorted(known))}"
    raise InputError(f"passes: no pass is called '{name}'; {hint}")


def _make(kind: type[Pass], text: str) -> Pass:
    hints, given, position = typing.get_type_hints(kind), {}, 0
    fields = {_spelled(f.name): f.name for f in dataclasses.fields(kind)}
    while position < len(text.rstrip()):
        match = _OPTION.match(text, position)
        if match is None:
            raise InputError(f"passes: cannot read {text[position:]!r} in {kind.pass_name()}{{...}}")
        key = match["key"].replace("_", "-")
        if key not in fields:
            raise InputError(f"passes: {kind.pass_name()} has no option '{key}'; it has: {', '.join(fields) or 'none'}")
        given[fields[key]] = _convert(hints[fields[key]], _unquote(match["value"]), f"{kind.pass_name()}{{{key}}}")
        position = match.end()
    try:
        return kind(**given)
    except ValueError as error:
        raise InputError(f"passes: {kind.pass_name()}: {error}") from error


def _convert(hint: Any, text: str, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if text == "none" and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), text, where)
    if origin is typing.Literal:
        if text not in arguments:
            raise InputError(f"passes: {where} must be one of {', '.join(map(str, arguments))}, not '{text}'")
        return text
    if origin is tuple:
        return tuple(_convert(arguments[0], part, where) for part in text.split(";") if part)
    if hint is bool:
        if text not in ("true", "false"):
            raise InputError(f"passes: {where} must be true or false, not '{text}'")
        return text == "true"
    try:
        return hint(text)
    except ValueError:
        raise InputError(f"passes: {where} must be a {hint.__name__}, not '{text}'") from None


def _format(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    text = ";".join(map(_plain, value)) if isinstance(value, tuple) else _plain(value)
    return text if _BARE.fullmatch(text) else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _plain(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def _unquote(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1]) if text.startswith('"') else text


def _spelled(field: str) -> str:
    return field.replace("_", "-")


def _type_text(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _type_text(next(a for a in arguments if a is not type(None)))
    if origin is typing.Literal:
        return "|".join(map(str, arguments))
    if origin is tuple:
        return f"{_type_text(arguments[0])};..."
    return str(getattr(hint, "__name__", hint))
