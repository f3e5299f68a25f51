"""The passes that quantize, for whoever chooses among them."""

from __future__ import annotations

from collections.abc import Mapping

from joulec.passes.base import Pass
from joulec.passes.clip_weights import ClipWeights
from joulec.passes.quantize import Quantize
from joulec.passes.quantize_dynamic import QuantizeDynamic
from joulec.passes.quantize_weights import QuantizeWeights
from joulec.passes.round_weights import RoundWeights

QUANTIZERS: Mapping[str, type[Pass]] = {
    kind.pass_name(): kind for kind in (Quantize, QuantizeDynamic, QuantizeWeights)
}  # fmt: skip
"""Pass name -> class. Each has the options `keep_float` and `only`."""

REFINEMENTS: Mapping[str, type[ClipWeights] | type[RoundWeights]] = {
    ClipWeights.pass_name(): ClipWeights, RoundWeights.pass_name(): RoundWeights,
}  # fmt: skip
"""Those that joulec puts before quantization by itself, where it would cost too much accuracy without."""


def quantizes(one: Pass) -> bool:
    """Whether `one` quantizes."""
    return isinstance(one, tuple(QUANTIZERS.values()))
