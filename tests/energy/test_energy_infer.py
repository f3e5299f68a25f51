"""Shapes of bound models: computed shapes, bodies of control flow, and files that ask for too much."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx_ir as ir
import pytest

from joulec.energy import EnergyModel, load_profile
from joulec.energy.bind import bind
from joulec.energy.infer import resolve
from joulec.ir.module import Module
from joulec.ir.values import static_shape

Parse = Callable[..., Module]
MODEL = EnergyModel(load_profile())


def shapes(module: Module) -> dict[str, tuple[int, ...] | None]:
    """Static shapes by value name, in all graphs."""
    graphs = [module.graph, *module.graph.subgraphs()]
    values = [v for graph in graphs for v in (*graph.inputs, *(o for node in graph for o in node.outputs))]
    return {str(value.name): static_shape(value) for value in values}


def computed_reshapes(count: int) -> str:
    """`count` layers, each of which reshapes to a target that is computed from the shape of the one before."""
    lines = []
    for i in range(count):
        lines.append(
            f"s{i} = Shape(v{i}) p{i} = ReduceProd<keepdims=1>(s{i}) m{i} = Max(p{i}, one) "
            f"w{i} = Concat<axis=0>(m{i}, one) v{i + 1} = Reshape(v{i}, w{i})"
        )
    body = "one = Constant<value_ints=[1]>() " + " ".join(lines)
    return f"g (float[N,4] v0) => (float[A,B] v{count}) {{ {body} }}"


def test_computed_shapes_are_followed_through_any_number_of_layers(parse: Parse) -> None:
    bound, _ = bind(parse(computed_reshapes(40)), {"N": 3})
    assert {shapes(bound)[f"v{i}"] for i in range(1, 41)} == {(12, 1)}


def test_single_nodes_are_inferred_once_each(parse: Parse, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear in layers: counted, not timed."""
    calls = 0
    original = onnx.shape_inference.infer_node_outputs

    def counted(*args: object, **more: object) -> object:
        nonlocal calls
        calls += 1
        return original(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(onnx.shape_inference, "infer_node_outputs", counted)
    found = []
    for count in (20, 40):
        calls = 0
        bind(parse(computed_reshapes(count)), {"N": 3})
        found.append(calls)
    assert 0 < found[1] <= 2 * found[0] <= 200


@pytest.mark.parametrize(
    "text",
    [
        "g (int64[300000000] x, int64[N] i) => (int64[M] y) { y = Gather(x, i) }",
        "g (int64[300000000] x, int64[N] i) => (int64[M] y) { y = Concat<axis=0>(x, i) }",
        "g (int64[N] i) => (int64[M] y) { a = Constant<value_ints=[1, 2]>() v0 = Concat<axis=0>(a, a) "
        + " ".join(f"v{k + 1} = Concat<axis=0>(v{k}, v{k})" for k in range(40))
        + " y = Gather(v40, i) }",
        "g (int64[N] i) => (int64[M] y) { a = Constant<value=int64 {0}>() b = Constant<value=int64 {900000000}>() "
        "c = Constant<value=int64 {1}>() r = Range(a, b, c) y = Gather(r, i) }",
    ],
    ids=["long input", "long concat", "doubling", "long range"],
)
def test_long_vectors_are_no_shape_arithmetic(parse: Parse, text: str) -> None:
    """ONNX's data propagation would store every element: gigabytes for each of these."""
    assert MODEL.estimate(parse(text), {"N": 4}).total_joules > 0


def test_stale_declared_shapes_are_not_believed(parse: Parse) -> None:
    module = parse("g (float[N,4] x) => (float[N,4] y) { h = Exp(x) y = Relu(h) }")
    next(iter(module.graph)).outputs[0].shape = ir.Shape([7, 7, 7])
    bound, _ = bind(module, {"N": 2})
    assert shapes(bound)["h"] == (2, 4)


LOOP = """g (float[N,8] x) => (float[N,8] y, float[K,N,8] all) {
    s = Shape<start=0, end=1>(x)  axes = Constant<value_ints=[0]>()  n = Squeeze(s, axes)
    go = Constant<value=bool {1}>()
    y, all = Loop(n, go, x) <body = b (int64 i, bool c, float[A,B] v) => (bool d, float[C,D] w, float[E,F] o)
        { d = Identity(c) w = Exp(v) o = Relu(w) }>
}"""


def test_a_loop_over_an_inputs_length_is_priced_by_trips(parse: Parse) -> None:
    estimate = MODEL.estimate(parse(LOOP), {"N": 6})
    (exp,) = [node for node in estimate.nodes if node.op == "Exp"]
    assert (exp.repeats, exp.flops) == (6, 6 * 16 * 6 * 8)
    assert estimate.assumed == ()


def test_what_a_loop_carries_and_stacks_has_a_shape(parse: Parse) -> None:
    bound, _ = bind(parse(LOOP), {"N": 6})
    assert (shapes(bound)["v"], shapes(bound)["y"], shapes(bound)["all"]) == ((6, 8), (6, 8), (6, 6, 8))


def test_a_loop_that_changes_a_shape_leaves_it_unknown(parse: Parse) -> None:
    module = parse(
        """g (float[N] x) => (float[M] y) {
            n = Constant<value=int64 {3}>()  go = Constant<value=bool {1}>()
            y = Loop(n, go, x) <body = b (int64 i, bool c, float[A] v) => (bool d, float[B] w)
                { d = Identity(c) w = Concat<axis=0>(v, v) }>
        }"""
    )
    estimate = MODEL.estimate(module, {"N": 5})
    assert [node.bytes for node in estimate.nodes if node.op == "Concat"] == [3 * 4 * 15], "the first trip's size"
    bound, _ = bind(module, {"N": 5})
    assert shapes(bound)["y"] is None


def test_a_scan_slices_its_inputs(parse: Parse) -> None:
    module = parse(
        """g (float[T,B,8] x, float[B,8] h) => (float[B,8] last, float[U,B,8] all) {
            last, all = Scan(h, x)
                <num_scan_inputs = 1, body = b (float[C,D] s, float[E,F] v) => (float[G,H] t, float[I,J] o) { t = Add(s, v) o = Relu(t) }>
        }"""
    )
    bound, _ = bind(module, {"T": 9, "B": 2})
    assert (shapes(bound)["v"], shapes(bound)["last"], shapes(bound)["all"]) == ((2, 8), (2, 8), (9, 2, 8))
    (add,) = [node for node in MODEL.estimate(module, {"T": 9, "B": 2}).nodes if node.op == "Add"]
    assert (add.repeats, add.flops) == (9, 9 * 16)


BRANCH = """g (float[N,8] x) => (float[N,8] y) {
    s = Shape<start=0, end=1>(x)  two = Constant<value_ints=[2]>()  many = Greater(s, two)
    y = If(many) <then_branch = t () => (float[A,B] a) { a = Exp(x) }, else_branch = e () => (float[C,D] b) { b = Relu(x) }>
}"""


@pytest.mark.parametrize(("n", "op"), [(3, "Exp"), (2, "Relu")])
def test_an_if_on_a_shape_takes_its_branch(parse: Parse, n: int, op: str) -> None:
    estimate = MODEL.estimate(parse(BRANCH), {"N": n})
    assert [node.op for node in estimate.nodes][-2:] == ["If", op]
    assert estimate.notes == ()


@pytest.mark.parametrize("pads", ["Constant<value_ints=[-5, 0, 0, 0]>()", "Concat<axis=0>(minus, s, s, minus)"])
def test_cropping_more_than_there_is_does_not_end_the_process(parse: Parse, pads: str) -> None:
    """ONNX infers a negative dimension, and its inference of the Slice behind aborts."""
    module = parse(
        f"""g (float[N,4] x) => (float[A,B] y) {{
            zero = Constant<value_ints=[0]>()  minus = Constant<value_ints=[-5]>()  d = Shape(x)  s = Gather(d, zero)
            p = {pads}  h = Pad(x, p)
            nine = Constant<value_ints=[9]>()  one = Constant<value_ints=[1]>()  y = Slice(h, zero, nine, zero, one)
        }}"""
    )
    assert "h[0]" in MODEL.estimate(module, {"N": 2}).assumed


def test_a_transpose_of_nothing_is_no_transpose() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 19]> g (float[2,3] x) => (float[2,3] y) '
        "{ t = Transpose<perm=[1,0]>() h = Relu(t) u = Transpose<perm=[1,0]>(h) y = Add(u, x) }"
    )
    assert len(MODEL.estimate(Module(ir.from_proto(model))).nodes) == 4


def test_a_malformed_model_gives_no_types_and_no_crash() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 19]> g (float[2] x, int64[N] t) => (float[M] y) '
        "{ s = Shape(x) b = Concat<axis=3>(s, s) h = Reshape(x, b) y = Add(h, h, h) }"
    )
    assert "x" in resolve(model).types
    assert MODEL.estimate(Module(ir.from_proto(model))).nodes
