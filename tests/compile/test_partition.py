"""The cut quantizes what pays: seconds saved against borders and noise, exactly as trying every set would say."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulec.backends import backend
from joulec.compile.partition import Gain, best_blocks
from joulec.ir.module import Module
from joulec.ir.shapes import infer_shapes
from joulec.passes.blocks import Block, survey

Parse = Callable[..., Module]

CHAIN = """agraph (float[1,4,8,8] x) => (float[1,4,8,8] y)
    <float[4,4,1,1] a = {1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1}> {
    one = Conv(x, a)
    two = Conv(one, a)
    three = Conv(two, a)
    side = Conv(one, a)
    y = Add(three, side)
}"""


def blocks_of(parse: Parse, graph: str = CHAIN) -> tuple[Block, ...]:
    target = backend("cpu").target
    assert target.quantization is not None
    module = parse(graph)
    infer_shapes(module)
    blocks = survey(module, target.quantization, "cpu").blocks
    assert len(blocks) == 5
    return blocks


def cost(blocks: Sequence[Block], gains: Sequence[Gain], border: float, price: float, inside: frozenset[int]) -> float:
    """The objective as its definition says, value by value."""
    total = 0.0
    for index, gain in enumerate(gains):
        total += max(-gain.seconds, 0) + price * gain.noise if index in inside else max(gain.seconds, 0)
    makers = {id(block.output): index for index, block in enumerate(blocks)}
    readers: dict[int, list[int]] = {}
    for index, block in enumerate(blocks):
        for value in {id(v): v for v in block.inputs}.values():
            readers.setdefault(id(value), []).append(index)
            if id(value) not in makers and index in inside:
                total += border
    for index, block in enumerate(blocks):
        near = readers.get(id(block.output), [])
        if index in inside and (block.output.is_graph_output() or len(block.output.uses()) > len(near)):
            total += border
        total += sum(border / len(near) for reader in near if (reader in inside) != (index in inside))
    return total


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_set_is_better_than_the_cut(data: st.DataObject) -> None:
    import onnx.parser
    import onnx_ir as ir

    def parse(graph: str) -> Module:
        return Module(ir.from_proto(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 19]>\n{graph}')))

    blocks = blocks_of(parse)
    micro = st.integers(-50, 50).map(lambda n: n * 1e-6)
    gains = [Gain(data.draw(micro), data.draw(st.integers(0, 20)) / 10) for _ in blocks]
    border, price = data.draw(st.integers(0, 20)) * 1e-6, data.draw(st.integers(0, 30)) * 1e-6
    found = cost(blocks, gains, border, price, best_blocks(blocks, gains, lambda value: border, price))
    every = itertools.chain.from_iterable(itertools.combinations(range(len(blocks)), n) for n in range(len(blocks) + 1))
    best = min(cost(blocks, gains, border, price, frozenset(one)) for one in every)
    assert found == pytest.approx(best, abs=1e-10)


def test_a_slow_kernel_between_two_fast_ones_stays_where_borders_cost_more(parse: Parse) -> None:
    blocks = blocks_of(parse)
    gains = [Gain(10e-6), Gain(-2e-6), Gain(10e-6), Gain(10e-6), Gain(1e-6)]
    assert best_blocks(blocks, gains, lambda value: 5e-6, 0.0) == frozenset(range(5))
    assert best_blocks(blocks, gains, lambda value: 0.0, 0.0) == frozenset({0, 2, 3, 4})


def test_the_dearer_noise_is_the_less_is_quantized(parse: Parse) -> None:
    blocks = blocks_of(parse)
    gains = [Gain(1e-6 * (index + 1), 1.0) for index in range(5)]
    sizes = [len(best_blocks(blocks, gains, lambda value: 0.0, price * 1e-6)) for price in (0.0, 2.5, 4.5, 9.0)]
    assert sizes == [5, 3, 1, 0]
