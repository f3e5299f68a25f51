"""ONNX files that attack their reader: what would recurse, multiply or allocate without bound is refused beforehand."""

from __future__ import annotations

import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as onh
import onnx.parser
import pytest

from joulec.errors import InputError
from joulec.ir.module import Module
from joulec.ir.onnx_file import read
from joulec.ir.rewrite import Rewriter
from joulec.ir.shapes import infer_shapes

GRAPH = "g (float[2] x) => (float[2] y) { y = Relu(x) }"
CALLER = "g (float[2] x) => (float[2] y) { y = local.F0(x) }"
HEADER = '<ir_version: 9, opset_import: ["" : 18, "local" : 1]>'


def parsed(graph: str, functions: str = "") -> onnx.ModelProto:
    return onnx.parser.parse_model(f"{HEADER}\n{graph}\n{functions}")


def function(name: str, body: str, domain: str = "local") -> str:
    return f'<domain: "{domain}", opset_import: ["" : 18, "local" : 1]>\n{name} (a) => (b) {{ {body} }}\n'


def changed(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    """A sound model of one MatMul and one Relu, and what `change` makes of it."""
    proto = parsed(
        "g (float[n, 2] x) => (float[n, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { a = MatMul(x, w)\n y = Relu(a) }"
    )
    change(proto)
    return proto


def refusal(proto: onnx.ModelProto) -> str:
    with pytest.raises(InputError) as caught:
        read(proto.SerializeToString())
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- functions ------------------------------------------------------------------------------------------------------


def doubling(depth: int) -> str:
    calls = [function(f"F{i}", f"c = local.F{i + 1}(a)\n b = local.F{i + 1}(c)") for i in range(depth)]
    return "".join([*calls, function(f"F{depth}", "b = Relu(a)")])


@pytest.mark.parametrize(
    ("functions", "said"),
    [
        (function("F0", "b = local.F0(a)"), "function 'local::F0' calls itself"),
        (function("F0", "b = local.F1(a)") + function("F1", "b = local.F0(a)"), "calls itself"),
        (doubling(40), "inlining its functions would make 1.1e+12 nodes; the limit is 1,048,576"),
        (function("F0", "b = Relu(a)") + function("F0", "b = Neg(a)"), "function 'local::F0' is defined twice"),
        (function("Relu", "b = Neg(a)", domain=""), "function 'Relu' redefines operators of the ONNX domain"),
    ],
    ids=["itself", "each other", "doubling", "twice", "standard operator"],
)
def test_functions_that_recurse_or_multiply_are_refused(functions, said):
    assert said in refusal(parsed(CALLER, functions))


def test_recursion_through_a_subgraph_is_found():
    then = oh.make_graph(
        [oh.make_node("F", ["a"], ["r"], domain="local")], "t", [], [oh.make_empty_tensor_value_info("r")]
    )
    node = oh.make_node("If", ["c"], ["b"], then_branch=then, else_branch=then)
    true = oh.make_node("Constant", [], ["c"], value=onh.from_array(np.array(True)))
    proto = parsed(GRAPH)
    proto.functions.append(oh.make_function("local", "F", ["a"], ["b"], [true, node], [oh.make_opsetid("", 18)]))
    assert "function 'local::F' calls itself" in refusal(proto)


def test_sound_functions_are_read_and_long_chains_are_no_recursion():
    assert len(read(parsed(CALLER, doubling(10))).model.functions) == 11
    chain = "".join(function(f"F{i}", f"b = local.F{i + 1}(a)") for i in range(3000)) + function("F3000", "b = Relu(a)")
    assert len(read(parsed(CALLER, chain)).model.functions) == 3001


# -- what a model claims ----------------------------------------------------------------------------------------------


def _rank(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].dims.extend([1] * 100)


def _split(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].op_type = "Split"
    proto.graph.node[1].attribute.append(oh.make_attribute("num_outputs", 10**9))


def _many_dims(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].CopyFrom(oh.make_tensor_value_info("x", 1, [1] * 100_000))


def _reference(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].attribute.add(name="alpha", ref_attr_name="outer", type=onnx.AttributeProto.FLOAT)


def _opset(version: int) -> Callable[[onnx.ModelProto], None]:
    return lambda proto: setattr(proto.opset_import[0], "version", version)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_rank, "tensor 'w' has 102 dimensions; the limit is 64"),
        (_split, "Split 'y' claims 1000000000 outputs, it has 1"),
        (_many_dims, "'x' declares 100000 dimensions; the limit is 64"),
        (_reference, "Relu 'y': attribute 'alpha' refers to 'outer' of a function, but stands in none"),
        (_opset(9999), "imports version 9999 of the ONNX operators, the installed onnx knows 1 to "),
        (_opset(-5), "imports version -5 of the ONNX operators"),
        (lambda p: p.opset_import.append(oh.make_opsetid("ai.onnx", 9)), "imports operator set 'ai.onnx' in two versions"),
        (lambda p: setattr(p, "ir_version", 99), "IR version 99, the installed onnx reads up to "),
        (lambda p: p.graph.node[1].attribute.add(name="alpha"), "malformed model: Unsupported attribute type"),
        (lambda p: setattr(p.graph.initializer[0], "data_type", 77), "unknown data type (77)"),
        (lambda p: setattr(p.graph.output[0], "name", "nothing"), "graph output 'nothing' is not computed"),
        (lambda p: p.graph.node[1].output.__setitem__(0, "a"), "malformed model: "),
    ],
)  # fmt: skip
def test_claims_that_cannot_be_are_refused(change, said):
    assert said in refusal(changed(change))


