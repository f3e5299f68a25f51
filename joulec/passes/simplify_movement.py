"""simplify-movement: move, repeat and reshape data only where it changes something."""

from __future__ import annotations

from dataclasses import dataclass

from joulec.ir.module import Module
from joulec.ir.partial import ShapeFacts
from joulec.ir.rewrite import Rewriter
from joulec.ir.rules import Rule, apply_rules
from joulec.passes import _broadcasts, _moves, _parts, _picks, _reshapes, _zerosigns
from joulec.passes.base import Context, Pass, PassResult


@dataclass(frozen=True)
class SimplifyMovement(Pass):
    """Merge reshapes, casts, slices, joins and gathers, and let operators broadcast by themselves."""

    def run(self, module: Module, context: Context) -> PassResult:
        """Apply the rules until none fires, on shapes in the graph's own symbols: O(nodes + rewrites)."""
        rewriter = Rewriter(module, self.pass_name())
        facts = ShapeFacts.of(module)
        rules: list[Rule] = [
            _reshapes.IdleRelayout(facts),
            _reshapes.MergeRelayouts(facts),
            _reshapes.ReshapeByOnes(facts),
            _reshapes.UnitTranspose(facts),
            _reshapes.ReshapeAcrossTranspose(facts),
            _reshapes.GatherTransposed(facts),
            _broadcasts.BroadcastByItself(facts),
            _broadcasts.NeutralOperand(facts),
            _zerosigns.AddedZero(facts, module),
            _moves.FlattenConcat(facts),
            _moves.JoinOfParts(facts),
            _moves.MergeSlices(facts),
            _moves.GatherOfConcat(facts),
            _moves.MergeGathers(facts),
            _moves.MergeCasts(),
            _moves.Undone(),
            _moves.Idempotent(),
            _moves.ReduceNothing(facts),
            _moves.MergePads(facts),
            _picks.PickSlice(facts),
            _picks.RollByGather(facts),
            _picks.FlatProduct(facts),
            _parts.KeepPicked(facts),
        ]
        apply_rules(rewriter, rules)
        apply_rules(rewriter, [_parts.PartsBySplit(facts)])  # behind what joins parts in another order
        return PassResult.of(rewriter)
