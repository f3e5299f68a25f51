"""What `benchmarks/energy` runs: networks by family, each at two batch sizes and in several variants."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import networks
import onnx
import onnx_ir as ir

import joulec
from joulec.backends import backend
from joulec.data import load_feeds, synthetic_feeds
from joulec.ir.module import Module
from joulec.ir.runner import LocalRunner
from joulec.passes.base import Context, Pass
from joulec.passes.calibrate import Calibrate
from joulec.passes.pipeline import Pipeline
from joulec.passes.quantize import Quantize
from joulec.passes.quantize_dynamic import QuantizeDynamic

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "build" / "bench-energy"

FAMILIES: dict[str, tuple[Callable[..., onnx.ModelProto], ...]] = {
    "convolution": (networks.resnet18, networks.resnet50, networks.squeezenet, networks.unet),
    "depthwise": (
        networks.mobilenet_v2, networks.mobilenet_v3, networks.efficientnet, networks.shufflenet_v2, networks.convnext,
    ),
    "transformer": (networks.bert_mini, networks.minilm, networks.vit_tiny, networks.gpt_step),
    "recurrent": (networks.lstm_speech, networks.gru_keywords, networks.bilstm_tagger),
    "other": (networks.tcn, networks.recommender),
}  # fmt: skip

BATCHES = (1, 16)
RAW, EXACT, INT8, PART, THIN = "as exported", "fp32", "int8", "int8 in part", "half"
CHANGES = ((RAW, EXACT), (EXACT, INT8), (EXACT, PART), (EXACT, THIN))
"""What is timed in turns."""
HALF = 0.5
EVERY = 2
"""Of the convolutions and products, every second one stays float in `int8 in part`: a search that spends an accuracy
budget makes such models, and what they cost is decided between the operators."""

DYNAMIC = ("recurrent",)
"""Families whose int8 takes ranges at each run: recurrent operators have no other integer kernel."""


@dataclass(frozen=True)
class Run:
    """One model that is timed.

    Attributes:
        family: its family.
        network: its architecture.
        batch: its batch size.
        variant: as exported; after joulec's exact passes; quantized, in part too; or with half of the channels.
    """

    family: str
    network: str
    batch: int
    variant: str

    @property
    def name(self) -> str:
        """`resnet18 x1 int8`."""
        return f"{self.network} x{self.batch} {self.variant}"

    def module(self) -> Module:
        """The module, made once and then read from `build/bench-energy`; nodes are called k0000, k0001, ..."""
        place = MODELS / f"{self.name.replace(' ', '-')}.onnx"
        if not place.is_file():
            MODELS.mkdir(parents=True, exist_ok=True)
            made = _numbered(self._make())
            onnx.save(made, place.with_suffix(".part"))
            place.with_suffix(".part").replace(place)
        return Module(ir.load(place))

    def _make(self) -> onnx.ModelProto:
        build = next(one for one in FAMILIES[self.family] if one.__name__ == self.network)
        exported = build(self.batch, HALF) if self.variant == THIN else build(self.batch)
        if self.variant == RAW:
            return exported
        if self.variant not in (INT8, PART):
            return joulec.simplify(exported)
        floating = Run(self.family, self.network, self.batch, EXACT).module()
        return _quantized(floating, self.family in DYNAMIC, _every(floating) if self.variant == PART else ())


def changes(family: str) -> list[tuple[str, str]]:
    """The changes that are timed of a family's networks; recurrent operators are quantized all or none."""
    return [change for change in CHANGES if PART not in change or family not in DYNAMIC]


def _every(floating: Module) -> tuple[str, ...]:
    """The names of those that stay float."""
    dense = [node.name or "" for node in floating.graph if node.op_type in ("Conv", "Gemm", "MatMul")]
    return tuple(dense[::EVERY])


def _quantized(floating: Module, dynamic: bool, keep_float: tuple[str, ...]) -> onnx.ModelProto:
    feeds = load_feeds(synthetic_feeds(floating.inputs(), {}).head(1), floating.inputs())
    static: list[Pass] = [Calibrate(method="minmax"), Quantize(keep_float=keep_float)]
    steps: list[Pass] = [QuantizeDynamic()] if dynamic else static
    with LocalRunner() as runner:
        outcome = Pipeline(steps).run(floating, Context(backend("cpu").target, feeds=feeds, runner=runner))
    if not outcome.steps[-1].result.changed:
        raise RuntimeError(f"{floating.graph.name} was not quantized: {outcome.steps[-1]}")
    return outcome.module.to_proto()


_NUMBER = re.compile(r"k\d{4}")


def _numbered(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every node gets a name that ONNX Runtime's fusions keep a trace of."""
    for index, node in enumerate(model.graph.node):
        node.name = f"k{index:04d}"
    return model


def number_in(text: str) -> str | None:
    """The first node's name inside the name of a fused node."""
    found = _NUMBER.search(text)
    return found[0] if found else None
