"""The search for blocks worth quantizing: time is measured kernel by kernel, noise block by block, sets by a cut.

Minimum cuts under a rising price of noise give sets from the fastest to the most accurate. The accuracy of a set is
judged as a whole, and its speed measured as a whole: what is predicted only says what to try.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from joulec.compile.bench import Bench
from joulec.compile.journal import Journal
from joulec.compile.kernels import Kernels
from joulec.compile.noise import LOUDEST, Noise
from joulec.compile.partition import LARGEST, Gain, best_blocks
from joulec.energy.bind import bind
from joulec.errors import JoulecError
from joulec.ir.module import Module
from joulec.passes import spelling
from joulec.passes._patterns import first_match, literal
from joulec.passes.base import Pass, PassResult
from joulec.passes.blocks import Block, survey
from joulec.passes.pipeline import Outcome
from joulec.passes.quantize import Quantize
from joulec.passes.regions import islands
from joulec.report.data import Cost

ROUNDS = 12
"""Inferences profiled."""

PRICES = 64
"""Prices of noise tried at most, spread over those at which some block stops to pay."""

NOISE_SHARE = 0.5
"""How much of the time that is left may go into the noise of single blocks; the rest is for judging sets of them."""

COSTS_SECONDS = 10.0
"""How long to look for what operators cost in accuracy only to say it."""

SLOWER = "INT8 would not be faster here"
NOISIER = "INT8 here would cost more accuracy than the time is worth"

_NANO = 1e-9


_KEPT = "kept float by keep-float="


@dataclass(frozen=True)
class Proposal:
    """A set of blocks to quantize.

    Attributes:
        quantize: the pass that quantizes them and no others.
        reasons: pattern that keeps a block float -> why.
        refinements: passes that fit weights to the data before that.
    """

    quantize: Pass
    reasons: Mapping[str, str] = field(default_factory=dict)
    refinements: tuple[Pass, ...] = ()

    @property
    def spelled(self) -> str:
        """All passes of it."""
        return spelling.spell((*self.refinements, self.quantize))

    def explained(self, outcome: Outcome) -> Outcome:
        """What came of it, with the search's reasons in place of the patterns that carry them out."""
        steps = tuple(replace(step, result=self._explained(step.result)) for step in outcome.steps)
        return replace(outcome, steps=steps)

    def _explained(self, result: PassResult) -> PassResult:
        refusals = (replace(one, reason=self._reason(one.reason)) for one in result.refusals)
        return replace(result, refusals=tuple(refusals))

    def _reason(self, said: str) -> str:
        return self.reasons.get(said.removeprefix(_KEPT), said) if said.startswith(_KEPT) else said


