"""Quantities as people write them at the prompt: `2.5mJ`, `100/s`, `1200kg/4y`."""

from __future__ import annotations

import math
import re

from joulec.energy.carbon import SECONDS_PER_YEAR, Embodied
from joulec.errors import InputError
from joulec.report import units

_NUMBER = r"([0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)"
_JOULES = re.compile(_NUMBER + r"\s*(p|n|u|µ|m|k|M|)J")
_RATE = re.compile(_NUMBER + r"\s*(k|M|)\s*/\s*(s|min|h|d|day|y|year)", re.IGNORECASE)
_EMBODIED = re.compile(_NUMBER + r"\s*(kg|t)\s*/\s*" + _NUMBER + r"\s*y", re.IGNORECASE)
_PREFIX = {"p": 1e-12, "n": 1e-9, "u": 1e-6, "µ": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6}
_PERIOD = {"s": 1, "min": 60, "h": 3600, "d": 86400, "day": 86400, "y": SECONDS_PER_YEAR, "year": SECONDS_PER_YEAR}


def joules(text: str, option: str) -> float:
    """`2.5mJ` in joules.

    Raises:
        InputError: not a number of joules above 0.
    """
    match = _JOULES.fullmatch(str(text).strip())
    value = float(match[1]) * _PREFIX[match[2]] if match else math.nan
    if not 0 < value < math.inf:
        raise InputError(f"{option} {units.safe(text)}: write joules per inference, such as 2.5mJ, 800uJ or 0.01J")
    return value


def rate(text: str) -> float:
    """`100/s`, `5k/min` or `1M/day` in inferences per second.

    Raises:
        InputError: not a rate above 0.
    """
    match = _RATE.fullmatch(text.strip())
    value = 0.0 if match is None else float(match[1]) * _PREFIX[match[2].replace("K", "k").replace("m", "M")]
    if match is None or not 0 < value < math.inf:
        raise InputError(f"--rate {units.safe(text)}: write inferences per time, such as 100/s, 5k/min or 1M/day")
    return value / _PERIOD[match[3].lower()]


def embodied(text: str, share: float) -> Embodied:
    """`1200kg/4y`: kilograms of CO2e that making the hardware emitted, over the years of its life.

    Raises:
        InputError: not such a quantity, or a share that is none.
    """
    match = _EMBODIED.fullmatch(text.strip())
    if match is None or float(match[3]) <= 0:
        said = "write what making the hardware emitted, over its life, such as 1200kg/4y"
        raise InputError(f"--embodied {units.safe(text)}: {said}")
    kilograms = float(match[1]) * (1000.0 if match[2].lower() == "t" else 1.0)
    return Embodied(kilograms, float(match[3]), share)
