"""Module: the program being compiled, an ONNX model plus what ONNX cannot say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.allowance import Allowance
from joulec.ir.values import Array

T = TypeVar("T")

INLINE_LIMIT = 1 << 30
"""Weights up to this many bytes are stored inside the .onnx file; protobuf itself ends at 2 GiB."""


@dataclass(frozen=True)
class Choice:
    """The range that one method gives a tensor, and how well 8 bits over it hold the tensor's numbers.

    Attributes:
        method: its name.
        low, high: the interval.
        sqnr: signal to quantization noise in decibel, on the data that the range was made from.
        unseen: the same on data that it was not made from: each half of the data under the range of the other.
    """

    method: str
    low: float
    high: float
    sqnr: float
    unseen: float


@dataclass(frozen=True)
class Range:
    """What calibration saw of one float tensor: the interval that covers it, by the named method.

    Attributes:
        low, high: the interval.
        method: how it was found.
        sqnr: signal to quantization noise of 8 bits over it, in decibel; None where nobody measured it.
        saturated: share of the numbers that the integers clip.
        smallest, largest: the extremes that were seen.
        shift: by how much the extremes of the two halves of the data differ, as a share of the whole range.
        choices: what each method would give; `chosen` takes another one without a new calibration.
    """

    low: float
    high: float
    method: str = "minmax"
    sqnr: float | None = None
    saturated: float | None = None
    smallest: float | None = None
    largest: float | None = None
    shift: float | None = None
    choices: tuple[Choice, ...] = ()

    def chosen(self, method: str) -> Range:
        """The same tensor under the range of another method.

        Raises:
            KeyError: calibration did not try it.
        """
        for one in self.choices:
            if one.method == method:
                return replace(self, low=one.low, high=one.high, method=method, sqnr=one.sqnr, saturated=None)
        raise KeyError(method)


@dataclass(frozen=True)
class Source:
    """Where the elements of one initializer lie in a weight of the source model.

    Attributes:
        name: the weight in the source's own words: `conv2d/kernel` in Keras, the initializer's name in ONNX.
        shape: of that weight.
        index: position in that weight, flattened, of every element; laid out as the initializer. None: the identity.
    """

    name: str
    shape: tuple[int, ...]
    index: Array | None = None

    def moved(self, move: Callable[[Array], Array], shape: tuple[int, ...]) -> Source:
        """The same elements laid out anew, or some of them; `shape` is the initializer's before."""
        return replace(self, index=np.ascontiguousarray(move(self.positions(shape))))

    def positions(self, shape: tuple[int, ...]) -> Array:
        """`index` in full, for an initializer of `shape`."""
        if self.index is not None:
            return self.index
        size = int(np.prod(shape, dtype=np.int64))
        return np.arange(size, dtype=np.int32 if size < 1 << 31 else np.int64).reshape(shape)


@dataclass(frozen=True)
class NamedWeight:
    """An initializer that holds a weight of the source framework, transposed, and scaled at most.

    Attributes:
        name: the weight's name there.
        shape: its shape there.
        perm: the transposition that lays it out as the initializer, up to dimensions of 1.
    """

    name: str
    shape: tuple[int, ...]
    perm: tuple[int, ...]


@dataclass(frozen=True)
class Origin:
    """Where a module came from.

    Attributes:
        format: `onnx`, `keras`, `saved-model`, `tflite`, `torch` or `memory`.
        path: the file or directory it was read from, if any.
        notes: what lowering had to say (bound constants, parity, what could not be checked).
        custom_ops: shared libraries of custom operators that the user named.
        weights: initializer name -> the source framework's weight in it, where that is known.
    """

    format: str = "memory"
    path: Path | None = None
    notes: tuple[str, ...] = ()
    custom_ops: tuple[Path, ...] = ()
    weights: Mapping[str, NamedWeight] = field(default_factory=dict)


