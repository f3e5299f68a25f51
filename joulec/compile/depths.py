"""Which residual blocks may go: a path from the whole model to ever shallower ones.

The block that saves the most time for what it changes goes first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from joulec.compile.bench import Bench
from joulec.compile.widths import NOTHING, predicted_seconds
from joulec.ir.module import Module
from joulec.ir.rewrite import Rewriter
from joulec.passes._patterns import literal
from joulec.passes.prune_blocks import PruneBlocks, changes, survey


def path(bench: Bench, module: Module, order: PruneBlocks) -> Iterator[PruneBlocks]:
    """Ever shallower models, a block a step."""
    bench.progress("asking what each block is worth", None)
    copy = module.clone()
    found = survey(copy, Rewriter(copy, order.pass_name()))
    losses, seconds = changes(copy, bench.context(copy), found), predicted_seconds(bench, copy)
    saved = [sum(seconds.get(node.name or "", 0.0) for node in one.nodes) for one in found]
    worth = {at: saved[at] / (losses[at] + NOTHING) for at in range(len(found)) if saved[at] > 0}
    names = [literal(found[at].joined.name or "") for at in sorted(worth, key=lambda at: -worth[at])]
    for count in range(1, len(names) + 1):
        yield replace(order, blocks=tuple(names[:count]))


def beside(found: PruneBlocks, before: PruneBlocks, after: PruneBlocks) -> PruneBlocks:
    """What was found, with the block by which two neighbours on the path differ."""
    return replace(found, blocks=(*found.blocks, *(one for one in after.blocks if one not in before.blocks)))
