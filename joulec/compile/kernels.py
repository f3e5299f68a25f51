"""Seconds per block, from ONNX Runtime's own profile of a float module and of the same module quantized."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from joulec.ir.values import sole_consumer
from joulec.passes.blocks import Block

_SUFFIX = re.compile(r"(_token_\d+|_nchwc|_nhwc|_hardsigmoid|/\w*Fusion\w*)$")
"""What ONNX Runtime appends to a name when it fuses a node or lays it out anew."""

FUSED = 4
"""How many nodes behind a block are asked for its kernel: a fused kernel has the name of the last that it takes in."""


class Kernels:
    """The kernels of one profile, found by the nodes and values that they come from.

    Args:
        profile: seconds by kernel name, as `Runner.profile` gives them.
    """

    def __init__(self, profile: Mapping[str, float]) -> None:
        self.total = sum(profile.values())
        self._seconds: dict[str, float] = {}
        for name, seconds in profile.items():
            for stem in _stems(name):
                self._seconds.setdefault(stem, 0.0)
                self._seconds[stem] = max(self._seconds[stem], seconds)

    def seconds(self, *names: str | None) -> float | None:
        """The seconds of the kernel that has one of these names, or None."""
        return next((self._seconds[name] for name in names if name and name in self._seconds), None)

    def of_blocks(self, blocks: Sequence[Block]) -> list[float]:
        """Seconds of each block; 0 for one whose kernel another took in."""
        taken: set[str] = set()
        return [self._of(block, taken) for block in blocks]

    def _of(self, block: Block, taken: set[str]) -> float:
        for name in _names(block):
            if name in self._seconds and name not in taken:
                taken.add(name)
                return self._seconds[name]
        return 0.0


def _stems(name: str) -> Iterator[str]:
    yield name
    while (shorter := _SUFFIX.sub("", name)) != name:
        name = shorter
        yield name


def _names(block: Block) -> Iterator[str]:
    """Names that the kernel of a block may have, the likeliest first."""
    nodes = [block.node, *block.tail]
    for node in nodes:
        yield from filter(None, (node.name, *(value.name for value in node.outputs)))
    if block.kind != "compute":
        return
    following: ir.Node | None = sole_consumer(nodes[-1].outputs[0])
    for _ in range(FUSED):
        if following is None:
            return
        yield from filter(None, (following.name, *(value.name for value in following.outputs)))
        following = sole_consumer(following.outputs[0]) if len(following.outputs) == 1 else None