@dataclass
class Module:
    """A model under compilation.

    Attributes:
        model: the graph. Mutate it only through `joulec.ir.rewrite.Rewriter`.
        masks: initializer name -> boolean array of the same shape, True where the weight is kept.
        ranges: value name -> calibrated range.
        sources: initializer name -> where its elements lie in the source model; kept only where pruning was ordered.
        origin: where the model came from.
        allowance: how many rewrites may be made, None for any number; clones share it.
    """

    model: ir.Model
    masks: dict[str, Array] = field(default_factory=dict)
    ranges: dict[str, Range] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    origin: Origin = field(default_factory=Origin)
    allowance: Allowance | None = None
    _derived: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def derive(self, name: str, make: Callable[[], T]) -> T:
        """Something that follows from the graph's structure, made once and kept until a rewriter changes the graph.

        Whoever changes the graph otherwise (its annotations, its inputs) calls `changed`.
        """
        if name not in self._derived:
            self._derived[name] = make()
        found: T = self._derived[name]
        return found

    def changed(self) -> None:
        """Forget what was derived."""
        self._derived.clear()

    @property
    def graph(self) -> ir.Graph:
        """The main graph."""
        return self.model.graph

    @property
    def opset(self) -> int:
        """The version of the standard operator set that the main graph imports (1 if it imports none)."""
        imports = self.model.opset_imports
        return imports.get("", imports.get("ai.onnx", 1))

    def node_count(self) -> int:
        """How many nodes the model has, in all graphs; Constant nodes, which compute nothing, left out."""
        return sum(not walk.is_onnx(node, "Constant") for node in walk.nodes(self.model))

    def inputs(self) -> list[ir.Value]:
        """The graph inputs that a caller must feed: those without a default."""
        initializers = self.graph.initializers
        return [value for value in self.graph.inputs if value.name not in initializers]

    def clone(self) -> Module:
        """An independent copy of the graph; tensors, which nobody mutates, are shared. O(nodes)."""
        copy = replace(
            self, model=self.model.clone(), masks=dict(self.masks), ranges=dict(self.ranges), sources=dict(self.sources)
        )
        copy._derived = dict(self._derived)
        return copy

    def weight_bytes(self) -> int:
        """Bytes of all initializers and Constant tensors, in all graphs."""
        return sum(tensor.nbytes for tensor in tensors(self.model))

    def to_proto(self) -> onnx.ModelProto:
        """The model as protobuf. External tensors stay references to their files."""
        return ir.to_proto(self.model)

    def load_weights(self) -> None:
        """Copy weights that lie in files into memory, so that the files may go."""
        for graph in walk.graphs(self.model):
            for value in graph.initializers.values():
                tensor = value.const_value
                if isinstance(tensor, ir.ExternalTensor):
                    value.const_value = ir.Tensor(np.array(tensor.numpy()), dtype=tensor.dtype, name=tensor.name)

    def save(self, path: Path) -> None:
        """Write the model to `path`; weights beyond `INLINE_LIMIT` bytes go to `<name>.data` beside it."""
        if self.weight_bytes() > INLINE_LIMIT:
            ir.save(self.model, path, external_data=path.name + ".data")
            return
        path.write_bytes(inline_proto(self.model).SerializeToString(deterministic=True))


def tensors(model: ir.Model) -> list[ir.TensorProtocol]:
    """Every tensor stored in `model`: initializers and tensor attributes, in all graphs."""
    found: list[ir.TensorProtocol] = []
    for graph in walk.graphs(model):
        found += [v.const_value for v in graph.initializers.values() if v.const_value is not None]
        for node in graph:
            found += [a.as_tensor() for a in node.attributes.values() if _holds_tensor(a)]
    return found


def _holds_tensor(attribute: ir.Attr) -> bool:
    return not attribute.is_ref() and attribute.type == ir.AttributeType.TENSOR


def inline_proto(model: ir.Model) -> onnx.ModelProto:
    """Serialize `model` with every external tensor's bytes inside. For models below 2 GiB."""
    if not any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors(model)):
        return ir.to_proto(model)
    inlined = model.clone()
    for graph in walk.graphs(inlined):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _in_memory(value.const_value)
    return ir.to_proto(inlined)


def _in_memory(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name, doc_string=tensor.doc_string)
