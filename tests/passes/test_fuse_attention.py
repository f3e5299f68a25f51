"""fuse-attention: two products around a Softmax become MultiHeadAttention, heads side by side on both sides."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from fusion_kit import build, fuse, numbers, ops, unchanged

from joulec.backends import backend
from joulec.ir.kernel_table import kernel_table
from joulec.ir.module import Module
from joulec.passes._half_places import Places, places
from joulec.passes.eliminate_dead_code import EliminateDeadCode
from joulec.passes.fuse_attention import FuseAttention

THREE = "(float[B,T,2,4] q, float[B,S,2,4] k, float[B,S,2,4] v) => (float[B,T,2,4] y)"
EINSUM = 's = Einsum<equation="btnh,bsnh->bnts">(q, k) {} y = Einsum<equation="bnts,bsnh->btnh">(p, v)'
SCALED = "c = Mul(s, quarter) p = Softmax<axis=-1>(c)"
MATMUL = (
    "qt = Transpose<perm=[0,2,1,3]>(q) kt = Transpose<perm=[0,2,3,1]>(k) vt = Transpose<perm=[0,2,1,3]>(v) "
    "s = MatMul(qt, kt) {} z = MatMul(p, vt) y = Transpose<perm=[0,2,1,3]>(z)"
)
QUARTER = {"quarter": np.float32(0.25)}


def attention(module: Module) -> ir.Node:
    (found,) = [node for node in module.graph if node.op_type == "MultiHeadAttention"]
    return found


@pytest.mark.parametrize("spelled", [EINSUM, MATMUL], ids=["einsum", "matmul"])
@pytest.mark.parametrize(
    ("between", "constants", "scale"),
    [
        (SCALED, QUARTER, 0.25),
        ("p = Softmax(s)", {}, 1.0),
        (
            "c = Div(s, two) d = Mul(half, c) p = Softmax<axis=3>(d)",
            {"two": np.float32(2), "half": np.float32(0.5)},
            0.25,
        ),
    ],
)
def test_both_spellings_with_any_scale(spelled: str, between: str, constants: dict, scale: float) -> None:
    module = build(f"{THREE} {{ {spelled.format(between)} }}", **constants)
    fuse(module, FuseAttention())
    node = attention(module)
    assert (node.attributes["num_heads"].value, node.attributes["scale"].value) == (2, scale)
    assert ops(module)[-5:] == ["Reshape", "Reshape", "Reshape", "MultiHeadAttention", "Reshape"]


def test_what_is_added_to_the_scores_is_added_inside() -> None:
    graph = THREE.replace("float[B,S,2,4] v", "float[B,S,2,4] v, float[B,1,T,S] m")
    module = build(f"{graph} {{ {EINSUM.format('c = Mul(s, quarter) a = Add(c, m) p = Softmax(a)')} }}", **QUARTER)
    fuse(module, FuseAttention())
    assert attention(module).inputs[5] is module.graph.inputs[3]


@pytest.mark.parametrize("shape", [(2, 4), (1, 1, 2, 4)])
def test_heads_are_not_split_where_they_need_not_be(shape: tuple[int, ...]) -> None:
    """Keras splits heads, adds a bias and scales; all of that is done on what was not split."""
    projected = "q3 = MatMul(x, w) q4 = Reshape(q3, heads) qb = Add(q4, b) q = Mul(qb, quarter)"
    read = "k4 = Reshape(x, heads) " + projected
    body = (
        f'{read} s = Einsum<equation="btnh,bsnh->bnts">(q, k4) p = Softmax(s) '
        'z = Einsum<equation="bnts,bsnh->btnh">(p, k4) y = Reshape(z, joined)'
    )
    module = build(
        f"(float[B,3,8] x) => (float[B,3,8] y) {{ {body} }}", w=numbers(8, 8), b=numbers(8).reshape(shape),
        heads=np.array([-1, 3, 2, 4]), joined=np.array([0, 0, 8]), **QUARTER,
    )  # fmt: skip
    fuse(module, FuseAttention())
    fuse(module, EliminateDeadCode())
    assert ops(module) == ["MatMul", "Add", "Mul", "MultiHeadAttention"]
    node = attention(module)
    assert node.inputs[1] is node.inputs[2] is module.graph.inputs[0]
    assert node.outputs[0].is_graph_output()


@pytest.mark.parametrize(
    ("graph", "constants", "reasons"),
    [
        (
            "(float[B,2,T,4] q, float[B,2,S,4] k, float[B,2,S,4] v) => (float[B,2,T,4] y) "
            '{ s = Einsum<equation="bnth,bnsh->bnts">(q, k) p = Softmax(s) y = MatMul(p, v) }',
            {},
            {"heads are not side by side: Transposes would come to it"},
        ),
        (
            THREE.replace("=> (float[B,T,2,4] y)", "=> (float[B,2,T,4] y)")
            + f" {{ {MATMUL.partition(' y = ')[0].replace('z =', 'y =').format('p = Softmax(s)')} }}",
            {},
            {"heads are not side by side behind it: a Transpose would come to it"},
        ),
        (THREE.replace("2,4", "N,H") + f" {{ {EINSUM.format('p = Softmax(s)')} }}", {}, {
            "the number of heads or their size is not known"
        }),
        (f"{THREE} {{ {EINSUM.format('a = Add(s, one) p = Softmax(a)')} }}", {"one": np.float32(1)}, {
            "what is added to the scores has not their shape"
        }),
        (f"{THREE} {{ {EINSUM.format('p = Softmax<axis=2>(s)')} }}", {}, set()),
        (f"{THREE} {{ {EINSUM.format('c = Relu(s) p = Softmax(c)')} }}", {}, set()),
        (f"{THREE} {{ {EINSUM.format('c = Div(s, zero) p = Softmax(c)')} }}", {"zero": np.float32(0)}, set()),
        (THREE.replace(" y)", " y, float[B,2,T,S] p)") + f" {{ {EINSUM.format('p = Softmax(s)')} }}", {}, set()),
        (THREE.replace("float", "double") + f" {{ {EINSUM.format('p = Softmax(s)')} }}", {}, {
            "no cpu kernel for com.microsoft:MultiHeadAttention of opset 1 with double"
        }),
        ("(float[2,3,4,5] x) => (float[2,3,4,5] y) { y = Softmax(x) }", {}, set()),
    ],
)  # fmt: skip
def test_what_stays(graph: str, constants: dict[str, np.ndarray], reasons: set[str]) -> None:
    assert unchanged(build(graph, **constants), FuseAttention()) == reasons


def test_cuda_artefacts_have_it_and_no_others() -> None:
    """On the CPU it is slower than the products, and TensorRT has no such operator."""
    found = {name: FuseAttention() in backend(name).fitting() for name in ("cpu", "cuda", "tensorrt")}
    assert found == {"cpu": False, "cuda": True, "tensorrt": False}


def test_it_computes_in_16_bits_too() -> None:
    module = build(f"{THREE} {{ {EINSUM.format('p = Softmax(s)')} }}")
    fuse(module, FuseAttention())
    imports = {"": 19, "com.microsoft": 1}
    assert places(attention(module), imports, kernel_table("cuda"), "float16") == Places((0, 1, 2), (0,))
