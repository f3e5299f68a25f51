"""Channels that the others can stand in for go first, and what reads them makes up for them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from pruning_kit import TARGET, compute, model, numbers, run

from joulec.data import synthetic_feeds
from joulec.errors import InputError
from joulec.ir.feeds import Feeds
from joulec.ir.module import Module
from joulec.ir.runner import LocalRunner, Runner
from joulec.passes import _readers
from joulec.passes.base import Context
from joulec.passes.pipeline import Outcome
from joulec.passes.prune_channels import PruneChannels
from joulec.passes.spelling import parse


@pytest.fixture
def runner() -> Iterator[Runner]:
    with LocalRunner() as one:
        yield one


def feeds(shape: tuple[int, ...], count: int = 40) -> list[dict[str, np.ndarray]]:
    """Smooth images and the like: neighbours resemble each other."""
    generator = np.random.default_rng(7)
    basis = generator.standard_normal((6, *shape))
    mixed = (np.tensordot(generator.standard_normal(6), basis, 1) for _ in range(count))
    return [{"x": np.asarray(one + 0.05 * generator.standard_normal(shape), np.float32)} for one in mixed]


def prune(module: Module, runner: Runner, data: list[dict[str, np.ndarray]], **options: object) -> Outcome:
    probes = synthetic_feeds(module.inputs(), {}, 2, 0).head(2)
    context = Context(target=TARGET, runner=runner, probes=probes, feeds=Feeds.of(data))
    outcome = run(module, PruneChannels(**{"multiple": 1, **options}), context=context)  # type: ignore[arg-type]
    assert any(note.startswith("equal to the whole") for note in outcome.steps[0].result.notes)
    return outcome


def error(module: Module, other: Module, data: list[dict[str, np.ndarray]]) -> float:
    pairs = [(compute(module, **feed)[0], compute(other, **feed)[0]) for feed in data]
    return sum(float(np.square(a - b).sum()) for a, b in pairs) / sum(float(np.square(a).sum()) for a, _ in pairs)


MLP = "g (float[1, 12] x) => (float[1, 5] y) { h = Gemm(x, u, b) r = Relu(h) y = MatMul(r, w) }"


def test_a_twin_goes_and_its_brother_takes_over(runner: Runner) -> None:
    generator = np.random.default_rng(0)
    u = generator.standard_normal((12, 8)).astype(np.float32)
    b, w = generator.standard_normal(8).astype(np.float32), generator.standard_normal((8, 5)).astype(np.float32)
    u[:, 5], b[5], w[5] = 2 * u[:, 2], 2 * b[2], 3 * w[5]  # strong, but nothing that the other does not know
    data = [{"x": generator.standard_normal((1, 12)).astype(np.float32)} for _ in range(64)]
    module = model(MLP, u=u, b=b, w=w)
    after = prune(module, runner, data, ratio=1 / 8).module
    assert numbers(after, "u").shape == (12, 7)
    assert error(module, after, data) < 1e-5
    assert error(module, prune(module, runner, data, ratio=1 / 8, correct=False).module, data) > 1e-3


def test_made_up_is_the_least_squares_solution(runner: Runner) -> None:
    data = feeds((1, 12), 200)
    module = model(MLP, u=(12, 24), b=(24,), w=(24, 5))
    after = prune(module, runner, data, ratio=0.5).module
    whole, cut = (np.concatenate([compute(one, **feed)[0] for feed in data]) for one in (module, after))
    hidden = np.concatenate([np.maximum(f["x"] @ numbers(after, "u") + numbers(after, "b"), 0) for f in data])
    best = hidden @ np.linalg.lstsq(hidden, whole, rcond=None)[0]
    assert np.square(cut - whole).sum() < 2 * np.square(best - whole).sum() + 1e-3 * np.square(whole).sum()


RESIDUAL = """g (float[1, 3, 8, 8] x) => (float[1, 4] y) {
    a = Conv<pads=[1,1,1,1]>(x, c0, b0) r0 = Relu(a)
    d1 = Conv<pads=[1,1,1,1]>(r0, c1, b1) e1 = Relu(d1) f1 = Conv(e1, c2, b2) s1 = Add(r0, f1) r1 = Relu(s1)
    d2 = Conv<pads=[1,1,1,1]>(r1, c3, b3) e2 = Relu(d2) f2 = Conv(e2, c4, b4) s2 = Add(r1, f2) r2 = Relu(s2)
    p = GlobalAveragePool(r2) f = Flatten(p) y = Gemm(f, w, b5) }"""


def residual() -> Module:
    generator = np.random.default_rng(2)
    shapes = {"c0": (16, 3, 3, 3), "c1": (16, 16, 3, 3), "c2": (16, 16, 1, 1), "c3": (16, 16, 3, 3), "c4": (16, 16, 1, 1)}
    weights = {k: generator.standard_normal(s) / np.sqrt(np.prod(s[1:])) for k, s in shapes.items()}
    weights |= {f"b{i}": 0.1 * generator.standard_normal(16 if i < 5 else 4) for i in range(6)}
    weights["w"] = generator.standard_normal((16, 4))
    return model(RESIDUAL, **{name: np.asarray(array, np.float32) for name, array in weights.items()})


def test_layers_behind_are_fitted_to_the_whole_model(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    module, data = residual(), feeds((1, 3, 8, 8))
    fitted = prune(module, runner, data[:32], ratio=0.5)
    assert any("fitted to the whole model" in note for note in fitted.steps[0].result.notes)
    monkeypatch.setattr("joulec.passes.prune_channels.refit", lambda *arguments: [])
    made_up = prune(module, runner, data[:32], ratio=0.5)
    plain = prune(module, runner, data[:32], ratio=0.5, correct=False)
    errors = [error(module, one.module, data[32:]) for one in (fitted, made_up, plain)]
    assert errors[0] < 0.9 * errors[1] < 0.2 * errors[2]


def test_pixels_behind_a_flatten_count_alike_where_there_are_many(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_readers, "WIDEST", 64)
    text = """g (float[1, 3, 6, 6] x) => (float[1, 5] y) { a = Conv<pads=[1,1,1,1]>(x, u, b) r = Relu(a) f = Flatten(r)
        y = Gemm<transB=1>(f, w, c) }"""
    module, data = model(text, u=(12, 3, 3, 3), b=(12,), w=(5, 432), c=(5,)), feeds((1, 3, 6, 6))
    corrected, plain = (prune(module, runner, data[:32], ratio=0.5, correct=one).module for one in (True, False))
    assert numbers(corrected, "w").shape == (5, 216)
    assert error(module, corrected, data[32:]) < 0.5 * error(module, plain, data[32:])


def test_a_group_can_have_a_share_of_its_own(runner: Runner) -> None:
    module, data = residual(), feeds((1, 3, 8, 8), 8)
    names = {node.outputs[0].name: node.name for node in module.graph}
    after = prune(module, runner, data, groups=(f"{names['d2']}=0.75",)).module
    assert [numbers(after, name).shape[0] for name in ("c0", "c1", "c3")] == [16, 16, 4]


def test_masked_weights_keep_their_zeros(runner: Runner) -> None:
    module = model(MLP, u=(12, 8), b=(8,), w=(8, 5))
    mask = np.random.default_rng(1).random((8, 5)) < 0.5
    masked = numbers(module, "w") * mask
    module = model(MLP, u=numbers(module, "u"), b=numbers(module, "b"), w=masked)
    module.masks["w"] = mask
    outcome = prune(module, runner, feeds((1, 12)), ratio=0.5)
    assert not np.any(numbers(outcome.module, "w")[~outcome.module.masks["w"]])
    assert "1 weights under masks read removed channels and are not corrected" in outcome.steps[0].result.notes
    assert "'w' is under a mask, whose zeros must stay" in [one.reason for one in outcome.steps[0].result.refusals]


@pytest.mark.parametrize("text", ["groups=a", "groups=a=1", "dead=true,groups=a=0.5"])
def test_options_out_of_range(text: str) -> None:
    with pytest.raises(InputError, match="prune-channels"):
        parse(f"prune-channels{{{text}}}", {"prune-channels": PruneChannels})
