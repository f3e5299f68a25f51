"""raise-patterns: arithmetic that spells out an operator of the opset becomes that operator."""

from __future__ import annotations

from dataclasses import dataclass

from joulec.ir.module import Module
from joulec.ir.rewrite import Rewriter
from joulec.ir.rules import Rule, apply_rules
from joulec.passes import _raise_activations, _raise_clamps, _raise_norms, _raise_softmax
from joulec.passes._zerosigns import ZeroSigns
from joulec.passes.base import Context, Pass, PassResult


@dataclass(frozen=True)
class RaisePatterns(Pass):
    """Raise spelled-out activations, normalizations and softmaxes to operators of the opset, where that is no slower.

    What runtimes fuse at load is brought into the spelling that they look for, where the opset lacks the operator.
    x * Sigmoid(x) stays: ONNX Runtime's Swish, of opset 24, is slower. Log(1 + Exp(x)) stays: it overflows, and
    Softplus does not.
    """

    def run(self, module: Module, context: Context) -> PassResult:
        """Apply the rules until none fires; each knows the spellings of one operator. O(nodes + rewrites)."""
        rewriter = Rewriter(module, self.pass_name())
        rules: list[Rule] = [
            _raise_clamps.RaiseHardSigmoid(),
            _raise_clamps.RaiseHardSwish(),
            _raise_clamps.RaiseClip(ZeroSigns(module)),
            _raise_clamps.MergeClips(),
            _raise_norms.RaiseNormalization(),
            _raise_activations.RaiseGelu(),
            _raise_activations.RaiseSigmoid(),
            _raise_activations.RaiseSoftsign(),
            _raise_activations.RaiseMish(),
            _raise_activations.SquareByProduct(),
            _raise_activations.QuotientForReciprocal(),
            _raise_softmax.RaiseSoftmax(),
            _raise_softmax.RaiseLogSoftmax(),
        ]
        apply_rules(rewriter, rules)
        return PassResult.of(rewriter)
