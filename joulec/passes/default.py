"""The default pipeline, one list, top to bottom."""

from __future__ import annotations

from joulec.passes.base import Pass
from joulec.passes.eliminate_common_subexpressions import EliminateCommonSubexpressions
from joulec.passes.eliminate_dead_code import EliminateDeadCode
from joulec.passes.eliminate_failing_branches import EliminateFailingBranches
from joulec.passes.eliminate_identity import EliminateIdentity
from joulec.passes.fold_constants import FoldConstants
from joulec.passes.fuse_affine import FuseAffine
from joulec.passes.fuse_gather import FuseGather
from joulec.passes.fuse_gemm import FuseGemm
from joulec.passes.fuse_pad import FusePad
from joulec.passes.fuse_pooling import FusePooling
from joulec.passes.fuse_transpose import FuseTranspose
from joulec.passes.lower_pooled import LowerPooled
from joulec.passes.merge_steps import MergeSteps
from joulec.passes.raise_patterns import RaisePatterns
from joulec.passes.simplify_movement import SimplifyMovement
from joulec.passes.simplify_shapes import SimplifyShapes
from joulec.passes.widen_convolutions import WidenConvolutions


def exact_passes() -> list[Pass]:
    """The passes that keep the numbers: what `optimize` runs first, and `joulec simplify` with one more."""
    return [*_fusing(), *_cleaning()]


def simplifying_passes() -> list[Pass]:
    """What `joulec simplify` runs. `optimize` tries the layouts of its target later, behind what else it may change,
    and knows the processor; `simplify` ends with the one that none was found to lose by.
    """
    return [*_fusing(), LowerPooled(), *_cleaning()]


def _fusing() -> list[Pass]:
    return [
        FoldConstants(),
        EliminateFailingBranches(),
        EliminateIdentity(),
        SimplifyShapes(),
        EliminateDeadCode(),  # what asked for a size that is known now must not look like a user to what follows
        SimplifyMovement(),
        FuseTranspose(),
        EliminateDeadCode(),  # what a Transpose no longer feeds must not look like a second user to the fusions
        RaisePatterns(),
        FuseGather(),
        FusePad(),
        FusePooling(),
        FuseAffine(),
        FuseGemm(),
        MergeSteps(),  # a product and its bias are one operator by now
        WidenConvolutions(),
    ]


def _cleaning() -> list[Pass]:
    return [
        EliminateCommonSubexpressions(),  # behind the fusions: what two nodes share, neither can take in
        FoldConstants(),
        EliminateIdentity(),
        EliminateDeadCode(),
    ]
