"""The passes that quantize, for whoever chooses among them."""

from __future__ import annotations

from collections.abc import Mapping

from joulec.passes.base import Pass
from joulec.passes.quantize import Quantize
from joulec.passes.quantize_dynamic import QuantizeDynamic
from joulec.passes.quantize_weights import QuantizeWeights

QUANTIZERS: Mapping[str, type[Pass]] = {
    kind.pass_name(): kind for kind in (Quantize, QuantizeDynamic, QuantizeWeights)
}  # fmt: skip
"""Pass name -> class. Each has the options `keep_float` and `only`."""


def quantizes(one: Pass) -> bool:
    """Whether `one` quantizes."""
    return isinstance(one, tuple(QUANTIZERS.values()))
