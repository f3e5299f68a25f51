"""The passes by which activations are chosen: what a recorded choice of them may consist of."""

from __future__ import annotations

from joulec.passes.base import Pass
from joulec.passes.cheapen_activations import CheapenActivations
from joulec.passes.eliminate_common_subexpressions import EliminateCommonSubexpressions
from joulec.passes.expand_activations import ExpandActivations
from joulec.passes.raise_patterns import RaisePatterns
from joulec.passes.upgrade_opset import UpgradeOpset

_CHOSEN = (UpgradeOpset, RaisePatterns, ExpandActivations, CheapenActivations, EliminateCommonSubexpressions)

ACTIVATION_PASSES: dict[str, type[Pass]] = {kind.pass_name(): kind for kind in _CHOSEN}
"""Pass name -> class."""
