"""Work is linear in nodes: calls of joulec's own functions are counted at n and at 2n, for every exact pass and for all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import onnx.parser
import onnx_ir as ir
import pytest
from rewrite_kit import TARGET

from joulec.ir.module import Module
from joulec.ir.shapes import infer_shapes
from joulec.passes.base import Context, Pass
from joulec.passes.default import simplifying_passes
from joulec.passes.pipeline import Pipeline
from joulec.passes.upgrade_opset import UpgradeOpset

N = 60
PASSES = {one.pass_name(): one for one in [*simplifying_passes(), UpgradeOpset(to=21)]}


def graph(name: str, n: int) -> str:
    """Text of a graph of about n blocks."""
    blocks: dict[str, Callable[[int], str]] = {
        "shape arithmetic": lambda i: f"a{i} = Add(s{i}, one) s{i + 1} = Sub(a{i}, one) ",
        "constants": lambda i: f"k{i} = Constant<value = float {{{i}.5}}>() q{i} = Mul(k{i}, k{i}) s{i + 1} = Add(s{i}, q{i}) ",
        "layers": lambda i: f"c{i} = Conv(s{i}, w) b{i} = Mul(c{i}, v) r{i} = Relu(b{i}) t{i} = Transpose<perm = [0,2,3,1]>(r{i}) "
        f"u{i} = Tanh(t{i}) p{i} = Transpose<perm = [0,3,1,2]>(u{i}) e{i} = Identity(p{i}) s{i + 1} = Add(e{i}, s{i}) ",
        "equal twins": lambda i: f"l{i} = Relu(s{i}) m{i} = Relu(s{i}) s{i + 1} = Add(l{i}, m{i}) ",
        "branches": lambda i: f"s{i + 1} = If(on) <then_branch = g () => (float[N,4] y{i}) {{ y{i} = Relu(s{i}) }}, else_branch = h () => (float[N,4] z{i}) {{ z{i} = Neg(s{i}) }}> ",
        "reshapes": lambda i: f"h{i} = Shape(s{i}) f{i} = Flatten(s{i}) j{i} = Reshape(f{i}, h{i}) s{i + 1} = Relu(j{i}) ",
    }
    heads = {
        "shape arithmetic": ("(float[N,4] x) => (int64[2] y)", "one = Constant<value = int64 {1}>() s0 = Shape(x) "),
        "constants": ("(float[N,4] x) => (float[N,4] y)", "s0 = Relu(x) "),
        "layers": ("(float[N,4,8,8] x, float[4,4,1,1] wx) => (float[N,4,8,8] y)", "w = ConstantOfShape<value = float[1] {0.5}>(d) s0 = Relu(x) "),
        "equal twins": ("(float[N,4] x) => (float[N,4] y)", "s0 = Relu(x) "),
        "branches": ("(float[N,4] x, bool on) => (float[N,4] y)", "s0 = Relu(x) "),
        "reshapes": ("(float[N,4,5] x) => (float[N,4,5] y)", "s0 = Relu(x) "),
    }
    head, start = heads[name]
    weights = "<int64[4] d = {4,4,1,1}, float v = {2.0}>" if name == "layers" else ""
    return f"agraph {head} {weights} {{ {start}{''.join(blocks[name](i) for i in range(n))} y = Identity(s{n}) }}"


GRAPHS = ("shape arithmetic", "constants", "layers", "equal twins", "branches", "reshapes")


def module_of(name: str, n: int) -> Module:
    module = Module(ir.from_proto(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 17]>\n{graph(name, n)}')))
    infer_shapes(module)
    return module


@contextmanager
def counted() -> Iterator[list[int]]:
    """Count the Python functions that are entered, joulec's and onnx_ir's alike."""
    calls = [0]

    def trace(frame: FrameType, event: str, argument: Any) -> None:
        calls[0] += event == "call"

    previous = sys.getprofile()
    sys.setprofile(trace)
    try:
        yield calls
    finally:
        sys.setprofile(previous)


def work(run: Callable[[Module], object], name: str, n: int) -> int:
    module = module_of(name, n)
    with counted() as calls:
        run(module)
    return calls[0]


@pytest.mark.parametrize("one", PASSES.values(), ids=PASSES)
@pytest.mark.parametrize("name", GRAPHS)
def test_a_pass_does_twice_the_work_on_twice_the_nodes(one: Pass, name: str) -> None:
    def run(module: Module) -> None:
        one.run(module, Context(target=TARGET))

    run(module_of(name, 2))  # caches of schemas fill up
    assert work(run, name, 2 * N) <= 2.3 * work(run, name, N)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_pipeline_does_twice_the_work_on_twice_the_nodes(name: str) -> None:
    def run(module: Module) -> None:
        Pipeline(simplifying_passes()).run(module, Context(target=TARGET))

    run(module_of(name, 2))
    assert work(run, name, 2 * N) <= 2.3 * work(run, name, N)


def test_quadratic_work_would_be_seen() -> None:
    def run(module: Module) -> None:
        for node in list(module.graph):
            sum(map(len, (other.inputs for other in module.graph)))
            assert node.graph is not None

    assert work(run, "equal twins", 2 * N) > 3 * work(run, "equal twins", N)
