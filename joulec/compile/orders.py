"""What the user ordered, and what a module is judged on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from joulec.accuracy import Judge
from joulec.errors import InputError
from joulec.ir.feeds import Feed, Feeds
from joulec.passes import spelling
from joulec.passes._quantizers import quantizes
from joulec.passes.base import Pass
from joulec.passes.clip_weights import ClipWeights
from joulec.passes.quantize import Quantize
from joulec.passes.quantize_dynamic import QuantizeDynamic
from joulec.passes.quantize_weights import QuantizeWeights
from joulec.passes.round_weights import RoundWeights

SEARCH_SECONDS = 120.0
"""How long the search for operators worth quantizing may take when the user orders nothing."""

GOALS = ("latency", "energy")
"""What a session can be tuned for."""

DEFAULT_MAX_DROP = 0.01
"""The accuracy budget in absolute points when the user orders nothing."""


@dataclass(frozen=True)
class Orders:
    """What the user ordered; None means that joulec chooses.

    Attributes:
        passes: replaces the default list.
        sparsity: share of weights to prune.
        int8: insist on INT8, forbid it, or leave it to joulec.
        max_drop: the accuracy budget in absolute points; None switches it off.
        budget_given: whether `max_drop` is the user's own, so that it binds what they ordered too.
        keep_float: patterns of node names or operator types that no quantization touches, whoever chooses it.
        float16: insist on 16-bit floats where the target has kernels, forbid them, or leave it to joulec.
        search_seconds: how long joulec may look for the operators that are worth quantizing.
        prune: whether joulec may remove channels and residual blocks by itself, where that spends the budget better.
        tune: what the session is tuned for: the time of an inference, or its energy; None leaves it as it is.
    """

    passes: tuple[Pass, ...] | None = None
    sparsity: float | None = None
    int8: bool | None = None
    max_drop: float | None = DEFAULT_MAX_DROP
    budget_given: bool = False
    keep_float: tuple[str, ...] = ()
    search_seconds: float = SEARCH_SECONDS
    float16: bool | None = None
    tune: str | None = None
    prune: bool = False

    def __post_init__(self) -> None:
        if self.sparsity is not None and not 0 <= self.sparsity <= 1:
            raise InputError(f"sparsity must lie between 0 and 1, not {self.sparsity}")
        if self.max_drop is not None and not 0 <= self.max_drop < math.inf:
            raise InputError(f"max_drop must be a number of points from 0 up, or None, not {self.max_drop}")
        if not 0 <= self.search_seconds < math.inf:
            raise InputError(f"--search-budget must be a time from 0 up, not {self.search_seconds}")
        if self.tune not in (None, *GOALS):
            raise InputError(f"--tune: write {', '.join(GOALS)} or off, not {self.tune!r}")
        if not all(pattern and ";" not in pattern for pattern in self.keep_float):
            raise InputError("--keep-float: write one pattern a time, e.g. --keep-float 'conv_1*' --keep-float Softmax")
        if self.passes is None:
            return
        if self.prune:
            raise InputError("--prune and --passes: write prune-blocks,prune-channels into --passes instead")
        if self.sparsity is not None:
            raise InputError("--sparsity and --passes: write prune-magnitude{sparsity=...} into --passes instead")
        if self.int8 is False and any(quantizes(one) for one in self.passes):
            raise InputError("--no-int8 and --passes contradict each other: --passes holds quantize")

    @property
    def given(self) -> bool:
        """Whether anything was ordered that must be carried out even if it is slower."""
        return self.passes is not None or self.sparsity is not None or self.int8 is True or self.float16 is True

    def obeyed(self, passes: Sequence[Pass]) -> list[Pass]:
        """The same passes, with quantizations that leave alone what shall stay float."""
        return [_keeping(one, self.keep_float) for one in passes]

    @property
    def prunes(self) -> bool:
        """Whether weights are to be removed."""
        return self.prune or self.sparsity is not None or any(one.prunes for one in self.passes or ())

    def spelled(self) -> tuple[str, ...]:
        """The orders in the spelling of the command line, for the report."""
        said = []
        if self.passes is not None:
            said.append(f"--passes {spelling.spell(self.passes)}")
        if self.sparsity is not None:
            said.append(f"--sparsity {self.sparsity:g}")
        if self.int8 is not None:
            said.append("--int8" if self.int8 else "--no-int8")
        if self.float16 is not None:
            said.append("--float16" if self.float16 else "--no-float16")
        said += ["--prune"] if self.prune else []
        said += [f"--keep-float {pattern}" for pattern in self.keep_float]
        if self.tune is not None:
            said.append(f"--tune {self.tune}")
        if self.budget_given:
            said.append("--max-drop none" if self.max_drop is None else f"--max-drop {self.max_drop:g}")
        return tuple(said)


def _keeping(one: Pass, patterns: tuple[str, ...]) -> Pass:
    if not patterns or not isinstance(one, Quantize | QuantizeDynamic | QuantizeWeights | ClipWeights | RoundWeights):
        return one
    return replace(one, keep_float=tuple(dict.fromkeys((*one.keep_float, *patterns))))


@dataclass(frozen=True)
class Inputs:
    """What a module is judged on.

    Attributes:
        feeds: calibration data, or None.
        probes: a few feeds for comparing and timing; may be made up.
        shapes: sizes of symbolic dimensions.
        judge: scores accuracy, or None.
        obstacle: why the input model does not run here, or None. Where it does not, there are no probes, and nothing
            is compared, timed, calibrated or judged.
        cache: folder where calibrations are kept by content, or None.
        journal: file in which a search notes what it has measured, so that it can go on there, or None.
    """

    feeds: Feeds | None
    probes: Sequence[Feed]
    shapes: Mapping[str, int | tuple[int, ...]]
    judge: Judge | None
    obstacle: str | None = None
    cache: Path | None = None
    journal: Path | None = None
