"""What a change is worth: by measurement where its device is at hand, else by a prediction that its own error allows.

One rule for all that joulec chooses. A measured ratio of times counts where its whole 95 % interval lies on one side
of 1. A predicted saving of joules counts where its whole interval lies on one side of zero, every coefficient that
both models share being one unknown number for both (`joulec.energy.compare`), and where it is no trifle (`FLOOR`).
Anything else is no detectable change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from joulec.energy import Change, Estimate, compare
from joulec.payoff import Paired
from joulec.report import units

FLOOR = 0.01
"""The share of a model's joules below which no prediction is believed: what is counted (operations and bytes of each
kernel, what a runtime fuses by itself) is only as exact as that, however certain the coefficients are."""

Basis = Literal["measured", "predicted"]


@dataclass(frozen=True)
class Worth:
    """What a change is worth.

    Attributes:
        basis: `measured` (time, in pairs, on this machine) or `predicted` (joules, by the energy model).
        better, worse: what can be told of it; neither is no detectable change.
        rank: before over after, of time or of joules, to order changes that were weighed on one basis.
        paired: the timing, where it was measured.
        saving: the predicted saving with its paired interval, where it was not.
        device: what the prediction holds for.
    """

    basis: Basis
    better: bool
    worse: bool
    rank: float
    paired: Paired | None = None
    saving: Change | None = None
    device: str = ""

    def numbers(self) -> dict[str, float]:
        """What a decision records of it."""
        if self.paired is not None:
            return {"ratio": self.paired.ratio, "low": self.paired.low, "high": self.paired.high}
        if self.saving is None:
            return {}
        return {"saved": self.saving.joules, "saved_low": self.saving.low, "saved_high": self.saving.high}

    def said(self, other: str) -> str:
        """The change in words, against `other`: `1.47x (1.43 to 1.50) the speed of float`."""
        if self.paired is not None:
            return f"{self.paired} the speed of {other}"
        return f"{self._joules()} against {other}, as predicted for {units.safe(self.device)}"

    def would(self, other: str) -> str:
        """The same as what a change would do: `would run at 0.80x (0.78 to 0.83) the speed of float`."""
        return f"would {'bring' if self.saving is not None else 'run at'} {self.said(other)}"

    def _joules(self) -> str:
        if self.saving is None:
            return ""
        if not (self.better or self.worse):
            low, high = (units.joules(end) for end in (self.saving.low, self.saving.high))
            return f"no detectable change in energy ({low} to {high} per inference saved)"
        least, most = sorted(abs(end) for end in (self.saving.low, self.saving.high))
        size = f"{units.joules(abs(self.saving.joules))} per inference ({units.joules(least)} to {units.joules(most)})"
        return f"{size} {'less' if self.better else 'more'}"


def measured(paired: Paired) -> Worth:
    """By times that were measured in pairs on the device in question."""
    return Worth("measured", paired.faster, paired.slower, paired.ratio, paired=paired)


def predicted(before: Estimate, after: Estimate) -> Worth:
    """By the energy model, for a device that is not at hand."""
    saving = compare(before, after)
    rank = before.total_joules / after.total_joules if after.total_joules else 1.0
    told = saving.detectable and abs(saving.joules) > FLOOR * before.total_joules
    better, worse = told and saving.joules > 0, told and saving.joules < 0
    return Worth("predicted", better, worse, rank, saving=saving, device=after.device)
