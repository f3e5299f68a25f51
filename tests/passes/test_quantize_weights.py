"""quantize-weights: weights of few bits in ONNX Runtime's own form, and embeddings."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import int8_kit as kit
import numpy as np
import pytest

from joulec.ir.module import Module
from joulec.ir.shapes import infer_shapes
from joulec.ir.verify import Verifier
from joulec.passes.base import PassResult
from joulec.passes.quantize_weights import QuantizeWeights, blocked

HEAD = """g (int64[N,3] i) => (float[N,3,56] y) {
  e = Gather(table, i)  h = MatMul(e, w)  z = Add(h, b)  y = MatMul(z, v)
}"""


def head(width: int = 72) -> Module:
    return kit.build(HEAD, kit.random(table=(100, width), w=(width, 80), b=(80,), v=(80, 56)))


def made_from(module: Module, **options: Any) -> tuple[Module, PassResult]:
    made = module.clone()
    verifier = Verifier(made)
    result = QuantizeWeights(**options).run(made, kit.context([]))
    assert infer_shapes(made) is None
    verifier.verify(made)
    return made, result


DATA = [{"i": np.array([[1, 7, 99]])}, {"i": np.array([[0, 0, 5], [3, 2, 1]])}]


@pytest.mark.parametrize(("bits", "arithmetic", "error"), [(8, "float", 0.01), (8, "int8", 0.02), (4, "int8", 0.16)])
@pytest.mark.parametrize("block", [16, 32, 64])
def test_numbers_stay_close(bits: int, arithmetic: str, block: int, error: float, tmp_path: Path) -> None:
    made, result = made_from(head(), bits=bits, block=block, arithmetic=arithmetic, only=("MatMul",))
    assert kit.ops(made) == Counter(Gather=1, MatMulNBits=2, Add=1)
    assert kit.relative_error(head(), made, DATA) < error
    assert result.notes[0].startswith(f"weights of {bits} bits: 2 MatMul; 40,960 bytes became ")


def test_an_embedding_is_stored_by_rows() -> None:
    made, result = made_from(head(), only=("Gather",))
    assert kit.ops(made) == Counter(Gather=2, Cast=1, Mul=1, MatMul=2, Add=1)
    assert made.graph.initializers["table_quantized"].dtype == kit.ir.DataType.INT8
    assert "table" not in made.graph.initializers
    assert kit.relative_error(head(), made, DATA) < 0.01
    assert result.notes[0] == "weights of 8 bits: 1 Gather; 28,800 bytes became 7,600"


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_keeps_bias_and_factor(transposed: int) -> None:
    weights = kit.random(w=(70, 96) if transposed else (96, 70), b=(70,))
    module = kit.build(
        f"g (float[N,96] x) => (float[N,70] y) {{ y = Gemm<transB={transposed}, alpha=2.0>(x, w, b) }}", weights
    )
    made, _ = made_from(module)
    assert kit.relative_error(module, made, kit.feeds(2, x=(3, 96))) < 0.02


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [32, 33, 64, 7])
def test_blocks_restore_what_they_were_made_from(bits: int, rows: int) -> None:
    columns = kit.random(w=(rows, 5))["w"]
    packed, scales, restored = blocked(columns, bits, 32)
    blocks = -(-rows // 32)
    assert packed.shape == (5, blocks, 32 * bits // 8) and scales.shape == (5, blocks)
    assert restored.shape == columns.shape
    largest = (1 << (bits - 1)) - 1
    assert np.max(np.abs(restored - columns)) <= np.max(np.abs(columns)) / largest * (0.51 if bits == 8 else 4)
    low = packed & 15 if bits == 4 else packed
    first = (low[:, 0, 0].astype(int) - (1 << (bits - 1))) * scales[:, 0]
    np.testing.assert_allclose(first, restored[0])


def test_scales_of_four_bits_err_less_than_the_largest_number_would() -> None:
    columns = np.random.default_rng(0).standard_t(3, size=(256, 16)).astype(np.float32)
    _, _, restored = blocked(columns, 4, 64)
    cells = columns.T.reshape(16, 4, 64)
    scale = np.abs(cells).max(axis=-1, keepdims=True) / 7
    plain = (np.rint(cells / scale) * scale).reshape(16, 256).T
    assert np.mean((restored - columns) ** 2) < 0.9 * np.mean((plain - columns) ** 2)


def test_small_weights_and_other_targets_stay(tmp_path: Path) -> None:
    module = kit.build("g (float[3,8] x) => (float[3,8] y) { y = MatMul(x, w) }", kit.random(w=(8, 8)))
    _, result = made_from(module)
    assert list(kit.reasons(result).values()) == ["its weight has fewer than 4096 numbers"]
    assert QuantizeWeights().run(head(), kit.context([], kit.TENSORRT)).notes == (
        "nothing to quantize: tensorrt has no kernel for it",
    )
    _, result = made_from(head(), keep_float=("y",))
    assert kit.reasons(result)["matmul3"] == "kept float by keep-float=y"


@pytest.mark.parametrize("options", [{"bits": 3}, {"block": 20}])
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        QuantizeWeights(**options)
