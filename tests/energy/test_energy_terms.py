"""What a kernel's time is a sum of, against counts made by hand."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulec.energy import EnergyModel, load_profile
from joulec.energy.terms import UNITS, _spans
from joulec.energy.terms_dense import Product, Window, product_terms
from joulec.ir.module import Module

MODEL = EnergyModel(load_profile().with_cores(1))
HEAD = '<ir_version: 9, opset_import: ["": 17, "com.microsoft": 1]> g '


def features(text: str) -> dict[str, dict[str, float]]:
    found = MODEL.estimate(Module(ir.from_onnx_text(HEAD + text)))
    assert found.unknown == () and found.assumed == ()
    return {family: dict(amounts) for family, amounts in found.features.items()}


def weight(shape: str, name: str = "w") -> str:
    return f"s_{name} = Constant<value_ints=[{shape}]>() {name} = ConstantOfShape(s_{name}) "


def test_a_product_counts_whole_vectors_and_tiles() -> None:
    """25 rows are 3 tiles of 12; 20 columns 2 vectors of 16; a depth of 300 two passes of 256."""
    assert product_terms(Product(1, 25, 20, 300)) == {
        "flop": 2 * 25 * 32 * 300, "load": 32 * 300 * 3, "store": 25 * 32 * 2, "pack": 0, "call": 1,
    }  # fmt: skip
    assert product_terms(Product(2, 3, 16, 8, packed=False))["pack"] == 2 * 8 * 16
    assert product_terms(Product(2, 1, 16, 8, packed=False))["pack"] == 0, "a vector reads the matrix where it lies"


def test_a_constant_matrix_is_packed_at_load_and_another_in_every_run() -> None:
    assert features(f"(float[8,16] x) => (float[8,32] y) {{ {weight('16,32')} y = MatMul(x, w) }}")["matmul"]["pack"] == 0
    given = features("(float[8,16] x, float[16,32] w) => (float[8,32] y) { y = MatMul(x, w) }")
    assert given["matmul"]["pack"] == 16 * 32


def test_a_convolution_counts_blocks_of_channels() -> None:
    """20 channels in and 40 out are 2 and 3 blocks; 7 pixels across are 2 tiles of 6."""
    text = f"(float[1,20,7,7] x) => (float[1,40,7,7] y) {{ {weight('40,20,3,3')} y = Conv<pads=[1,1,1,1]>(x, w) }}"
    found = features(text)
    assert found["conv"]["flop"] == 2 * 49 * 48 * 32 * 9
    assert found["conv"]["load"] == 7 * 2 * 48 * 32 * 9
    assert found["conv"]["store"] == 49 * 48 * 2
    assert found["reorder"] == {"byte": 4 * (20 + 40) * 49, "launch": 2}


def test_convolutions_hand_each_other_blocks() -> None:
    text = (
        f"(float[1,16,8,8] x) => (float[1,16,8,8] y) {{ {weight('16,16,3,3')} a = Conv<pads=[1,1,1,1]>(x, w) "
        "b = Relu(a) c = Conv<pads=[1,1,1,1]>(b, w) y = Relu(c) }"
    )
    assert features(text)["reorder"]["launch"] == 2, "in at the first, out at the last, nothing between"


@pytest.mark.parametrize(
    ("shape", "kernel", "group", "family"),
    [
        ("1,3,8,8", "16,3,3,3", 1, "conv-narrow"), ("1,32,8,8", "32,1,3,3", 32, "conv-depthwise"),
        ("1,32,8,8", "16,32,1,1", 1, "conv-1x1"), ("1,32,8", "16,32,3", 1, "conv-gathered"),
        ("1,18,8,8", "16,18,3,3", 1, "conv-gathered"), ("1,32,8,8", "32,8,3,3", 4, "conv-gathered"),
        ("1,32,8,8", "32,16,3,3", 2, "conv"),
    ],
)  # fmt: skip
def test_families_of_convolutions(shape: str, kernel: str, group: int, family: str) -> None:
    rank = len(shape.split(",")) - 2
    pads = ",".join(["1" if "3" in kernel.split(",")[-1] else "0"] * 2 * rank)
    body = f"{weight(kernel)} c = Conv<pads=[{pads}], group={group}>(x, w) y = Identity(c)"
    dims = [shape.split(",")[0], kernel.split(",")[0], *shape.split(",")[2:]]
    assert family in features(f"(float[{shape}] x) => (float[{','.join(dims)}] y) {{ {body} }}")


def test_spans_of_broadcasting() -> None:
    assert _spans((4, 12, 64, 64), [(4, 12, 64, 64), (4, 1, 1, 64)]) == 4 * 12 * 64
    assert _spans((1, 64, 56, 56), [(1, 64, 56, 56), (1, 64, 1, 1)]) == 64
    assert _spans((8, 128), [(8, 128), (128,)]) == 8


@settings(max_examples=60, deadline=None)
@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=4), keep=st.lists(st.booleans(), min_size=4, max_size=4))
def test_spans_times_their_length_are_all_numbers(shape: list[int], keep: list[bool]) -> None:
    other = tuple(size if kept else 1 for size, kept in zip(shape, keep, strict=False))
    count = 1
    for size in shape:
        count *= size
    spans = _spans(tuple(shape), [tuple(shape), other])
    assert 1 <= spans <= count and count % spans == 0


def test_a_transpose_moves_pieces() -> None:
    found = features("(float[2,3,4,5] x) => (float[2,4,3,5] y) { y = Transpose<perm=[0,2,1,3]>(x) }")
    assert found["transpose"]["span"] == 2 * 3 * 4


def test_every_term_has_a_unit() -> None:
    texts = ("(float[2,3] x) => (float[2,3] y) { y = Relu(x) }", "(float[2,3] x) => (float[2,3] y) { y = Softmax(x) }")
    for text in texts:
        assert {name for amounts in features(text).values() for name in amounts} <= set(UNITS)


def test_a_window_of_one_tap_and_no_stride_is_a_row_of_pixels() -> None:
    assert Window(1, 1, 16, 16, 1, 7, 7, unit=True).pixels == 49
