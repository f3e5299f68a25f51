"""cheapen-activations: activations become others that are close to them and cheaper."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.rules import Rule, apply_rules
from joulec.ir.values import attribute
from joulec.passes._raise_clamps import HARD_SWISH_OPSET, clip_bounds
from joulec.passes._spelled import can_raise, near, only, operands, producer
from joulec.passes.base import Context, Fidelity, Pass, PassResult, option
from joulec.passes.expand_activations import require_float

KINDS = ("gelu", "sigmoid", "swish", "relu6")
"""What can be replaced, by the activation that goes."""

GIVEN = {"alpha": 1 / 6, "beta": 0.5}
"""The HardSigmoid of MobileNetV3 (Howard et al. 2019), which makes a Swish a HardSwish."""


@dataclass(frozen=True)
class CheapenActivations(Pass):
    """Replace activations by cheaper ones that are close: Gelu, Sigmoid, Swish, ReLU6.

    `gelu`: Gelu with erf becomes Gelu with tanh, at most 4.8e-4 away. `sigmoid`: Sigmoid becomes
    HardSigmoid(1/6, 1/2), at most 0.070 away. `swish`: x * Sigmoid(x) becomes HardSwish, at most 0.143 away. `relu6`:
    Clip(x, 0, 6) becomes Relu, the same up to 6 and x beyond. Which of them is faster differs by runtime: ONNX Runtime
    fuses Swish to one kernel and HardSwish not. So `optimize` tries each kind for the CPU, with data to judge it by,
    and keeps those activations that are measured to be faster and stay within the accuracy budget.
    """

    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY

    kinds: tuple[str, ...] = option(KINDS, "what to replace: gelu;sigmoid;swish;relu6")
    nodes: tuple[str, ...] = option(("*",), "only nodes whose names fit one of these patterns")

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in KINDS:
                raise ValueError(f"kinds must be among {', '.join(KINDS)}, not {kind}")

    def run(self, module: Module, context: Context) -> PassResult:
        """Apply the rules of the kinds that were asked for, once to each node. O(nodes)."""
        rewriter = Rewriter(module, self.pass_name())
        rules = {"gelu": CheapenGelu, "sigmoid": CheapenSigmoid, "swish": CheapenSwish, "relu6": CheapenRelu6}
        apply_rules(rewriter, [rules[kind](self.nodes) for kind in KINDS if kind in self.kinds])
        return PassResult.of(rewriter)


class _Chosen(Rule):
    """A rule for nodes whose names fit a pattern.

    Args:
        patterns: of names, `*` and `?` as in file names.
    """

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self._patterns = patterns

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        if any(fnmatchcase(node.name or "", pattern) for pattern in self._patterns):
            self.cheapen(node, rewriter)

    def cheapen(self, node: ir.Node, rewriter: Rewriter) -> None:
        """Replace the node, or refuse with the reason."""
        raise NotImplementedError


class CheapenGelu(_Chosen):
    """Gelu(x) -> Gelu(x) with tanh; the spelled-out one is refused."""

    ops = ("Gelu", "Erf")

    def cheapen(self, node: ir.Node, rewriter: Rewriter) -> None:
        if node.op_type == "Erf":
            raise Refused("a Gelu that is spelled out: order upgrade-opset{to=20},raise-patterns before")
        if attribute(node, "approximate", "none") != "none":
            return
        require_float(node)
        rewriter.set_attribute(node, "approximate", "tanh")


class CheapenSigmoid(_Chosen):
    """Sigmoid(x) -> HardSigmoid(x, 1/6, 1/2); not in x * Sigmoid(x), and not where callers read the probability."""

    ops = ("Sigmoid",)

    def cheapen(self, node: ir.Node, rewriter: Rewriter) -> None:
        output = node.outputs[0]
        require_float(node)
        if output.is_graph_output():
            raise Refused("it is an output of the model, whose callers want a probability")
        if any(is_swish(usage.node) for usage in output.uses()):
            raise Refused("it is part of a Swish, which runtimes fuse as a whole")
        made = rewriter.add(
            "HardSigmoid", node.inputs, GIVEN, before=node, name=_hint(node, "hardsigmoid"), like=output
        )
        rewriter.replace(output, made[0])
        rewriter.erase(node)


def is_swish(node: ir.Node) -> bool:
    """Whether a node is x * Sigmoid(x)."""
    return any(
        (gate := producer(other, "Sigmoid")) is not None and gate.inputs[0] is x for x, other in operands(node, "Mul")
    )


class CheapenSwish(_Chosen):
    """x * Sigmoid(x) -> HardSwish(x)."""

    ops = ("Mul",)

    def cheapen(self, node: ir.Node, rewriter: Rewriter) -> None:
        for x, other in operands(node, "Mul"):
            gate = producer(other, "Sigmoid")
            if gate is None or gate.inputs[0] is not x or not walk.is_onnx(gate):
                continue
            require_float(node)
            can_raise("HardSwish", HARD_SWISH_OPSET, node, rewriter)
            alone, output = only(other, node), node.outputs[0]
            made = rewriter.add("HardSwish", [x], before=node, name=_hint(node, "hardswish"), like=output)
            rewriter.replace(output, made[0])
            rewriter.erase(node)
            if alone:
                rewriter.erase(gate)
            return


class CheapenRelu6(_Chosen):
    """Clip(x, 0, 6) -> Relu(x)."""

    ops = ("Clip",)

    def cheapen(self, node: ir.Node, rewriter: Rewriter) -> None:
        bounds = clip_bounds(node)
        if bounds is None or bounds[0] != 0.0 or not near(bounds[1], 6.0):
            return
        require_float(node)
        output = node.outputs[0]
        made = rewriter.add("Relu", node.inputs[:1], before=node, name=_hint(node, "relu"), like=output)
        rewriter.replace(output, made[0])
        rewriter.erase(node)


def _hint(node: ir.Node, op: str) -> str:
    return f"{node.name or 'cheaper'}_{op}"
