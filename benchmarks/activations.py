"""Which activations are faster in another form: what `expand-activations` and `cheapen-activations` earn on this CPU.

    python benchmarks/activations.py             (two minutes; writes docs/activations.md)
    python benchmarks/activations.py --no-write

Each activation stands behind a 1 x 1 convolution of 64 channels of 56 x 56, and behind a matrix product of 128 rows and
1,024 columns: so it is seen with what ONNX Runtime fuses around it. Both forms run in turns, one thread, batch 1.
`share` is what is left of the activation's own time: that of the same model without any activation is taken off both.
The deviation is the largest over 4,000,000 numbers between -20 and 20.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx.parser
import onnx_ir as ir

from joulec.backends import backend
from joulec.ir.module import Module
from joulec.ir.runner import LocalRunner
from joulec.ir.shapes import infer_shapes
from joulec.key import cpu, versions
from joulec.passes.base import Context, Pass
from joulec.passes.cheapen_activations import CheapenActivations
from joulec.passes.expand_activations import ExpandActivations
from joulec.payoff import Paired, time_pair

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "activations.md"
CPU = backend("cpu")
EXPAND = ExpandActivations()

TRIED: tuple[tuple[str, str, Pass], ...] = (
    ("Elu", "y = Elu(h)", EXPAND), ("Celu, alpha 2", "y = Celu<alpha: float = 2.0>(h)", EXPAND),
    ("Selu", "y = Selu(h)", EXPAND), ("Softplus", "y = Softplus(h)", EXPAND), ("Mish", "y = Mish(h)", EXPAND),
    ("PRelu, one slope", "y = PRelu(h, slope)", EXPAND), ("PRelu, a slope each", "y = PRelu(h, slopes)", EXPAND),
    ("Gelu with erf → tanh", "y = Gelu(h)", CheapenActivations(kinds=("gelu",))),
    ("Sigmoid → HardSigmoid", "s = Sigmoid(h) y = Neg(s)", CheapenActivations(kinds=("sigmoid",))),
    ("Swish → HardSwish", "s = Sigmoid(h) y = Mul(h, s)", CheapenActivations(kinds=("swish",))),
    ("ReLU6 → Relu", "y = Clip(h, zero, six)", CheapenActivations(kinds=("relu6",))),
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """What stands before the activation.

    Attributes:
        name: how the table calls it.
        text: computes `h` from `x`.
        shapes: of x, y, the weight and one slope a channel.
    """

    name: str
    text: str
    shapes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]

    def module(self, activation: str) -> Module:
        """The model, its numbers seeded."""
        random = np.random.default_rng(0)
        x, y, weight, slopes = self.shapes
        head = f"g (float[{','.join(map(str, x))}] x) => (float[{','.join(map(str, y))}] y)"
        proto = onnx.parser.parse_model(
            f'<ir_version: 9, opset_import: ["": 20]>\n{head} {{ {self.text} {activation} }}'
        )
        held = {
            "weight": random.standard_normal(weight) / 8, "slope": np.full(1, 0.1),
            "slopes": random.random(slopes) * 0.5, "zero": np.array(0.0), "six": np.array(6.0),
        }  # fmt: skip
        used = {value for node in proto.graph.node for value in node.input}
        kept = [onnx.numpy_helper.from_array(array.astype("f"), name) for name, array in held.items() if name in used]
        proto.graph.initializer.extend(kept)
        module = Module(ir.from_proto(proto))
        infer_shapes(module)
        return module

    def feed(self) -> dict[str, np.ndarray]:
        """Seeded numbers."""
        return {"x": np.random.default_rng(1).standard_normal(self.shapes[0]).astype("f")}


SETTINGS = (
    Setting("Conv", "h = Conv(x, weight)", ((1, 64, 56, 56), (1, 64, 56, 56), (64, 64, 1, 1), (64, 1, 1))),
    Setting("MatMul", "h = MatMul(x, weight)", ((128, 64), (128, 1024), (64, 1024), (1024,))),
)


def changed(module: Module, one: Pass) -> Module:
    """A copy of the model after the pass."""
    copy = module.clone()
    if not one.run(copy, Context(target=CPU.target)).changed:
        raise RuntimeError(f"{one} changes nothing")
    return copy


LEAST = 0.1
"""Activations that take less than this of their model's time have no share of their own that could be told."""


def measured(runner: LocalRunner, setting: Setting, activation: str, one: Pass) -> tuple[Paired, str]:
    """Both forms in turns, and the share of the activation's own time that is left."""
    options, feed = CPU.settings(1).options(), setting.feed()
    before = setting.module(activation)
    after = changed(before, one)
    paired = time_pair(runner, before, after, feed, options)
    bare = setting.module("y = Neg(h)" if "Neg" in activation else "y = Identity(h)")
    against = time_pair(runner, bare, before, feed, options)
    own = paired.base_ms - against.base_ms
    told = own > LEAST * paired.base_ms
    return paired, f"{(paired.candidate_ms - against.base_ms) / own:.0%}" if told else "—"


def deviation(runner: LocalRunner, activation: str, one: Pass) -> float:
    """How far both forms are apart at most."""
    rows = Setting("", "h = Identity(x)", ((1000, 4000), (1000, 4000), (1,), (4000,)))
    before = rows.module(activation)
    feed = {"x": np.linspace(-20, 20, 4_000_000, dtype="f").reshape(1000, 4000)}
    results = [runner.run(runner.load(module), feed)["y"] for module in (before, changed(before, one))]
    return float(np.abs(results[0] - results[1]).max())


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-write", action="store_true", help="leave the page as it is")
    given = parser.parse_args(arguments)
    rows = [
        "| activation | deviation | behind Conv | share | behind MatMul | share |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    with LocalRunner() as runner:
        for name, activation, one in TRIED:
            cells = [f"{deviation(runner, activation, one):.2g}"]
            for setting in SETTINGS:
                paired, left = measured(runner, setting, activation, one)
                cells += [str(paired), left]
            rows.append(f"| {name} | {' | '.join(cells)} |")
            print(rows[-1], flush=True)
    if not given.no_write:
        PAGE.write_text(page(rows), encoding="utf-8")


def page(rows: Sequence[str]) -> str:
    """The table, with what it was measured on."""
    machine = cpu()
    numbered = ", ".join(f"{name} {version}" for name, version in versions().items() if version)
    return "\n\n".join([
        "# Activations in other forms",
        "Written by `python benchmarks/activations.py`, which says what is measured and how.",
        f"{machine['model']}, {machine['cores']} cores; {numbered}.",
        "The whole small model's speed in the other form against the one it came in, with the 95 % interval; above 1 "
        "is faster. `share` is what is left of the activation's own time. `optimize` measures the same on the model at "
        "hand, and keeps only what is faster there.",
        "\n".join(rows),
        "The first seven are `expand-activations`, exact up to rounding; the others are `cheapen-activations`, which "
        "spends accuracy. Swish stays where ONNX Runtime computes it in one kernel and HardSwish in two.",
    ]) + "\n"  # fmt: skip


if __name__ == "__main__":
    main()
