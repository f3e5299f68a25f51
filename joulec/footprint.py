"""`joulec carbon`: what inferences of a model emit, by region."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from joulec.api import estimate
from joulec.build import Shapes
from joulec.energy.carbon import Carbon, Embodied, Intensity, Spread, emissions, intensity_of
from joulec.energy.estimate import Estimate
from joulec.errors import InputError

if TYPE_CHECKING:
    from joulec.ir.sandbox import Limits


def carbon(
    model: Any, region: str | Sequence[str], *, rate: float | None = None, pue: float = 1.0,
    embodied: Embodied | None = None, kind: str = "average", grids: str | Path | None = None,
    joules: float | None = None, target: str | None = None, shape: Shapes | None = None, device: str | None = None,
    limits: Limits | None = None, trust_code: bool = False,
) -> tuple[Carbon, ...]:  # fmt: skip
    """The emissions of a model's inferences, for each region.

    Args:
        model: anything `estimate` takes; may be None where `joules` is given.
        region: codes or names of grids, e.g. `DE`.
        rate: inferences per second, for emissions per year.
        pue: energy of the data centre over that of its devices.
        embodied: emissions of making the hardware; not included where None.
        kind: `average` or `marginal` intensity.
        grids: a TOML table of your own instead of the one that ships.
        joules: per inference, as you measured it; then nothing is estimated.
        target, shape, device, limits, trust_code: see `estimate`.

    Raises:
        InputError: no such region, a factor out of range, or neither a model nor joules.
    """
    regions = [region] if isinstance(region, str) else list(region)
    if not regions:
        raise InputError("no region: --region DE names a grid, joulec carbon --list shows them")
    table = None if grids is None else Path(grids)
    found = [intensity_of(one, kind, table) for one in regions]
    if joules is not None:
        spent = _given(joules)
        return tuple(emissions(spent, "given", one, pue=pue, rate=rate, embodied=embodied) for one in found)
    if model is None:
        raise InputError("name a model, or give --joules per inference")
    priced = estimate(model, target, shape, device, limits=limits, trust_code=trust_code)
    return tuple(of_estimate(priced, one, pue=pue, rate=rate, embodied=embodied) for one in found)


def of_estimate(priced: Estimate, grid: Intensity, **more: Any) -> Carbon:
    """The emissions of what was priced; `more` goes to `emissions`."""
    return emissions(per_inference(priced), priced.tier, grid, left_out=priced.unknown, **more)


def per_inference(priced: Estimate) -> Spread:
    """Joules of one sample where the batch is known, else of one run."""
    samples = priced.samples or 1
    return Spread(priced.total_joules / samples, priced.low / samples, priced.high / samples)


def _given(joules: float) -> Spread:
    if not 0 < joules < 1e12:
        raise InputError(f"--joules {joules:g}: write joules per inference, such as 2.5mJ")
    return Spread(joules, joules, joules)
