"""What `benchmarks/energy` runs: networks by family, each at two batch sizes and in several variants."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
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
RAW, EXACT, INT8, THIN = "as exported", "fp32", "int8", "half"
VARIANTS = (RAW, EXACT, INT8, THIN)
HALF = 0.5

DYNAMIC = ("recurrent",)
"""Families whose int8 takes ranges at each run: recurrent operators have no other integer kernel."""


@dataclass(frozen=True)
class Run:
    """One model that is timed.

    Attributes:
        family: its family.
        network: its architecture.
        batch: its batch size.
        variant: as exported; after joulec's exact passes; quantized; or with half of the channels.
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
        if self.variant != INT8:
            return joulec.simplify(exported)
        return _quantized(Run(self.family, self.network, self.batch, EXACT).module(), self.family in DYNAMIC)


def runs() -> Iterator[Run]:
    """Every run, network by network."""
    for family, builders in FAMILIES.items():
        for build in builders:
            for batch in BATCHES:
                for variant in VARIANTS:
                    yield Run(family, build.__name__, batch, variant)


def _quantized(floating: Module, dynamic: bool) -> onnx.ModelProto:
    feeds = load_feeds(synthetic_feeds(floating.inputs(), {}).head(1), floating.inputs())
    steps: list[Pass] = [QuantizeDynamic()] if dynamic else [Calibrate(method="minmax"), Quantize()]
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
