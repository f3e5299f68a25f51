"""joulec compiles trained models into the artefact that spends the fewest joules per inference.

The public names are imported when they are first used, so that `import joulec` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from joulec.api import Result, estimate, measure, optimize, simplify, verify
    from joulec.backends.artefact import load
    from joulec.bisecting import bisect
    from joulec.energy import EnergyModel, Estimate
    from joulec.errors import BudgetError, CheckError, InputError, JoulecError, UnavailableError
    from joulec.explaining import explain
    from joulec.footprint import carbon
    from joulec.gating import Gate, gate
    from joulec.ir.module import Module
    from joulec.ir.rewrite import Refused, Rewriter
    from joulec.ir.rules import Rule
    from joulec.pages import Page, show
    from joulec.passes.base import Context, Fidelity, Pass, PassResult, RulePass, option
    from joulec.passes.pipeline import Observer, Outcome, Pipeline
    from joulec.training.finetuning import FineTuned, finetune
    from joulec.training.masks import apply_masks

_HOMES = {
    "joulec.api": ("Result", "estimate", "measure", "optimize", "simplify", "verify"),
    "joulec.backends.artefact": ("load",),
    "joulec.bisecting": ("bisect",),
    "joulec.energy": ("EnergyModel", "Estimate"),
    "joulec.errors": ("BudgetError", "CheckError", "InputError", "JoulecError", "UnavailableError"),
    "joulec.explaining": ("explain",),
    "joulec.footprint": ("carbon",),
    "joulec.gating": ("Gate", "gate"),
    "joulec.ir.module": ("Module",),
    "joulec.ir.rewrite": ("Refused", "Rewriter"),
    "joulec.ir.rules": ("Rule",),
    "joulec.pages": ("Page", "show"),
    "joulec.passes.base": ("Context", "Fidelity", "Pass", "PassResult", "RulePass", "option"),
    "joulec.passes.pipeline": ("Observer", "Outcome", "Pipeline"),
    "joulec.training.finetuning": ("FineTuned", "finetune"),
    "joulec.training.masks": ("apply_masks",),
}

__all__ = [
    "BudgetError",
    "CheckError",
    "Context",
    "EnergyModel",
    "Estimate",
    "Fidelity",
    "FineTuned",
    "Gate",
    "InputError",
    "JoulecError",
    "Module",
    "Observer",
    "Outcome",
    "Page",
    "Pass",
    "PassResult",
    "Pipeline",
    "Refused",
    "Result",
    "Rewriter",
    "Rule",
    "RulePass",
    "UnavailableError",
    "__version__",
    "apply_masks",
    "bisect",
    "carbon",
    "estimate",
    "explain",
    "finetune",
    "gate",
    "load",
    "measure",
    "optimize",
    "option",
    "show",
    "simplify",
    "verify",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'joulec' has no attribute {name!r}")
