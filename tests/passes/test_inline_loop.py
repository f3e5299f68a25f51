"""inline-loop, within fold-constants: a Loop that runs never is its states, one that runs a few times its turns."""

from __future__ import annotations

import numpy as np
import pytest
from fusion_kit import build, fuse, numbers, ops, unchanged
from rewrite_kit import TARGET

from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.rewrite import Rewriter
from joulec.ir.rules import apply_rules
from joulec.passes.base import Context
from joulec.passes.fold_constants import FoldConstants
from joulec.passes.inline_loop import InlineLoop

HEAD = "(float[2] x, int64 n, bool c) => (float[2] y)"
BODY = "body = b (int64 i, bool go, float[2] s) => (bool on, float[2] t) { on = Identity(go) r = Relu(s) t = Add(r, s) }"
FEED = {"x": numbers(2), "n": np.array(3), "c": np.array(True)}
CONSTANTS = {"once": np.array(1), "never": np.array([0]), "twice": np.array(2), "yes": np.array(True), "no": np.array(False)}


def module(body: str, head: str = HEAD, opset: int = 19, **more: np.ndarray) -> Module:
    given = {**CONSTANTS, **more}
    return build(f"{head} {{ {body} }}", opset, **{name: array for name, array in given.items() if name in body})


def refusals(made: Module) -> set[str]:
    rewriter = Rewriter(made, "test")
    apply_rules(rewriter, [InlineLoop()])
    return {one.reason for one in rewriter.refusals.values()}


@pytest.mark.parametrize("given", ["once, yes", "once, "])
def test_a_single_turn_is_its_body(given: str) -> None:
    made = module(f"a = Neg(x) l = Loop({given}, a) <{BODY}> y = Abs(l)")
    fuse(made, FoldConstants(), FEED)
    assert ops(made) == ["Neg", "Relu", "Add", "Abs"]


def test_a_body_that_ends_the_loop_runs_once() -> None:
    body = "body = b (int64 i, bool go, float[2] s) => (bool on, float[2] t) { on = Constant<value = bool {0}>() t = Exp(s) }"
    made = module(f"l = Loop(, yes, x) <{body}> y = Abs(l)")
    fuse(made, FoldConstants(), FEED)
    assert ops(made) == ["Exp", "Abs"]


@pytest.mark.parametrize("given", ["never, yes", "n, no", "never, c"])
def test_no_turn_leaves_the_state(given: str) -> None:
    made = module(f"a = Neg(x) l = Loop({given}, a) <{BODY}> y = Abs(l)")
    fuse(made, FoldConstants(), FEED)
    assert ops(made) == ["Neg", "Abs"]


@pytest.mark.parametrize("given", ["twice, yes", "twice, "])
def test_a_few_turns_stand_one_behind_the_other(given: str) -> None:
    made = module(f"a = Neg(x) l = Loop({given}, a) <{BODY}> y = Abs(l)")
    fuse(made, FoldConstants(), FEED)
    assert ops(made) == ["Neg", "Relu", "Add", "Relu", "Add", "Abs"]


def test_states_change_places_and_each_turn_has_its_number() -> None:
    """Fibonacci's numbers, the states of every turn scanned."""
    body = (
        "body = b (int64 i, bool go, float[2] p, float[2] q) => (bool on, float[2] q, float[2] r, float[2] u) "
        "{ on = Identity(go) r = Add(p, q) f = Cast<to = 1>(i) u = Mul(r, f) }"
    )
    head = "(float[2] x, int64 n, bool c) => (float[2] y, float[k,2] z)"
    made = module(f"l, m, k = Loop(five, yes, x, x) <{body}> y = Sub(l, m) z = Neg(k)", head, five=np.array(5))
    fuse(made, FoldConstants(), FEED)
    assert "Loop" not in ops(made) and ops(made).count("Add") == 5


