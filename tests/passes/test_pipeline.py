"""The pipeline's guarantees: a pass that fails, lies or breaks something is rolled back and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from joulec.ir.module import Module
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.rules import Rule
from joulec.ir.runner import LocalRunner
from joulec.passes.base import Context, Fidelity, Pass, PassResult, RulePass
from joulec.passes.pipeline import Observer, Outcome, Pipeline, Step
from joulec.passes.target import Target

TARGET = Target("cpu", "CPUExecutionProvider", 19, 9, None, "generic-server-cpu")
GRAPH = "agraph (float[4] x) => (float[4] y) { a = Neg(x) b = Relu(a) y = Neg(b) }"


class SwapNegForAbs(Rule):
    """Neg(x) -> Abs(x): wrong on purpose."""

    ops = ("Neg",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        if node.outputs[0].is_graph_output():
            raise Refused("it is a graph output")
        (new,) = rewriter.add("Abs", [node.inputs[0]], before=node, like=node.outputs[0])
        rewriter.replace(node.outputs[0], new)
        rewriter.erase(node)


class DoubleNegation(Rule):
    """Relu(x) -> Neg(Neg(Relu(x))): right, and once only."""

    ops = ("Relu",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        if node.metadata_props.get("seen"):
            return
        consumer = next(iter(node.outputs[0].uses())).node
        (one,) = rewriter.add("Neg", [node.outputs[0]], before=consumer, like=node.outputs[0])
        (two,) = rewriter.add("Neg", [one], before=consumer, like=node.outputs[0])
        rewriter.set_input(consumer, 0, two)
        node.metadata_props["seen"] = "yes"


@dataclass(frozen=True)
class WrongNumbers(RulePass):
    """Claims to be exact and is not."""

    def rules(self, context: Context) -> list[Rule]:
        return [SwapNegForAbs()]


@dataclass(frozen=True)
class LossyNumbers(WrongNumbers):
    """Changes numbers and says so."""

    fidelity = Fidelity.LOSSY


@dataclass(frozen=True)
class Harmless(RulePass):
    """Exact."""

    def rules(self, context: Context) -> list[Rule]:
        return [DoubleNegation()]


@dataclass(frozen=True)
class Crashes(Pass):
    """Fails half-way."""

    def run(self, module: Module, context: Context) -> PassResult:
        rewriter = Rewriter(module, "crashes")
        with rewriter.rewriting("half", next(iter(module.graph))):
            rewriter.set_op(next(iter(module.graph)), "Abs")
        raise KeyError("lost\nmy way")


@dataclass(frozen=True)
class RenamesOutput(Pass):
    """Breaks the signature."""

    def run(self, module: Module, context: Context) -> PassResult:
        rewriter = Rewriter(module, "renames")
        with rewriter.rewriting("rename", next(iter(module.graph))):
            rewriter.set_op(next(iter(module.graph)), "Neg")
            module.graph.outputs[0].name = "z"
        return PassResult.of(rewriter)


def run(module: Module, *passes: Pass, observers: tuple[Observer, ...] = ()) -> Outcome:
    probes = [{"x": np.array([-2.0, -1.0, 0.5, 3.0], np.float32)}]
    with LocalRunner() as runner:
        return Pipeline(passes, observers).run(module, Context(target=TARGET, probes=probes, runner=runner))


def ops(module: Module) -> list[str]:
    return [node.op_type for node in module.graph]


def test_exact_pass_that_changes_numbers_is_rolled_back(parse: Callable[..., Module]) -> None:
    outcome = run(parse(GRAPH), WrongNumbers())
    (step,) = outcome.steps
    assert step.status == "rolled back"
    assert step.reason is not None
    assert "output 'y' deviates" in step.reason
    assert ops(outcome.module) == ["Neg", "Relu", "Neg"]


def test_lossy_pass_may_change_numbers_and_the_next_exact_pass_is_held_to_them(parse: Callable[..., Module]) -> None:
    outcome = run(parse(GRAPH), LossyNumbers(), Harmless())
    assert [step.status for step in outcome.steps] == ["applied", "applied"]
    assert outcome.steps[1].deviation is not None
    assert outcome.steps[1].deviation.value == 0.0
    assert ops(outcome.module) == ["Abs", "Relu", "Neg", "Neg", "Neg"]


def test_refusals_carry_their_reason(parse: Callable[..., Module]) -> None:
    outcome = run(parse(GRAPH), LossyNumbers())
    assert [r.reason for r in outcome.steps[0].result.refusals] == ["it is a graph output"]


def test_crash_is_rolled_back_with_one_line(parse: Callable[..., Module]) -> None:
    outcome = run(parse(GRAPH), Crashes(), Harmless())
    assert outcome.steps[0].status == "rolled back"
    assert outcome.steps[0].reason is not None
    assert outcome.steps[0].reason.startswith("KeyError")
    assert "\n" not in outcome.steps[0].reason
    assert ops(outcome.module) == ["Neg", "Relu", "Neg", "Neg", "Neg"]


def test_changed_signature_is_rolled_back(parse: Callable[..., Module]) -> None:
    outcome = run(parse(GRAPH), RenamesOutput())
    assert outcome.steps[0].reason is not None
    assert "signature changed" in outcome.steps[0].reason
    assert outcome.module.graph.outputs[0].name == "y"


def test_input_module_is_left_alone(parse: Callable[..., Module]) -> None:
    module = parse(GRAPH)
    run(module, Harmless())
    assert ops(module) == ["Neg", "Relu", "Neg"]


def test_provenance_lands_on_every_new_node(parse: Callable[..., Module]) -> None:
    module = parse(GRAPH)
    module.graph[1].name = "act"
    outcome = run(module, Harmless())
    made = [node for node in outcome.module.graph if node.metadata_props.get("joulec.pass") == "harmless"]
    assert len(made) == 3  # two made, one edited
    assert all(node.metadata_props["joulec.rule"] == "double-negation" for node in made)
    assert ["act" in node.metadata_props["joulec.sources"] for node in made] == [True, True, False], "its own name"


def test_observers_see_every_pass(parse: Callable[..., Module]) -> None:
    seen: list[str] = []

    class Watch(Observer):
        def before_pass(self, index: int, total: int, one: Pass, module: Module) -> None:
            seen.append(f"{index}/{total} {one.pass_name()}")

        def after_pass(self, index: int, total: int, step: Step, module: Module) -> None:
            seen.append(step.status)

    run(parse(GRAPH), Harmless(), Crashes(), observers=(Watch(),))
    together, one_by_one = ["0/2 harmless", "applied", "1/2 crashes"], ["0/2 harmless", "applied", "1/2 crashes"]
    assert seen == [*together, *one_by_one, "rolled back"]


class Counting(LocalRunner):
    """Counts the models it opens."""

    loads = 0

    def load(self, module: Module, **rest: Any) -> int:
        self.loads += 1
        return super().load(module, **rest)


def loads(module: Module, *passes: Pass) -> tuple[int, Outcome]:
    probes = [{"x": np.array([-2.0, -1.0, 0.5, 3.0], np.float32)}]
    with Counting() as runner:
        outcome = Pipeline(passes).run(module, Context(target=TARGET, probes=probes, runner=runner))
        return runner.loads, outcome


def test_exact_passes_are_compared_once_at_the_end(parse: Callable[..., Module]) -> None:
    opened, outcome = loads(parse(GRAPH), Harmless(), Harmless(), Harmless())
    assert opened == 2, "the input and the result"
    assert outcome.steps[0].deviation is not None
    assert outcome.steps[0].deviation.value == 0.0, "at the last pass that changed something"


def test_where_the_end_does_not_hold_the_passes_run_one_by_one(parse: Callable[..., Module]) -> None:
    opened, outcome = loads(parse(GRAPH), Harmless(), WrongNumbers(), Harmless())
    assert [step.status for step in outcome.steps] == ["applied", "rolled back", "unchanged"]
    assert outcome.steps[1].reason is not None
    assert "output 'y' deviates" in outcome.steps[1].reason
    assert opened == 2 + 3, "together: input and result; then the input, and each pass that changed something"
    assert ops(outcome.module) == ["Neg", "Relu", "Neg", "Neg", "Neg"]


def test_mask_broken_by_a_later_pass_is_caught(parse: Callable[..., Module]) -> None:
    @dataclass(frozen=True)
    class Unprune(Pass):
        """Brings pruned weights back."""

        fidelity = Fidelity.LOSSY

        def run(self, module: Module, context: Context) -> PassResult:
            rewriter = Rewriter(module, "unprune")
            with rewriter.rewriting("unprune", next(iter(module.graph))):
                rewriter.set_tensor(module.graph.initializers["w"], np.ones((4, 4), np.float32))
            return PassResult.of(rewriter)

    eye = ", ".join(str(float(i % 5 == 0)) for i in range(16))
    module = parse(f"agraph (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w = {{{eye}}}> {{ y = MatMul(x, w) }}")
    module.masks["w"] = np.eye(4, dtype=bool)
    outcome = Pipeline([Unprune()]).run(module, Context(target=TARGET))
    assert outcome.steps[0].reason == "initializer 'w': a weight that its mask removes is not zero"
    kept = outcome.module.graph.initializers["w"].const_value
    assert kept is not None
    assert np.array_equal(kept.numpy(), np.eye(4))