def test_text_that_is_not_utf8_is_refused():
    data = changed(lambda _: None).SerializeToString().replace(b"MatMul", b"MatMu\xe5")
    with pytest.raises(InputError, match=r"malformed model: .*utf-8"):
        read(data)


def test_flipped_bytes_never_surprise(tmp_path: Path):
    """Either a model or an InputError of one line that names the file: 300 damaged files."""
    sound, chance = changed(lambda _: None).SerializeToString(), random.Random(0)
    path, read_well = tmp_path / "flipped.onnx", 0
    for _ in range(300):
        data = bytearray(sound)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data[: chance.choice([len(data), len(data), chance.randrange(len(data))])])
        try:
            module = read(path)
        except InputError as error:
            assert "flipped.onnx" in str(error) and "\n" not in str(error)
            continue
        read_well += 1
        infer_shapes(module)
        module.to_proto()
    assert 0 < read_well < 300


# -- sparse tensors -------------------------------------------------------------------------------------------------


def sparse(dims: list[int], indices: np.ndarray, name: str = "w") -> onnx.SparseTensorProto:
    made = onnx.SparseTensorProto(dims=dims)
    made.values.CopyFrom(onh.from_array(np.array([5], np.float32), name))
    made.indices.CopyFrom(onh.from_array(indices, f"{name}_i"))
    return made


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ([sparse([1 << 40], np.array([1]))], "beyond 256 MiB when dense"),
        ([sparse([1 << 25], np.array([1]), f"w{i}") for i in range(4)], "beyond 256 MiB when dense"),
        ([sparse([1] * 65, np.array([0]))], "malformed"),
        ([sparse([2, -2], np.array([0]))], "malformed"),
        ([sparse([], np.array([0]))], "malformed"),
        ([sparse([2], np.array([2]))], "its indices do not fit its dimensions"),
        ([sparse([2], np.array([-1]))], "its indices do not fit its dimensions"),
        ([sparse([2], np.array([0.5]))], "its indices do not fit its dimensions"),
        ([sparse([2], np.array([0, 1]))], "its indices do not fit its dimensions"),
    ],
)
def test_sparse_tensors_are_bounded_and_checked(tensors: list[onnx.SparseTensorProto], said: str):
    assert said in refusal(changed(lambda proto: proto.graph.sparse_initializer.extend(tensors)))


# -- shape inference ------------------------------------------------------------------------------------------------

LONG = "1000000000"
BOMBS = {
    "a long input": f"g (float[{LONG}] x) => (float[n] y) {{ y = Add(x, x) }}",
    "a long sum in a subgraph": f"""g (float[{LONG}] x, bool c) => (float[n] y) {{
        y = If(c) <then_branch = t () => (float[n] r) {{ r = Mul(x, x) }},
                   else_branch = e () => (float[n] r) {{ r = Neg(x) }}> }}""",
    "tiles of tiles": """g (float[1] x) => (float[n] y) { c = Constant<value = float[1] {1}>()
        r = Constant<value = int64[1] {1000}>()
        a = Tile(c, r)
        b = Tile(a, r)
        d = Tile(b, r)
        e = Tile(d, r)
        y = Add(e, x) }""",
    "doubling": "g (float[1] x) => (int64[n] y) { a0 = Constant<value = int64[2] {1, 2}>()\n"
    + "\n".join(f"a{i + 1} = Concat<axis = 0>(a{i}, a{i})" for i in range(40))
    + "\n y = Identity(a40) }",
    "a range": """g (float[1] x) => (int64[n] y) { a = Constant<value = int64 {0}>()
        b = Constant<value = int64 {1000000000000}>()
        d = Constant<value = int64 {1}>()
        r = Range(a, b, d)
        y = Add(r, r) }""",
    "what is computed": """g (float[1] x) => (float[n] y) { a = Constant<value = int64[1] {100000}>()
        b = Mul(a, a)
        c = ConstantOfShape(b)
        y = Add(c, c) }""",
}


