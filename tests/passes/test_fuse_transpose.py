"""fuse-transpose: pairs go, regions change order only where that saves Transposes, numbers stay."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from joulec.ir.module import Module
from joulec.ir.onnx_file import read
from joulec.ir.runner import LocalRunner
from joulec.passes.base import Context
from joulec.passes.equivalence import deviation
from joulec.passes.fuse_transpose import FuseTranspose
from joulec.passes.pipeline import Pipeline, Step
from joulec.passes.target import Target

TARGET = Target("cpu", "CPUExecutionProvider", 19, 9, None, "generic-server-cpu")
NCHW, NHWC = "perm=[0,3,1,2]", "perm=[0,2,3,1]"


def run(module: Module) -> tuple[Module, Step]:
    generator = np.random.default_rng(0)
    feed = {
        str(v.name): generator.standard_normal([d if isinstance(d, int) else 2 for d in v.shape or []]).astype(np.float32)
        for v in module.inputs()
    }
    with LocalRunner() as runner:
        outcome = Pipeline([FuseTranspose()]).run(module, Context(target=TARGET, probes=[feed], runner=runner))
    (step,) = outcome.steps
    assert step.status != "rolled back", step.reason
    return outcome.module, step


def ops(module: Module) -> list[str]:
    return [node.op_type for node in module.graph]


def transposes(module: Module) -> int:
    return Counter(ops(module))["Transpose"]


def test_inverse_pair_goes(parse: Callable[..., Module]) -> None:
    module, _ = run(
        parse(f"agraph (float[2,3,4,5] x) => (float[2,3,4,5] y) {{ a = Transpose<{NHWC}>(x) b = Transpose<{NCHW}>(a) y = Relu(b) }}")
    )
    assert ops(module) == ["Relu"]


def test_pair_becomes_one(parse: Callable[..., Module]) -> None:
    module, _ = run(
        parse("agraph (float[2,3,4] x) => (float[4,2,3] y) { a = Transpose<perm=[1,0,2]>(x) y = Transpose<perm=[2,1,0]>(a) }")
    )
    assert ops(module) == ["Transpose"]
    assert tuple(module.graph[0].attributes["perm"].as_ints()) == (2, 0, 1)


def test_pair_across_elementwise_with_constant(parse: Callable[..., Module]) -> None:
    module, step = run(
        parse(
            f"agraph (float[N,3,4,5] x) => (float[N,3,4,5] y) <float[3] c = {{1,2,3}}> "
            f"{{ a = Transpose<{NHWC}>(x) b = Mul(a, c) d = Relu(b) y = Transpose<{NCHW}>(d) }}"
        )
    )
    assert ops(module) == ["Mul", "Relu"]
    assert [rewrite.rule for rewrite in step.result.rewrites] == ["reorder-region", "unused-transpose"]


def test_residual_and_squeeze_excite_region(parse: Callable[..., Module]) -> None:
    module, _ = run(
        parse(
            f"""agraph (float[N,8,6,6] x) => (float[N,8,6,6] z) {{
                a = Transpose<{NHWC}>(x) r = Relu(a) m = ReduceMean<axes=[1,2], keepdims=1>(r) s = Sigmoid(m)
                g = Mul(r, s) q = Add(g, a) y = Transpose<{NCHW}>(q) z = Neg(y) }}""",
            opset=13,
        )
    )
    assert transposes(module) == 0
    mean = next(node for node in module.graph if node.op_type == "ReduceMean")
    assert tuple(mean.attributes["axes"].as_ints()) == (2, 3)


def test_reduction_without_keepdims_absorbs_the_order(parse: Callable[..., Module]) -> None:
    module, _ = run(
        parse(
            f"""agraph (float[N,8,6,6] x) => (float[N,8] y) {{
                a = Transpose<{NHWC}>(x) r = Relu(a) y = ReduceMean<axes=[1,2], keepdims=0>(r) }}""",
            opset=13,
        )
    )
    assert ops(module) == ["Relu", "ReduceMean"]


@pytest.mark.parametrize(
    "body",
    [
        "c = Concat<axis=3>(r, r) y = Transpose<perm=[0,3,1,2]>(c)",
        "c = Softmax<axis=3>(r) y = Transpose<perm=[0,3,1,2]>(c)",
        "c = Pad(r, p) y = Transpose<perm=[0,3,1,2]>(c)",
    ],
)
def test_axes_follow(parse: Callable[..., Module], body: str) -> None:
    module, _ = run(
        parse(
            f"agraph (float[2,3,4,5] x) => (float[a,b,c,d] y) <int64[8] p = {{0,1,2,0,0,1,0,0}}> "
            f"{{ t = Transpose<{NHWC}>(x) r = Relu(t) {body} }}"
        )
    )
    assert transposes(module) == 0


def test_region_that_would_gain_transposes_is_left_alone(parse: Callable[..., Module]) -> None:
    module, step = run(
        parse(
            f"""agraph (float[2,3,4,5] x, float[2,4,5,3] u, float[2,4,5,3] v) => (float[2,4,5,3] y, float[2,4,5,3] z) {{
                a = Transpose<{NHWC}>(x) b = Add(a, u) y = Mul(b, v) z = Neg(b) }}"""
        )
    )
    assert ops(module) == ["Transpose", "Add", "Mul", "Neg"]
    assert not step.result.changed


def test_masks_are_transposed_with_their_constants(parse: Callable[..., Module]) -> None:
    module = parse(
        f"agraph (float[N,3,4,5] x) => (float[N,3,4,5] y) <float[3] c = {{0,2,3}}> "
        f"{{ a = Transpose<{NHWC}>(x) b = Mul(a, c) d = Transpose<{NCHW}>(b) y = Neg(d) }}"
    )
    module.masks["c"] = np.array([False, True, True])
    module, _ = run(module)
    (mask,) = [mask for name, mask in module.masks.items() if name != "c"]
    assert mask.shape == (1, 3, 1, 1)
    assert mask.ravel().tolist() == [False, True, True]


def test_inside_a_branch(parse: Callable[..., Module]) -> None:
    module = parse(
        """agraph (bool c, float[2,3] x) => (float[2,3] y) {
            y = If (c) <then_branch = t () => (float[2,3] a) { p = Transpose(x) q = Transpose(p) a = Relu(q) },
                        else_branch = e () => (float[2,3] b) { b = Neg(x) }> }"""
    )
    outcome = Pipeline([FuseTranspose()]).run(module, Context(target=TARGET))
    branch = outcome.module.graph[0].attributes["then_branch"].as_graph()
    assert [node.op_type for node in branch] == ["Relu"]


def random_model(seed: int) -> onnx.ModelProto:
    """A random graph of Transposes and operators that do not care, with fan-out; every value is 4-D."""
    generator = np.random.default_rng(seed)
    shapes = {"x": [2, 3, 4, 5], "w": [2, 4, 5, 3]}
    nodes = []
    perms = [p for p in itertools.permutations(range(4)) if p[0] == 0]
    for index in range(int(generator.integers(3, 14))):
        name, source = f"v{index}", str(generator.choice(list(shapes)))
        same = [other for other, shape in shapes.items() if shape == shapes[source]]
        match int(generator.integers(0, 5)):
            case 0 | 1:
                perm = list(perms[int(generator.integers(len(perms)))])
                nodes.append(helper.make_node("Transpose", [source], [name], perm=perm))
                shapes[name] = [shapes[source][axis] for axis in perm]
            case 2:
                nodes.append(helper.make_node("Relu", [source], [name]))
                shapes[name] = shapes[source]
            case 3:
                nodes.append(helper.make_node("Add", [source, str(generator.choice(same))], [name]))
                shapes[name] = shapes[source]
            case _:
                axis = int(generator.integers(1, 4))
                nodes.append(helper.make_node("ReduceMax", [source], [name], axes=[axis], keepdims=1))
                shapes[name] = [1 if a == axis else d for a, d in enumerate(shapes[source])]
    used = {i for node in nodes for i in node.input}
    outputs = [n for n in shapes if n not in used and n not in ("x", "w")]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(n, 1, shapes[n]) for n in ("x", "w")],
        [helper.make_tensor_value_info(n, 1, shapes[n]) for n in outputs],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_random_graphs_keep_their_numbers_and_never_gain_transposes(seed: int) -> None:
    before = read(random_model(seed))
    after, _ = run(before)
    assert transposes(after) <= transposes(before)
    generator = np.random.default_rng(seed)
    feed = {str(v.name): generator.standard_normal([int(d) for d in v.shape or []]).astype(np.float32) for v in before.inputs()}
    with LocalRunner() as runner:
        expected = runner.run(runner.load(before), feed)
        actual = runner.run(runner.load(after), feed)
    assert list(expected) == list(actual)
    assert all(deviation(expected[name], actual[name]) == 0.0 for name in expected)
