"""Numbers and names as people read them: joules, bytes, ratios; names from a model made harmless."""

from __future__ import annotations

import math
import unicodedata

_JOULES = ((1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ"), (1e-9, "nJ"), (1e-12, "pJ"))
_BYTES = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that move the cursor, reverse the text or show as nothing."""

MAX_NAME = 200
"""Longest name shown; models may carry names of megabytes."""


def safe(text: object, limit: int = MAX_NAME) -> str:
    """Text from a model as visible characters: control, bidirectional and unassigned ones become escapes."""
    value = str(text)
    cut = value[:limit]
    shown = "".join(_visible(character) for character in cut)
    return shown if len(value) <= limit else f"{shown}…"


def node(name: object, limit: int) -> str:
    """A node's name in `limit` columns: its end, which tells nodes apart, where it is longer; made harmless."""
    value = str(name)
    return safe(value, MAX_NAME) if len(value) <= limit else "…" + safe(value[1 - limit :], MAX_NAME)


def _visible(character: str) -> str:
    if unicodedata.category(character) not in _HIDDEN:
        return character
    return character.encode("unicode_escape").decode("ascii")


def joules(value: float | None) -> str:
    """Joules with a prefix and three digits: `1.23 mJ`; `unknown` for None."""
    if value is None:
        return "unknown"
    if value == 0 or not math.isfinite(value):
        return "0 J" if value == 0 else f"{value} J"
    scale, unit = next(((s, u) for s, u in _JOULES if abs(value) >= s), _JOULES[-1])
    return f"{digits(value / scale)} {unit}"


def grams(value: float) -> str:
    """Grams with a prefix, tonnes from a million on: `1.23 µg`, `45.0 kg`."""
    for scale, unit in ((1e6, "t"), (1e3, "kg"), (1.0, "g"), (1e-3, "mg"), (1e-6, "µg"), (1e-9, "ng")):
        if abs(value) >= scale:
            return f"{digits(value / scale)} {unit}"
    return f"{digits(value / 1e-12)} pg" if value else "0 g"


def count(amount: float) -> str:
    """Operations with a prefix: `1.18 M`."""
    for scale, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if amount >= scale:
            return f"{digits(amount / scale)} {unit}"
    return f"{amount:.0f}"


def size(count: int) -> str:
    """Bytes with a binary prefix: `1.5 MiB`."""
    for scale, unit in _BYTES:
        if abs(count) >= scale:
            return f"{digits(count / scale)} {unit}"
    return f"{count} B"


def digits(value: float, count: int = 3) -> str:
    """A number with `count` significant digits and no exponent."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    after = max(0, count - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{after}f}"


def milliseconds(value: float) -> str:
    """Milliseconds, in microseconds below one: `0.412 ms` is `412 µs`."""
    return f"{digits(value)} ms" if value >= 1 else f"{digits(value * 1e3)} µs"


def seconds(value: float | None) -> str:
    """A duration as a person would say it."""
    if value is None:
        return ""
    return milliseconds(value * 1e3) if value < 1 else f"{digits(value)} s"


def change(before: float, after: float) -> str:
    """The relative change in percent, with its sign: `−25 %`; what appears from nothing has none."""
    if before == after:
        return "no change"
    if before == 0:
        return "new"
    return percent((after - before) / before)


def percent(share: float) -> str:
    """A share with its sign, in percent: `−25 %`."""
    percent = 100 * share
    if abs(percent) < 0.05:
        return "under 0.1\u00a0%"
    text = f"{percent:+.1f}" if abs(percent) < 10 else f"{percent:+.0f}"
    return f"{text.replace('-', '−')}\u00a0%"


def plural(count: int, noun: str, many: str | None = None) -> str:
    """`1 node`, `2 nodes`."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"