@pytest.mark.parametrize("graph", BOMBS.values(), ids=BOMBS)
def test_shape_inference_allocates_no_vector_that_a_file_only_names(graph):
    module = Module(read(parsed(graph)).model)
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert infer_shapes(module) is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10, "KiB"
    assert time.monotonic() - start < 2


SLICE = """s = Constant<value = int64[1] {0}>()
    e = Constant<value = int64[1] {99}>()
    y = Slice(q, s, e) }"""
NEGATIVE = {
    "pad": "g (float[2] x) => (float[k] y) { p = Constant<value = int64[2] {-3, -3}>()\n q = Pad(x, p)\n",
    "split": "g (float[2] x) => (float[k] y) { p = Constant<value = int64[2] {-7, 9}>()\n q, r = Split(x, p)\n",
    "top": "g (float[2] x) => (float[k] y) { p = Constant<value = int64[1] {-7}>()\n q, r = TopK(x, p)\n",
    "a pool after a slice": """g (float[1, 1, 5] x) => (float[k] y) { b = Constant<value = int64[3] {0, 0, 0}>()
    f = Constant<value = int64[3] {1, 1, 2}>()
    z = Slice(x, b, f)
    c = MaxPool<kernel_shape = [9]>(z)
    q = Squeeze(c)
""",
    "pool": "g (float[1, 1, 2] x) => (float[k] y) { c = MaxPool<kernel_shape = [9]>(x)\n q = Squeeze(c)\n",
}


def inferred_in_a_child(graph: str) -> str:
    """What `infer_shapes` says; a process of its own, because what is tested for is an abort."""
    code = (
        "import sys, onnx.parser\nfrom joulec.ir.onnx_file import read\nfrom joulec.ir.shapes import infer_shapes\n"
        "for text in sys.stdin.read().split('###'):\n"
        "    module = read(onnx.parser.parse_model(text))\n"
        "    print(infer_shapes(module), module.graph.node(-1).inputs[0].shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], input=graph, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_negative_dimensions_do_not_abort_at_a_slice():
    found = inferred_in_a_child("###".join(f"{HEADER}\n{graph}\n{SLICE}" for graph in NEGATIVE.values()))
    assert found.count("has a negative dimension") == len(NEGATIVE)
    found = inferred_in_a_child(f"{HEADER}\ng (float[-1] x) => (float[k] y) {{ q = Relu(x)\n{SLICE}")
    assert found.startswith("None "), "some exporters write -1 for any size"


STEP = """g (float[2] x) => (float[k] y) { s = Constant<value = int64[1] {0}>()
    e = Constant<value = int64[1] {9223372036854775807}>()
    q = Slice(x, s, e, s, e)
    y = Relu(q) }"""
COMPUTED_STEP = STEP.replace("q = Slice(x, s, e, s, e)", "t = Mul(e, e)\n u = Add(t, e)\n q = Slice(x, s, e, s, u)")


def test_steps_that_leave_the_numbers_do_not_end_the_process():
    """onnx's data propagation steps through a vector without a look at where int64 ends."""
    found = inferred_in_a_child("###".join(f"{HEADER}\n{graph}" for graph in (STEP, COMPUTED_STEP)))
    assert found.count("None ") == 2


IN_FUNCTIONS = {
    "doubling": "c = Constant<value = int64[2] {1, 2}>()\n"
    + "\n".join(f"a{i + 1} = Concat<axis = 0>({f'a{i}, a{i}' if i else 'c, c'})" for i in range(40))
    + "\n d = Unsqueeze(a40, z)\n",
    "a window": "c = Constant<value = int64 {100000000000}>()\n w = HannWindow(c)\n d = Unsqueeze(w, z)\n",
}


@pytest.mark.parametrize("made", IN_FUNCTIONS.values(), ids=IN_FUNCTIONS)
def test_long_vectors_inside_functions_are_not_spelled_out(made: str):
    """onnx infers the bodies of functions at each call, and says nothing of what it finds there."""
    body = f"z = Constant<value = int64[1] {{0}}>()\n {made} s = Size(d)\n t = Cast<to = 1>(s)\n b = Add(a, t)"
    module = read(parsed(CALLER, function("F0", body)))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    assert infer_shapes(module) is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10, "KiB"
    assert time.monotonic() - start < 2


def test_a_value_made_like_one_of_unknown_type_can_be_written():
    module = read(parsed("g (float[2] x) => (float[2] y) { a = Relu(x)\n y = Neg(a) }"))
    node = module.graph.node(1)
    assert node.inputs[0].type is None, "nothing was inferred yet"
    rewriter = Rewriter(module, "test")
    with rewriter.rewriting("rule", node):
        (made,) = rewriter.add("Abs", [node.inputs[0]], before=node, like=node.inputs[0])
        rewriter.set_input(node, 0, made)
    assert [n.op_type for n in module.to_proto().graph.node] == ["Relu", "Abs", "Neg"]