def test_inner_loops_of_every_turn_unroll_too_until_it_is_too_much() -> None:
    inner = "body = c (int64 j, bool stay, float[2] v) => (bool on2, float[2] w) { on2 = Identity(stay) w = Exp(v) }"
    body = f"body = b (int64 i, bool go, float[2] s) => (bool on, float[2] t) {{ on = Identity(go) t = Loop(many, yes, s) <{inner}> }}"
    few = module(f"l = Loop(twice, yes, x) <{body}> y = Abs(l)", many=np.array(3))
    fuse(few, FoldConstants(), FEED)
    assert ops(few) == ["Exp"] * 6 + ["Abs"]
    most = module(f"l = Loop(n12, yes, x) <{body}> y = Abs(l)", many=np.array(32), n12=np.array(12))
    FoldConstants().run(most, Context(target=TARGET))
    assert len(list(walk.nodes(most.model))) < 1100


@pytest.mark.parametrize(
    ("body", "turns", "reason"),
    [
        ("r = RandomNormalLike(s) t = Add(s, r)", 2, "a random operator goes on from turn to turn"),
        (" ".join(f"s{k + 1} = Exp(s{k or ''})" for k in range(20)) + " t = Neg(s20)", 4, "4 turns would become 88 operators"),
    ],
)
def test_turns_that_stay_say_why(body: str, turns: int, reason: str) -> None:
    loop = f"body = b (int64 i, bool go, float[2] s) => (bool on, float[2] t) {{ on = Identity(go) {body} }}"
    assert refusals(module(f"l = Loop(some, yes, x) <{loop}> y = Abs(l)", some=np.array(turns))) == {reason}


@pytest.mark.parametrize("given", ["n, yes", "once, c", ", yes"])
def test_other_loops_stay(given: str) -> None:
    made = module(f"l = Loop({given}, x) <{BODY}> y = Abs(l)")
    assert unchanged(made, FoldConstants()) == set()


@pytest.mark.parametrize("opset", [11, 13])
def test_the_turn_counts_from_zero_and_is_scanned(opset: int) -> None:
    body = "body = b (int64 i, bool go, float[2] s) => (bool on, float[2] t, int64 u) { on = Identity(go) t = Add(s, x) u = Identity(i) }"
    head = "(float[2] x, int64 n, bool c) => (float[2] y, float[1] z)"
    made = module(f"l, k = Loop(once, yes, x) <{body}> y = Abs(l) z = Cast<to = 1>(k)", head, opset)
    fuse(made, FoldConstants(), FEED)
    assert "Loop" not in ops(made)


def test_states_that_pass_through_captures_and_nested_bodies() -> None:
    inner = "then_branch = p () => (float[2] f) { f = Add(s, x) }, else_branch = q () => (float[2] g) { g = Neg(s) }"
    body = f"body = b (int64 i, bool go, float[2] s, float[2] k) => (bool on, float[2] t, float[2] k) {{ on = Identity(go) t = If(c) <{inner}> }}"
    made = module(f"a = Neg(x) l, m = Loop(once, yes, a, x) <{body}> y = Mul(l, m)")
    fuse(made, FoldConstants(), FEED)
    assert ops(made) == ["Neg", "If", "Mul"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("y = Loop(never, yes, x) <" + BODY + ">", "a graph output is one of its initial states"),
        ("y = Loop(once, yes, x) <body = b (int64 i, bool go, float[2] s) => (bool go, float[2] s) { }>", "'y' is a graph output and the body does not compute it"),
    ],
)
def test_what_would_take_an_outputs_name_stays(text: str, reason: str) -> None:
    assert refusals(module(text)) == {reason}


def test_an_empty_scan_stays() -> None:
    body = "body = b (int64 i, bool go, float[2] s) => (bool on, float[2] t, float[2] u) { on = Identity(go) t = Neg(s) u = Exp(s) }"
    made = module(f"l, y = Loop(never, yes, x) <{body}>", "(float[2] x, int64 n, bool c) => (float[k,2] y)")
    assert refusals(made) == {"what it scans would be empty"}
