"""The payoff rule: what joulec chooses stays only where it pays; what the user orders is carried out and judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from compile_kit import PricedRunner, cnn, feeds, is_quantized, operators, write

from joulec.accuracy import FidelityJudge, Judge
from joulec.backends import backend
from joulec.compile.int8 import _Trials
from joulec.compile.search import NOISIER, SLOWER, Proposal
from joulec.compiler import Compiled, Compiler, Inputs, Orders
from joulec.decisions import Decisions
from joulec.energy import EnergyModel, load_profile
from joulec.errors import BudgetError, InputError
from joulec.ir.feeds import Feeds
from joulec.ir.lower import lower
from joulec.ir.module import Module
from joulec.ir.session import SessionOptions
from joulec.passes import registry, spelling
from joulec.passes.base import Context, Fidelity, Pass, PassResult
from joulec.passes.fuse_affine import FuseAffine
from joulec.passes.quantize import Quantize

ENERGY = EnergyModel(load_profile("generic-server-cpu"), "cpu")


class Scripted(Judge):
    """A judge that scores modules by a rule."""

    name = "metric"

    def __init__(self, rule: Callable[[Module], float]) -> None:
        self._rule = rule
        self.baseline = 1.0

    def score(self, module: Module) -> float:
        return self._rule(module)


@pytest.fixture
def model(tmp_path: Path) -> Module:
    return lower(cnn(tmp_path / "cnn.onnx")).module


def compiler(
    model: Module, seconds: Callable[[Module], float] = lambda module: 1.0, judge: Judge | None = None,
    data: Sequence[Any] | None = None, target: str = "cpu", recorded: Decisions | None = None,
    obstacle: str | None = None, energy: EnergyModel = ENERGY, sizes: dict[str, Any] | None = None, here: bool = True,
    **orders: Any,
) -> Compiler:  # fmt: skip
    given = feeds(8) if data is None else list(data)
    probes = [] if obstacle else given[:2] or feeds(2)
    inputs = Inputs(Feeds.of(given) if given else None, probes, sizes or {}, judge, obstacle)
    return Compiler(
        model, backend(target), Orders(**orders), inputs, PricedRunner(seconds), energy, recorded=recorded, here=here
    )


def int8_costs(float_seconds: float, int8_seconds: float) -> Callable[[Module], float]:
    return lambda module: int8_seconds if is_quantized(module) else float_seconds


def decision(compiled: Compiled, what: str) -> Any:
    return next(choice for choice in compiled.decisions.decisions if choice.what == what)


# -- INT8 by joulec's own choice ------------------------------------------------------------------------------------


def test_int8_that_is_faster_within_the_budget_is_kept(model: Module) -> None:
    compiled = compiler(model, int8_costs(2.0, 1.0), Scripted(lambda module: 0.995)).compile()
    assert is_quantized(compiled.module)
    kept = decision(compiled, "INT8")
    assert (kept.kept, kept.ordered, kept.ratio) == (True, False, 2.0)
    assert compiled.decisions.int8 == "quantize"


def test_a_model_that_is_quantized_already_is_not_said_to_stay_float(model: Module) -> None:
    costs, judge = int8_costs(2.0, 1.0), Scripted(lambda module: 1.0)
    again = compiler(compiler(model, costs, judge).compile().module, costs, judge).compile()
    assert decision(again, "INT8").reason == "the model is quantized already: never quantized twice"


def test_int8_that_is_slower_is_dropped_and_said(model: Module) -> None:
    compiled = compiler(model, int8_costs(1.0, 1.25), Scripted(lambda module: 1.0)).compile()
    assert not is_quantized(compiled.module)
    dropped = decision(compiled, "INT8")
    assert (dropped.kept, dropped.ratio, dropped.drop) == (False, 0.8, 0.0)
    assert dropped.reason.startswith("the model stays float: INT8 would run at 0.80x")
    assert [(step.spelling, step.status, step.reason) for step in compiled.decisions.dropped][-1] == (
        "quantize", "dropped", "INT8 would run at 0.80x (0.80 to 0.80) the speed of float",
    )  # fmt: skip


def test_int8_that_is_just_as_fast_does_not_pay(model: Module) -> None:
    assert not is_quantized(compiler(model, int8_costs(1.0, 1.0)).compile().module)


def test_int8_beyond_the_budget_is_dropped_before_it_is_timed(model: Module) -> None:
    judge = Scripted(lambda module: 0.9 if is_quantized(module) else 1.0)
    made = compiler(model, int8_costs(2.0, 1.0), judge, max_drop=0.05)
    compiled = made.compile()
    assert not is_quantized(compiled.module)
    assert "it drops 0.1000, the budget is 0.05" in decision(compiled, "INT8").reason
    assert compiled.score == 1.0
    assert isinstance(made.runner, PricedRunner) and made.runner.timed == 20  # the exact passes, the whole: 5 loads, 2 calls each


def test_without_a_budget_accuracy_does_not_stop_int8(model: Module) -> None:
    judge = Scripted(lambda module: 0.1 if is_quantized(module) else 1.0)
    assert is_quantized(compiler(model, int8_costs(2.0, 1.0), judge, max_drop=None).compile().module)


def test_a_lighter_quantization_is_kept_where_only_it_fits_the_budget(model: Module) -> None:
    """Quantizing the Gemm too costs accuracy here; quantizing only convolutions does not."""

    def score(module: Module) -> float:
        gemm = next(node for node in module.graph if node.op_type in ("Gemm", "MatMul"))
        producer = gemm.inputs[1].producer() if gemm.inputs[1] is not None else None
        return 0.5 if producer is not None and producer.op_type == "DequantizeLinear" else 1.0

    compiled = compiler(model, int8_costs(2.0, 1.0), Scripted(score)).compile()
    assert is_quantized(compiled.module)
    assert compiled.decisions.int8 == "quantize{only=Conv;ConvTranspose}"
    assert compiled.score == 1.0


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"int8": False}, "forbidden by --no-int8"),
        ({"data": []}, "no calibration data: --data would unlock INT8"),
        ({"target": "cuda"}, "cuda has no integer kernels"),
        ({"obstacle": "it fails"}, "the input model does not run here"),
    ],
)
def test_int8_is_not_tried_and_that_is_said(model: Module, more: dict[str, Any], reason: str) -> None:
    compiled = compiler(model, int8_costs(2.0, 1.0), **more).compile()
    assert not is_quantized(compiled.module)
    assert reason in decision(compiled, "INT8").reason


def test_a_model_that_does_not_run_here_is_never_timed(model: Module) -> None:
    made = compiler(model, obstacle="it fails", data=[])
    assert "outputs were not compared: it fails" in made.compile().notes
    assert isinstance(made.runner, PricedRunner) and made.runner.timed == 0


def test_int8_is_not_chosen_where_fidelity_says_nothing(tmp_path: Path) -> None:
    weights = {"w": np.full((4, 1, 3, 3), np.nan, np.float32)}
    model = lower(write(tmp_path / "n.onnx", "g (float[N,1,12,12] x) => (float[N,4,10,10] y) { y = Conv(x, w) }", weights)).module
    judge = FidelityJudge(compiler(model).runner, model, Feeds.of(feeds(2)), SessionOptions())
    compiled = compiler(model, int8_costs(2.0, 1.0), judge).compile()
    assert not is_quantized(compiled.module)
    assert not decision(compiled, "INT8").kept


def test_pruning_that_could_not_be_carried_out_is_not_called_done(tmp_path: Path) -> None:
    model = lower(write(tmp_path / "r.onnx", "g (float[N] x) => (float[N] y) { y = Relu(x) }")).module
    compiled = compiler(model, sparsity=0.5, data=[], obstacle="no matter").compile()
    pruning = decision(compiled, "pruning")
    assert (pruning.kept, pruning.ordered) == (False, True)
    assert pruning.reason.startswith("ordered: sparsity 0.5; but ")


# -- where the device is not at hand ---------------------------------------------------------------------------------

T4 = EnergyModel(load_profile("t4"), "tensorrt")


def test_int8_for_a_device_that_is_not_here_is_chosen_by_a_predicted_saving_beyond_its_interval(tmp_path: Path) -> None:
    large = lower(cnn(tmp_path / "large.onnx", width=256)).module
    made = compiler(large, target="tensorrt", energy=T4, sizes={"N": 64})
    compiled = made.compile()
    assert is_quantized(compiled.module)
    kept = decision(compiled, "INT8")
    assert (kept.kept, kept.basis, kept.ratio) == (True, "predicted", None)
    assert 0 < kept.saved_low < kept.saved < kept.saved_high
    assert "per inference" in kept.reason and kept.reason.endswith("less against float, as predicted for t4")
    assert isinstance(made.runner, PricedRunner) and made.runner.timed == 0
    again = compiler(large, target="tensorrt", energy=T4, sizes={"N": 64}, recorded=compiled.decisions).compile()
    assert operators(again.module) == operators(compiled.module)


def test_a_predicted_saving_within_its_interval_is_no_detectable_change_and_no_change(tmp_path: Path) -> None:
    large = lower(cnn(tmp_path / "large.onnx", width=256)).module
    vague = {name: replace(one, low=0.0, high=1e4 * one.high) for name, one in T4.profile.energy.items()}
    nobody_knows = EnergyModel(replace(T4.profile, energy=vague, _found={}), "tensorrt")
    compiled = compiler(large, target="tensorrt", energy=nobody_knows, sizes={"N": 64}).compile()
    assert not is_quantized(compiled.module)
    dropped = decision(compiled, "INT8")
    assert (dropped.kept, dropped.basis) == (False, "predicted")
    assert dropped.saved_low < 0 < dropped.saved_high
    assert dropped.reason.startswith("the model stays float: INT8 would bring no detectable change in energy (-")


def test_the_accuracy_budget_binds_what_a_prediction_would_choose(tmp_path: Path) -> None:
    large = lower(cnn(tmp_path / "large.onnx", width=256)).module
    judge = Scripted(lambda module: 0.5 if is_quantized(module) else 1.0)
    compiled = compiler(large, judge=judge, target="tensorrt", energy=T4, sizes={"N": 64}, search_seconds=0.0).compile()
    assert not is_quantized(compiled.module)
    assert "it drops 0.5000" in decision(compiled, "INT8").reason


def test_times_of_this_machine_decide_nothing_for_another_device(model: Module) -> None:
    """INT8 would be ten times as fast here, and the passes ten times as slow: neither counts."""
    made = compiler(model, lambda module: 0.1 if is_quantized(module) else float("Identity" in operators(module)), here=False)
    compiled = made.compile()
    assert isinstance(made.runner, PricedRunner) and made.runner.timed == 0
    assert compiled.decisions.latency is None and compiled.decisions.excluded == ()
    assert {choice.basis for choice in compiled.decisions.decisions} == {"predicted"}


def test_a_trifle_decides_nothing_however_certain_its_coefficients_are() -> None:
    """One unit of a single coefficient more, in a thousand: its interval excludes zero."""
    from joulec.compile.worth import predicted
    from joulec.energy import Estimate
    from joulec.energy.price import Bounds

    def estimate(amount: float) -> Estimate:
        bounds = {"launch": Bounds(1.0, 0.9, 1.1)}
        return Estimate(amount, amount / 3, amount * 3, "estimated", "cpu", (), terms={"launch": amount}, coefficients=bounds)

    assert not predicted(estimate(1000.0), estimate(1001.0)).worse
    assert not predicted(estimate(1001.0), estimate(1000.0)).better
    assert predicted(estimate(1000.0), estimate(1100.0)).worse
    assert predicted(estimate(1100.0), estimate(1000.0)).better


# -- orders ---------------------------------------------------------------------------------------------------------


def test_ordered_int8_is_kept_even_if_slower(model: Module) -> None:
    compiled = compiler(model, int8_costs(1.0, 3.0), int8=True).compile()
    assert is_quantized(compiled.module)
    assert (decision(compiled, "INT8").ordered, decision(compiled, "INT8").kept) == (True, True)


def test_ordered_int8_is_symmetric_for_tensorrt(model: Module) -> None:
    compiled = compiler(model, target="tensorrt", int8=True).compile()
    assert is_quantized(compiled.module)
    points = {node.inputs[2].const_value.numpy().dtype for node in compiled.module.graph if node.op_type == "QuantizeLinear"}  # type: ignore[union-attr]
    assert points == {np.dtype(np.int8)}


def test_ordered_sparsity_is_carried_out_with_masks(model: Module) -> None:
    compiled = compiler(model, sparsity=0.5, int8=False).compile()
    kept, total = (sum(int(f(mask)) for mask in compiled.module.masks.values()) for f in (np.sum, np.size))
    assert kept == total - round(0.5 * total)
    assert decision(compiled, "pruning").ordered


def test_the_budget_binds_orders_only_if_the_user_gave_it(model: Module) -> None:
    worse = Scripted(lambda module: 0.5)
    assert compiler(model, judge=worse, sparsity=0.9, int8=False).compile().score == 0.5
    with pytest.raises(BudgetError, match=r"metric drops by 0\.5000 \(1\.0000 to 0\.5000\), the budget is 0\.01"):
        compiler(model, judge=worse, sparsity=0.9, int8=False, budget_given=True).compile()


def test_what_pruning_costs_is_not_held_against_int8_unless_the_budget_binds_everything(model: Module) -> None:
    judge = Scripted(lambda module: 0.5 if module.masks else 1.0)
    assert is_quantized(compiler(model, int8_costs(2.0, 1.0), judge, sparsity=0.9).compile().module)


def test_ordered_passes_replace_the_default_ones_and_legalization_still_runs(model: Module) -> None:
    ordered = spelling.parse("fold-constants,prune-magnitude{sparsity=0.5}", registry.with_plugins(()))
    compiled = compiler(model, passes=tuple(ordered)).compile()
    assert [step.spelling for step in compiled.steps] == [
        "upgrade-opset{to=13}", "upgrade-opset", "fold-constants", "prune-magnitude{sparsity=0.5}",
    ]  # fmt: skip
    assert "Identity" in operators(compiled.module)
    assert compiled.decisions.decisions[0].reason == "ordered: fold-constants,prune-magnitude{sparsity=0.5}"


def test_int8_and_passes_quantize_at_the_end(model: Module) -> None:
    compiled = compiler(model, passes=(), int8=True).compile()
    assert [step.spelling for step in compiled.steps] == [
        "upgrade-opset{to=13}", "upgrade-opset", "calibrate", "quantize",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("orders", "said"),
    [
        ({"sparsity": 1.5}, "sparsity must lie between 0 and 1, not 1.5"),
        ({"sparsity": float("nan")}, "sparsity must lie"),
        ({"max_drop": -0.1}, "max_drop must be"),
        ({"max_drop": float("nan")}, "max_drop must be"),
        ({"passes": (), "sparsity": 0.5}, "write prune-magnitude"),
    ],
)
def test_orders_that_make_no_sense_are_refused(orders: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Orders(**orders)


# -- exact passes ---------------------------------------------------------------------------------------------------


def test_an_exact_pass_that_makes_the_model_slower_is_found_and_left_out(model: Module) -> None:
    def seconds(module: Module) -> float:
        return 1.0 if "BatchNormalization" in operators(module) else 1.5

    compiled = compiler(model, seconds, data=[]).compile()
    assert compiled.decisions.excluded == ("fuse-affine",)
    assert "BatchNormalization" in operators(compiled.module)
    assert "Identity" not in operators(compiled.module)  # the others stayed
    dropped = decision(compiled, "pass fuse-affine")
    assert (dropped.kept, dropped.ratio) == (False, pytest.approx(0.6667, abs=1e-4))


def test_a_newer_opset_must_pay_on_the_cpu_but_legalization_is_never_left_out(tmp_path: Path) -> None:
    """ONNX Runtime fuses some patterns by opset, so that raising it can cost speed."""
    old = lower(write(tmp_path / "old.onnx", "g (float[N] x) => (float[N] y) { h = Identity(x) y = Relu(h) }", opset=11)).module

    def by_opset(module: Module) -> float:
        return float(module.opset)

    compiled = compiler(old, by_opset, data=[]).compile()
    assert (compiled.module.opset, compiled.decisions.excluded) == (13, ("upgrade-opset",))
    assert operators(compiled.module) == ["Relu"]
    assert compiler(old, by_opset, data=[], passes=()).compile().module.opset == 19
    assert compiler(old, by_opset, data=[], target="tensorrt").compile().module.opset == 19
    assert compiler(old, data=[]).compile().module.opset == 19


def test_what_is_slower_only_all_together_is_undone_all_together(model: Module) -> None:
    class Odd(PricedRunner):
        """Against the input, whatever lost its Identity is slow; against anything else nothing is."""

        def time(self, handles: Sequence[int], feed: Any, *, rounds: int) -> Any:
            modules = [self._modules[handle] for handle in handles]
            raw = any(module.model.ir_version == model.model.ir_version for module in modules)
            slow = [raw and "Identity" not in operators(module) for module in modules]
            return np.tile([2.0 if one else 1.0 for one in slow], (rounds, 1))

    made = compiler(model, data=[])
    made.runner = Odd(lambda module: 1.0)
    compiled = made.compile()
    assert "Identity" in operators(compiled.module)
    assert decision(compiled, "all passes").reason == "all together would run at 0.50x (0.50 to 0.50) the speed of the input"
    assert {step.status for step in compiled.decisions.dropped} == {"dropped", "unchanged"}
    assert compiled.decisions.latency is not None and compiled.decisions.latency.ratio == 1.0
    again = compiler(model, data=[], recorded=compiled.decisions).compile()
    assert operators(again.module) == operators(compiled.module)
    assert again.decisions == compiled.decisions


def test_a_slower_look_is_confirmed_by_a_longer_run_before_anything_is_dropped(model: Module) -> None:
    class Flaky(PricedRunner):
        def time(self, handles: Any, feed: Any, *, rounds: int) -> Any:
            seconds = super().time(handles, feed, rounds=rounds)
            return seconds if self.timed <= 10 else np.ones_like(seconds)

    made = compiler(model, lambda module: 1.0 if "Identity" in operators(module) else 2.0, data=[])
    made.runner = Flaky(lambda module: 1.0 if "Identity" in operators(module) else 2.0)
    compiled = made.compile()
    assert compiled.decisions.excluded == ()
    assert made.runner.timed == 30  # a look, a longer one, and the whole


def test_exact_passes_are_left_out_where_their_rounding_alone_breaks_a_tiny_budget(model: Module) -> None:
    judge = Scripted(lambda module: 1.0 if "BatchNormalization" in operators(module) else 1.0 - 1e-7)
    compiled = compiler(model, judge=judge, int8=False, max_drop=0.0, budget_given=True).compile()
    assert (operators(compiled.module), compiled.score) == (operators(model), 1.0)
    assert decision(compiled, "exact passes").reason == "rounding alone costs 1e-07 points, the budget is 0"
    again = compiler(model, judge=judge, recorded=compiled.decisions, int8=False, max_drop=0.0, budget_given=True)
    assert operators(again.compile().module) == operators(model)


def test_a_metric_is_asked_once_for_each_module(model: Module) -> None:
    asked: list[int] = []

    def score(module: Module) -> float:
        asked.append(id(module))
        return 1.0

    compiler(model, int8_costs(2.0, 1.0), Scripted(score)).compile()
    assert len(asked) == len(set(asked)) == 3  # float, and two ways to quantize


class Wrong(Pass):
    """Says it is exact, and is not."""

    fidelity = Fidelity.EXACT

    def run(self, module: Module, context: Context) -> PassResult:
        raise RuntimeError("broken\nin two lines")


def test_a_pass_that_raises_is_rolled_back_and_the_build_goes_on(model: Module) -> None:
    compiled = compiler(model, passes=(Wrong(), FuseAffine())).compile()
    wrong = next(step for step in compiled.steps if step.spelling == "wrong")
    assert (wrong.status, wrong.reason) == ("rolled back", "RuntimeError: broken")
    assert "BatchNormalization" not in operators(compiled.module)


# -- recorded decisions ---------------------------------------------------------------------------------------------


def test_recorded_decisions_are_repeated_without_timing(model: Module) -> None:
    def seconds(module: Module) -> float:
        return (1.0 if "BatchNormalization" in operators(module) else 1.5) * (0.5 if is_quantized(module) else 1.0)

    first = compiler(model, seconds).compile()
    again = compiler(model, lambda module: 1.0 / len(operators(module)), recorded=first.decisions)
    second = again.compile()
    assert second.module.to_proto().SerializeToString(deterministic=True) == first.module.to_proto().SerializeToString(
        deterministic=True
    )
    assert second.decisions == first.decisions
    assert isinstance(again.runner, PricedRunner) and again.runner.timed == 0


# -- fidelity -------------------------------------------------------------------------------------------------------


def test_an_output_of_zeros_is_said_not_hidden(tmp_path: Path) -> None:
    zeros = np.zeros((4, 1, 3, 3), np.float32)
    path = write(tmp_path / "z.onnx", "g (float[N,1,12,12] x) => (float[N,4,10,10] z, float[N,1,12,12] y) { z = Conv(x, w) y = Relu(x) }", {"w": zeros})
    model = lower(path).module
    made = compiler(model, int8=False)
    judge = FidelityJudge(made.runner, model, Feeds.of(feeds(2)), SessionOptions())
    compiled = compiler(model, judge=judge, int8=False).compile()
    assert compiled.score == 1.0
    assert any("all zeros in the input model" in note and "'z'" in note for note in compiled.notes)


def test_a_model_too_large_to_run_after_every_pass_is_compared_in_excerpts(
    model: Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("joulec.passes.excerpts.WHOLE_LIMIT", 100)
    monkeypatch.setattr("joulec.payoff.HEAVY", 100)
    made = compiler(model, data=[])
    notes = made.compile().notes
    assert "outputs were not compared: its weights take 0.0 GiB" in notes
    assert any(note.startswith("excerpts around what the passes changed: ") for note in notes)
    assert isinstance(made.runner, PricedRunner) and made.runner.timed == 8  # two pairs, 2 loads, 2 calls each


# -- INT8 without calibration ---------------------------------------------------------------------------------------

MLP = "mlp (float[N,64] x) => (float[N,8] y) { h = MatMul(x, w) r = Elu(h) y = MatMul(r, v) }"


@pytest.fixture
def mlp(tmp_path: Path) -> Module:
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in (("w", (64, 256)), ("v", (256, 8)))}
    return lower(write(tmp_path / "mlp.onnx", MLP, weights)).module


def rows(count: int = 4) -> list[Any]:
    return [{"x": np.random.default_rng(i).normal(size=(1, 64)).astype(np.float32)} for i in range(count)]


def test_ranges_of_each_run_are_tried_and_kept_where_they_are_fastest(mlp: Module) -> None:
    def seconds(module: Module) -> float:
        return 0.5 if "DynamicQuantizeLinear" in operators(module) else 2.0 if is_quantized(module) else 1.0

    made = compiler(mlp, seconds, Scripted(lambda module: 1.0), rows())
    compiled = made.compile()
    assert compiled.decisions.int8 == "quantize-dynamic"
    again = compiler(mlp, seconds, Scripted(lambda module: 1.0), rows(), recorded=compiled.decisions).compile()
    assert operators(again.module) == operators(compiled.module)


def test_int8_that_is_ordered_without_data_takes_its_ranges_at_each_run(mlp: Module) -> None:
    made = compiler(mlp, data=[], int8=True)
    compiled = made.compile()
    assert compiled.decisions.int8 == "quantize-dynamic"
    assert decision(compiled, "INT8").reason == (
        "ordered with --int8, but no calibration data: give --data to unlock INT8 quantization; "
        "so with ranges taken at each run"
    )


def test_keep_float_binds_every_kind_of_quantization(mlp: Module) -> None:
    for ordered in ("quantize-dynamic", "quantize-weights"):
        passes = spelling.parse(ordered, registry.builtin())
        compiled = compiler(mlp, data=rows(), passes=tuple(passes), keep_float=("MatMul",)).compile()
        assert operators(compiled.module) == ["MatMul", "Elu", "MatMul"]
        assert compiled.decisions.int8 == f"{ordered}{{keep-float=MatMul}}"


def _in_integers(module: Module) -> int:
    weights = [node.inputs[1].producer() for node in module.graph if node.op_type in ("Conv", "Gemm") and node.inputs[1]]
    return sum(one is not None and one.op_type == "DequantizeLinear" for one in weights)


def test_the_search_finds_a_set_that_no_fixed_way_holds(model: Module) -> None:
    """Only one operator may be quantized here; all, and convolutions alone, cost too much."""

    def score(module: Module) -> float:
        return 0.5 if _in_integers(module) > 1 or "DynamicQuantizeLinear" in operators(module) else 1.0

    made = compiler(model, int8_costs(2.0, 1.0), Scripted(score))
    compiled = made.compile()
    assert _in_integers(compiled.module) == 1
    found = compiled.decisions
    assert found.int8 is not None and "quantize{keep-float=" in found.int8
    assert set(found.reasons.values()) <= {SLOWER, NOISIER} and len(found.reasons) >= 2
    kept = [point for point in found.points if point.kept]
    assert [(point.operators, point.total, point.drop) for point in kept] == [(1, 3, 0.0)]
    assert any(point.drop == 0.5 and point.ratio is None for point in found.points), "what is inaccurate is not timed"
    step = next(step for step in compiled.steps if found.int8.endswith(step.spelling))
    assert {one.reason for one in step.result.refusals} & {SLOWER, NOISIER}
    again = compiler(model, int8_costs(2.0, 1.0), Scripted(score), recorded=found).compile()
    assert _in_integers(again.module) == 1
    assert [s.result.refusals for s in again.steps] == [s.result.refusals for s in compiled.steps]


def test_weights_are_fitted_to_the_data_where_that_spares_operators_from_staying_float(model: Module) -> None:
    """All of it in INT8 costs too much, unless weights are rounded by what the data say."""

    def score(module: Module) -> float:
        fitted = any("_on_grid" in name for name in module.graph.initializers)
        return 0.5 if not fitted and (_in_integers(module) or "DynamicQuantizeLinear" in operators(module)) else 1.0

    compiled = compiler(model, int8_costs(2.0, 1.0), Scripted(score)).compile()
    assert _in_integers(compiled.module) == 3
    assert compiled.decisions.int8 == "clip-weights,round-weights,quantize"
    assert any("layers rounded" in note for step in compiled.steps for note in step.result.notes)
    again = compiler(model, int8_costs(2.0, 1.0), Scripted(score), recorded=compiled.decisions).compile()
    assert [step.spelling for step in again.steps] == [step.spelling for step in compiled.steps]
    same = zip(again.module.graph.initializers.values(), compiled.module.graph.initializers.values(), strict=True)
    assert all(np.array_equal(one.const_value.numpy(), other.const_value.numpy()) for one, other in same)
    plain = Scripted(lambda module: 1.0)
    assert compiler(model, int8_costs(2.0, 1.0), plain).compile().decisions.int8 == "quantize", "not needed: not done"


def test_where_nothing_pays_the_reason_is_that_of_what_came_nearest(model: Module) -> None:
    price = {0: 1.0, 2: 1.25}  # convolutions alone; all of it takes 1.5
    slow = compiler(model, lambda module: price.get(_in_integers(module), 1.5), Scripted(lambda module: 1.0))
    assert decision(slow.compile(), "INT8").ratio == 0.8
    scores = {0: 1.0, 2: 0.9}
    lossy = compiler(
        model, int8_costs(2.0, 1.0), Scripted(lambda module: scores.get(_in_integers(module), 0.5)), search_seconds=0.0
    )
    assert "it drops 0.1000" in decision(lossy.compile(), "INT8").reason


def test_weights_that_stay_float_are_not_fitted() -> None:
    tried = SimpleNamespace(proposal=Proposal(Quantize(keep_float=("first", "last"))))
    proposed: Any = _Trials.refine(SimpleNamespace(attempt=lambda proposal, timed: proposal), tried)
    assert [one.keep_float for one in proposed.refinements] == [("first", "last")] * 2


def test_no_time_to_search_leaves_the_fixed_ways(model: Module) -> None:
    score = lambda module: 0.5 if _in_integers(module) else 1.0  # noqa: E731
    compiled = compiler(model, int8_costs(2.0, 1.0), Scripted(score), search_seconds=0.0).compile()
    assert not any(one.reasons for one in [compiled.decisions])
    assert _in_integers(compiled.module) == 0


def test_ordered_int8_stays_within_the_budget_where_a_part_of_it_does(model: Module) -> None:
    judge = Scripted(lambda module: 0.5 if _in_integers(module) > 1 else 1.0)
    compiled = compiler(model, int8_costs(1.0, 2.0), judge, int8=True).compile()
    assert _in_integers(compiled.module) == 1
    assert "some operators stay float for the accuracy budget" in decision(compiled, "INT8").reason


def test_a_drop_that_other_data_may_not_hold_is_too_much(model: Module) -> None:
    """One of 20 samples changed: the score is the same, but a budget of 1 % is not safe."""

    class Changed(Scripted):
        def score(self, module: Module) -> float:
            self.changes = np.array([1.0] + [0.0] * 19) if _in_integers(module) else np.zeros(20)
            return 1.0

    made = compiler(model, int8_costs(2.0, 1.0), Changed(lambda module: 1.0), search_seconds=0.0)
    compiled = made.compile()
    assert _in_integers(compiled.module) == 0
    assert "it drops 0.0000 on 20 samples, on others up to 0.0500" in decision(compiled, "INT8").reason
    allowed = compiler(model, int8_costs(2.0, 1.0), Changed(lambda module: 1.0), max_drop=0.06).compile()
    assert _in_integers(allowed.module) > 0
    assert "20 samples are too few to promise a drop of at most 0.06 on other data: that takes 50" in allowed.notes
