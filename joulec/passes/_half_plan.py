"""Which nodes compute in 16-bit floats: those that may, less those for which it costs more in casts than it saves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from joulec.energy import EnergyModel, load_profile
from joulec.ir import walk
from joulec.ir.halves import Crossing, cheapest
from joulec.ir.kernel_table import kernel_table
from joulec.ir.module import Module
from joulec.ir.values import bound_shape, constant, constant_tensor
from joulec.passes._half_numbers import DIVISORS, Half, Magnitude, is_tiny, magnitudes, masks, spoiled
from joulec.passes._half_places import Places, places
from joulec.passes._patterns import first_match
from joulec.passes._qdq_graph import is_dequantize, is_quantize
from joulec.passes.base import Context

SAVED = 0.5
"""Share of a kernel's energy, its launch left out, that half the bytes and narrower arithmetic save: an estimate."""

CAST_BYTES = 6
"""Bytes that a cast between 32 and 16 bits reads and writes for each number."""


@dataclass
class Plan:
    """The choice for one module.

    Attributes:
        places: node (by id) -> what changes its type; every node that may.
        pinned: node (by id) -> why it stays float32.
        chosen: ids of the nodes that compute in 16 bits.
        clamped: names of stored masks whose numbers saturate.
    """

    module: Module
    context: Context
    half: Half
    keep: tuple[str, ...]
    samples: int
    places: dict[int, Places] = field(default_factory=dict)
    pinned: dict[int, str] = field(default_factory=dict)
    chosen: set[int] = field(default_factory=set)
    clamped: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.nodes = [node for node in self.module.graph if not walk.is_onnx(node, "Constant")]
        self._masks = {id(value) for value in masks(self.module.graph)}
        self._name_what_may()
        self._look_at_numbers()
        self._costs = Costs(self.module, self.context)
        self.cut()

    @property
    def candidates(self) -> list[ir.Node]:
        """The nodes that compute in 16 bits, in graph order."""
        return [node for node in self.nodes if id(node) in self.chosen]

    def pin(self, node: ir.Node, reason: str) -> None:
        """Keep a node in float32."""
        self.pinned.setdefault(id(node), reason)

    # -- what may -------------------------------------------------------------------------------------------

    def _name_what_may(self) -> None:
        table, imports = kernel_table(self.context.target.name), self.module.model.opset_imports
        for node in self.nodes:
            found = places(node, imports, table, self.half.name)
            if isinstance(found, Places):
                self.places[id(node)] = found
            elif found is not None:
                self.pin(node, found)
            if (pattern := first_match(node, self.keep)) is not None:
                self.pin(node, f"keep-float={pattern}")

    def _look_at_numbers(self) -> None:
        free = [node for node in self.nodes if id(node) in self.places and id(node) not in self.pinned]
        stored = {id(v): self._stored(v) for node in free for _, v in self._floats(node) if constant_tensor(v)}
        for node in free:
            problem = next((p for _, v in self._floats(node) if (p := stored.get(id(v))) is not None), None)
            if problem is not None:
                self.pin(node, problem)
        free = [node for node in free if id(node) not in self.pinned]
        made = {id(v): v for node in free for _, v in self._floats(node) if id(v) not in stored and v.name}
        seen = magnitudes(self.module, self.context, list(made.values()), self.samples)
        for node in free:
            if (reason := self._too_wide(node, seen)) is not None:
                self.pin(node, reason)

    def _floats(self, node: ir.Node) -> Iterator[tuple[int, ir.Value]]:
        """(Input position, or -1) and value of everything that would be 16 bits wide."""
        found = self.places[id(node)]
        for index in found.inputs:
            if (value := node.inputs[index]) is not None:
                yield index, value
        yield from ((-1, node.outputs[index]) for index in found.outputs)

    def _stored(self, value: ir.Value) -> str | None:
        numbers = constant(value)
        if numbers is None:
            return None
        if id(value) in self._masks and np.any(numbers < -self.half.largest):
            self.clamped.add(value.name or "")
            numbers = np.maximum(numbers, -self.half.largest)
        return self.half.spoiled(numbers)

    def _too_wide(self, node: ir.Node, seen: Mapping[str, Magnitude]) -> str | None:
        divisors = DIVISORS.get(node.op_type, ()) if walk.is_onnx(node) else ()
        for index, value in self._floats(node):
            one = seen.get(value.name or "")
            if one is None:
                continue
            if (reason := spoiled(one, self.half, mask=id(value) in self._masks)) is not None:
                return f"'{value.name}': {reason}"
            if index in divisors and is_tiny(one, self.half):
                return f"'{value.name}': numbers down to {one.smallest:.3g} are lost in {self.half.name}"
        return None

    # -- what pays ------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Choose again, after something was pinned. What callers feed and fetch stays float32 whatever is chosen."""
        number = {id(node): index for index, node in enumerate(self.nodes)}
        may = [id(node) in self.places and id(node) not in self.pinned for node in self.nodes]
        touched = [id(node) in self.places or id(node) in self.pinned for node in self.nodes]
        gain = [self._costs.gain(node) if ok else 0.0 for node, ok in zip(self.nodes, may, strict=True)]
        on_half = [0.0 if ok else math.inf for ok in may]
        sides = cheapest(gain, on_half, list(self._crossings(number, touched)))
        self.chosen = {id(node) for node, side, ok in zip(self.nodes, sides, may, strict=True) if side and ok}

    def _crossings(self, number: Mapping[int, int], touched: list[bool]) -> Iterator[Crossing]:
        """Every value between two nodes. None is cast behind a DequantizeLinear, which kernels take in, and none of
        the two of a pair is narrow alone: they share a scale.
        """
        for index, node in enumerate(self.nodes):
            if not touched[index]:
                continue
            for value in node.outputs:
                readers = (number.get(id(use.node)) for use in value.uses())
                known = tuple(dict.fromkeys(one for one in readers if one is not None))
                if known and (value.dtype == ir.DataType.FLOAT or is_quantize(node)):
                    price = math.inf if is_dequantize(node) or is_quantize(node) else self._costs.cast(value)
                    yield Crossing(index, known, price, price)


class Costs:
    """What 16 bits save and what casts cost, in joules, by the energy model."""

    def __init__(self, module: Module, context: Context) -> None:
        model = context.energy or EnergyModel(load_profile(context.target.device), context.target.name)
        profile = model.profile
        self._bindings = {name: size for name, size in context.bindings.items() if isinstance(size, int)}
        self._launch = profile.launch["energy"].value + profile.power["static"].value * profile.launch["time"].value
        self._byte = profile.memory["cache_energy"].value * 1e-12
        self._joules = {one.name: one.energy.joules for one in model.estimate(module, context.bindings).nodes}

    def gain(self, node: ir.Node) -> float:
        """Joules that 16 bits save in a node; 0 where nothing prices it."""
        name = node.name or next((str(value.name) for value in node.outputs if value.name), node.op_type)
        return SAVED * max((self._joules.get(name) or 0.0) - self._launch, 0.0)

    def cast(self, value: ir.Value) -> float:
        """Joules of one cast of a value; of unknown size, those of its launch."""
        dims = bound_shape(value, self._bindings) or ()
        return self._launch + CAST_BYTES * self._byte * math.prod(dim or 1 for dim in dims)
