"""What a pass is: a frozen dataclass whose fields are its options, and a `run` that reports what it did."""

from __future__ import annotations

import dataclasses
import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from joulec.ir.feeds import Feed, Feeds
from joulec.ir.module import Module
from joulec.ir.rewrite import Refusal, Rewrite, Rewriter
from joulec.ir.rules import Rule, apply_rules, kebab
from joulec.passes.target import Target

if TYPE_CHECKING:
    from joulec.energy.model import EnergyModel
    from joulec.ir.runner import Runner


class Fidelity(enum.Enum):
    """What a pass promises about the numbers."""

    EXACT = "exact"
    """The same outputs up to float reassociation; checked at a tight tolerance."""

    LOSSY = "lossy"
    """Spends accuracy budget."""


def _silent(message: str, fraction: float | None = None) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class Context:
    """What a pass is handed besides the module.

    Attributes:
        target: the execution provider compiled for.
        feeds: calibration data, or None where the user gave none.
        probes: a few feeds (the user's or synthetic) on which exact passes must keep the outputs.
        obstacle: why there are no probes, or None.
        bindings: sizes of symbolic dimensions, by symbol or whole shapes by input name, for pricing.
        runner: runs models (in a child process from the command line), or None where running is not wanted.
        energy: prices nodes, or None.
        progress: called as `progress(message, fraction)` by long passes; fraction is 0..1 or None.
        cache: folder where results that take long are kept by content, or None to keep none.
        candidates: instead of probes, made-up feeds in several sizes: the first two on which the input model runs.
        excerpts: whether parts around each rewrite are compared where the whole model cannot be run.
    """

    target: Target
    feeds: Feeds | None = None
    probes: Sequence[Feed] = ()
    obstacle: str | None = None
    bindings: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)
    runner: Runner | None = None
    energy: EnergyModel | None = None
    progress: Callable[[str, float | None], None] = _silent
    excerpts: bool = False
    cache: Path | None = None
    candidates: Feeds | None = None


@dataclass(frozen=True)
class PassResult:
    """What a pass did, as observed by its rewriter.

    Attributes:
        rewrites: the changes made.
        refusals: the changes not made, each with its reason.
        notes: one line each for a person; also the place of "nothing to do, because".
    """

    rewrites: tuple[Rewrite, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, rewriter: Rewriter, notes: Iterable[str] = ()) -> PassResult:
        """The result that `rewriter` observed."""
        return cls(tuple(rewriter.rewrites), tuple(rewriter.refusals.values()), tuple(notes))

    @classmethod
    def nothing(cls, note: str) -> PassResult:
        """No change, and why."""
        return cls(notes=(note,))

    @property
    def changed(self) -> bool:
        """Whether the module was changed."""
        return bool(self.rewrites)


@dataclass(frozen=True)
class Pass(ABC):
    """One step of the pipeline.

    A subclass is a frozen dataclass; its fields are its options, its class docstring's first line is its help, and
    its name at the prompt is its class name in kebab case: `FoldConstants` is `fold-constants`. Give a field help
    with `option(default, "what it does")`.
    """

    fidelity: ClassVar[Fidelity] = Fidelity.EXACT

    indivisible: ClassVar[bool] = False
    """Whether the rewrites make sense only all together, so that `joulec bisect` does not look for one among them."""

    prunes: ClassVar[bool] = False
    """Whether it removes weights, so that the build tracks where in the source model each weight came from."""

    @classmethod
    def pass_name(cls) -> str:
        """The name at the prompt and in reports."""
        return kebab(cls.__name__)

    @classmethod
    def summary(cls) -> str:
        """The first line of the docstring."""
        return (cls.__doc__ or "").strip().splitlines()[0] if cls.__doc__ else ""

    def files(self) -> tuple[str, ...]:
        """Files that the options name; a build depends on what is in them."""
        return ()

    @abstractmethod
    def run(self, module: Module, context: Context) -> PassResult:
        """Change `module` in place and say what was done. Raising anything rolls the pass back."""


@dataclass(frozen=True)
class RulePass(Pass):
    """A pass that is nothing but rules, applied until none fires."""

    def rules(self, context: Context) -> list[Rule]:
        """The rules, in the order in which they are tried at one node."""
        raise NotImplementedError

    def run(self, module: Module, context: Context) -> PassResult:
        """Apply the rules everywhere: main graph, subgraphs and functions."""
        rewriter = Rewriter(module, self.pass_name())
        apply_rules(rewriter, self.rules(context))
        return PassResult.of(rewriter)


def option(default: Any, help: str) -> Any:
    """A pass option: its default and the line that `joulec passes` shows for it."""
    return dataclasses.field(default=default, metadata={"help": help})