class Search:
    """Proposes sets of blocks to quantize.

    Args:
        bench: runs and measures.
        floating: the float module, as it would be shipped.
        calibrated: the same with ranges.
        full: the same with all blocks quantized.
        deadline: `time.monotonic()` after which no more is measured.
        journal: what was found by a search that was cut off.
        insist: INT8 was ordered, faster or not: what blocks take in float counts as what INT8 can save.
    """

    def __init__(
        self, bench: Bench, floating: Module, calibrated: Module, full: Module, deadline: float, journal: Journal,
        insist: bool = False,
    ) -> None:  # fmt: skip
        self._journal = journal
        self._bench, self._floating, self._calibrated, self._deadline = bench, floating, calibrated, deadline
        self.blocks = _blocks(bench, calibrated)
        self._sizes = self._elements()
        if not bench.times_target:
            self._seconds, self._rate = self._predicted(), 0.0
        elif insist:
            self._seconds, self._rate = Kernels(self._profile(floating)).of_blocks(self.blocks), 0.0
        else:
            self._seconds, self._rate = self._profiled(full)
        self._noise: list[float] | None = None
        self._measured: dict[int, float] = {}

    @property
    def late(self) -> bool:
        """Whether the budget of time is spent."""
        return time.monotonic() > self._deadline

    # -- time -----------------------------------------------------------------------------------------------

    def _profiled(self, full: Module) -> tuple[list[float], float]:
        """Seconds that each block saves in integers, and seconds per element of a border."""
        before, after = (Kernels(self._profile(module)) for module in (self._floating, full))
        saved = [a - b for a, b in zip(before.of_blocks(self.blocks), after.of_blocks(self.blocks), strict=True)]
        spent, moved = 0.0, 0
        for block in self.blocks:
            for value in (*block.inputs, block.output):
                seconds = after.seconds(f"{value.name}_quantize")
                if seconds is not None:
                    spent, moved = spent + seconds, moved + self._sizes.get(value.name or "", 0)
        return saved, spent / moved if moved else _NANO

    def _predicted(self) -> list[float]:
        """For a target that is not at hand: what blocks cost by the energy model, which INT8 cannot but lower."""
        estimate = self._bench.energy.estimate(self._calibrated, self._bench.inputs.shapes)
        joules = Kernels({node.name: node.energy.joules for node in estimate.nodes if node.energy.joules is not None})
        return joules.of_blocks(self.blocks)

    def _profile(self, module: Module) -> dict[str, float]:
        bench = self._bench
        bench.progress("timing single kernels", None)
        shipped = bench.backend.finished(module)
        return bench.runner.profile(shipped, bench.inputs.probes[0], rounds=ROUNDS, options=bench.options())

    def _elements(self) -> dict[str, int]:
        """Elements of every value, at the sizes of the first probe."""
        fed = {name: np.shape(array) for name, array in self._bench.inputs.probes[0].items()}
        try:
            bound, _ = bind(self._calibrated, fed)
        except JoulecError:
            bound = self._calibrated  # sizes in proportion are enough
        return {name: _size(value) for node in bound.graph for value in node.outputs if (name := value.name)}

    def _border(self, value: ir.Value) -> float:
        return self._rate * self._sizes.get(value.name or "", 1)

    # -- noise ----------------------------------------------------------------------------------------------

    def _noises(self) -> list[float]:
        """The noise of each block alone; those that time does not allow to ask for count as the loudest half does."""
        if self._noise is not None:
            return self._noise
        found, now = self._measured, time.monotonic()
        self._listen(now + NOISE_SHARE * (self._deadline - now))
        usual = float(np.quantile(list(found.values()), 0.75)) if found else 0.0
        self._noise = [
            found.get(index, usual if block.kind == "compute" else 0.0) for index, block in enumerate(self.blocks)
        ]
        return self._noise

    def _listen(self, deadline: float) -> None:
        """Measure the noise of one block after the other until a time, those that save most first."""
        noise = Noise(self._bench, self._floating)
        order = sorted(self._computing(), key=lambda index: -self._seconds[index])
        for count, index in enumerate(order):
            if time.monotonic() > deadline:
                break
            self._bench.progress("how much each operator costs in accuracy", count / len(order))
            self._measured[index] = self._known(index, noise)

    def costs(self) -> list[Cost]:
        """What single operators cost in accuracy, measured for `COSTS_SECONDS` where no choice had to know it."""
        if not self._measured:
            self._listen(min(self._deadline, time.monotonic() + COSTS_SECONDS))
        named = ((self.blocks[index], noise) for index, noise in sorted(self._measured.items()))
        return [Cost(block.output.name or "", block.node.op_type, float(f"{noise:.4g}")) for block, noise in named]

    def _known(self, index: int, noise: Noise) -> float:
        what = f"noise of {pattern(self.blocks[index])}"
        if (known := self._journal.recall(what, "noise")) is not None:
            return float(known["noise"])
        found = self._alone(index, noise)
        self._journal.note(what, noise=found)
        return found

    def _alone(self, index: int, noise: Noise) -> float:
        others = [self.blocks[other] for other in self._computing() if other != index]
        module = self._calibrated.clone()
        try:
            Quantize(keep_float=tuple(map(pattern, others))).run(module, self._bench.context(module))
            return noise.of(module)
        except JoulecError:
            return LOUDEST

    def _computing(self) -> list[int]:
        return [index for index, block in enumerate(self.blocks) if block.kind == "compute"]

    # -- sets -----------------------------------------------------------------------------------------------

    def fastest(self) -> Proposal | None:
        """The set that saves the most time, whatever it costs in accuracy; None where nothing saves any."""
        return self._proposal(self._cut([0.0] * len(self.blocks), 0.0))

    def ever_more_accurate(self) -> Iterator[Proposal]:
        """Sets from the fastest to the most accurate, without repetitions."""
        noises = self._noises()
        pairs = zip(self._seconds, noises, strict=True)
        stops = sorted({seconds / noise * 1.0001 for seconds, noise in pairs if seconds > 0 and noise > 0})
        prices = [0.0, *stops[:: max(1, math.ceil(len(stops) / PRICES))]]
        seen: set[frozenset[int]] = set()
        for price in prices:
            chosen = self._cut(noises, price)
            if chosen not in seen and (proposal := self._proposal(chosen)) is not None:
                seen.add(chosen)
                yield proposal

    def _cut(self, noises: Sequence[float], price: float) -> frozenset[int]:
        if len(self.blocks) > LARGEST:
            return frozenset(range(len(self.blocks)))
        gains = [Gain(seconds, noise) for seconds, noise in zip(self._seconds, noises, strict=True)]
        return best_blocks(self.blocks, gains, self._border, price)

    def _proposal(self, chosen: frozenset[int]) -> Proposal | None:
        if not any(self.blocks[index].kind == "compute" for index in chosen):
            return None
        slow = set(range(len(self.blocks))) - self._cut([0.0] * len(self.blocks), 0.0)
        left = [index for index in range(len(self.blocks)) if index not in chosen]
        reasons = {pattern(self.blocks[index]): SLOWER if index in slow else NOISIER for index in left}
        return Proposal(Quantize(keep_float=tuple(reasons)), reasons)


def _blocks(bench: Bench, calibrated: Module) -> tuple[Block, ...]:
    """What all of quantize would quantize."""
    scheme, kept = bench.backend.target.quantization, bench.orders.keep_float
    if scheme is None:
        return ()
    found = survey(calibrated, scheme, bench.backend.target.name, lambda node: first_match(node, kept))
    return islands(found.blocks, scheme).kept


def pattern(block: Block) -> str:
    """The pattern that names the operator of `block` and no other: the value it makes, of which there is one."""
    return literal(block.node.outputs[0].name or "")


def _size(value: ir.Value) -> int:
    if value.shape is None:
        return 1
    return int(np.prod([dim if isinstance(dim, int) else 1 for dim in value.shape], dtype=np.float64))
