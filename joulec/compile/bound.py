"""Sizes that the user gave, fixed for good: providers that plan memory or build engines want no open dimensions."""

from __future__ import annotations

from joulec.backends.profiles import fixed_sizes
from joulec.compile.bench import Bench
from joulec.data import synthetic_feeds
from joulec.energy.bind import fix_in_place, infer_all, sizes_of
from joulec.errors import InputError
from joulec.ir.feeds import Feed
from joulec.ir.module import Module
from joulec.passes.default import exact_passes
from joulec.passes.pipeline import Outcome

PROBES = 2
"""Feeds on which the exact passes are compared."""


def bound(bench: Bench, module: Module) -> Outcome | None:
    """The module with the sizes of `--shape` in its signature, and what follows from them folded; None if none do.

    Runs behind everything that is judged: a metric may use other sizes than the artefact will.
    """
    sizes = fixed_sizes(module, bench.inputs.shapes)
    if not bench.backend.fixes_sizes or not sizes:
        return None
    fixed = module.clone()
    fix_in_place(fixed, sizes)
    infer_all(fixed, symbolic=True)  # what the outputs declare follows
    ranges = {name: size for name, size in sizes_of(module, bench.inputs.shapes).items() if name not in sizes}
    probes = [] if bench.inputs.obstacle else _probes(fixed, ranges)
    return bench.run([*exact_passes(), *bench.backend.fitting()], fixed, probes=probes)


def _probes(fixed: Module, ranges: dict[str, int]) -> list[Feed]:
    """Made-up feeds of the fixed sizes: the user's data may have others."""
    try:
        return list(synthetic_feeds(fixed.inputs(), ranges, PROBES, 0).head(PROBES))
    except InputError:
        return []
