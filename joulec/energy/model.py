"""EnergyModel: a module and a device profile in, joules by node out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from joulec.energy.bind import Spec, bind_in_place, infer_all, is_named, is_settled, symbols
from joulec.energy.estimate import (
    MAX_ASSUMED,
    TIERS,
    Change,
    Energy,
    Estimate,
    NodeEnergy,
    Tier,
    compare,
)
from joulec.energy.formulas import formulas
from joulec.energy.functions import inline_functions
from joulec.energy.kernel import Plan
from joulec.energy.kernels import plan_kernels
from joulec.energy.price import Price, Rates, Resident, kernel_features, price
from joulec.energy.profile import DeviceProfile
from joulec.energy.trips import Body, bodies
from joulec.energy.view import Sizes, Unpriced
from joulec.energy.work import Work, work_of
from joulec.errors import InputError
from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.values import static_shape

__all__ = ["Change", "Energy", "EnergyModel", "Estimate", "NodeEnergy", "compare"]

FORMULA_NODES = 2000
"""Models of more nodes are told no formulas."""

MAX_DEPTH = 32
"""Control flow nested deeper than this is unknown."""


@dataclass(frozen=True)
class EnergyModel:
    """Prices modules on one device.

    Attributes:
        profile: the device.
        target: `cpu`, `cuda` or `tensorrt`: whose kernels run Q/DQ patterns.
    """

    profile: DeviceProfile
    target: str = "cpu"

    def estimate(
        self, module: Module, bindings: Spec | None = None, seconds_per_node: Mapping[str, float] | None = None,
        *, in_place: bool = False,
    ) -> Estimate:  # fmt: skip
        """The energy of one run of `module`, which is left as it is unless `in_place`.

        Args:
            module: the model; functions are priced by their bodies.
            bindings: sizes of symbolic dimensions, by symbol or by input name; others count as 1 and are named.
            seconds_per_node: measured time by node name; those nodes are then `calibrated`, not `estimated`.
            in_place: bind and infer on `module` itself, for a caller that is done with it: saves a copy.

        Raises:
            InputError: a binding that names nothing, is below 1, or contradicts the model.
        """
        prepared = module if in_place else module.clone()
        notes = [note for note in (inline_functions(prepared), _infer_open(prepared)) if note]
        batch = _batch_input(prepared)
        plan = plan_kernels(prepared, self.target) if symbols(prepared) else None
        sizes = Sizes(widen_half=self.target == "cpu")
        assumed = bind_in_place(prepared, bindings or {})
        if (plan is None or not is_settled(prepared)) and (failed := infer_all(prepared, sizes.values)):
            notes.append(failed)
        plan = plan or plan_kernels(prepared, self.target)
        if sizes.widen_half and _has_half(prepared):
            notes.append(
                "float16 is computed, and its bytes are counted, as float32: this target has no float16 kernels"
            )
        run = _Run(Rates(self.profile), plan, sizes, dict(seconds_per_node or {}), notes=list(dict.fromkeys(notes)))
        fed = sum(run.sizes.nbytes(value) for value in prepared.inputs())
        run.resident = Resident.of(_footprint(plan, run.sizes) + fed, run.rates)
        nodes = run.graph(prepared.graph, "", 1, 0)
        return run.total(nodes, [*assumed, *run.sizes.assumed, *run.trips], _samples(prepared, batch))

    def told(self, module: Module, bindings: Spec) -> Estimate:
        """`estimate` for people: with its formulas, where the model has symbols. `module` is used up.

        Larger models than `FORMULA_NODES` have none: a formula takes ten estimates.
        """
        found = self.formulas(module) if module.node_count() <= FORMULA_NODES else {}
        return replace(self.estimate(module, bindings, in_place=True), formulas=found)

    def formulas(self, module: Module) -> dict[str, str]:
        """`flops` and `bytes` of a run as formulas in the symbols of `module`; what is no polynomial is left out."""

        def work_at(sizes: Mapping[str, int]) -> dict[str, int]:
            nodes = self.estimate(module, sizes).nodes
            return {"flops": sum(n.flops or 0 for n in nodes), "bytes": sum(n.bytes or 0 for n in nodes)}

        try:
            return formulas(list(symbols(module)), work_at)
        except InputError:
            return {}  # sizes that these inputs cannot have together

    def price(self, work: Work, resident: float = 1.0, seconds: float | None = None) -> Price:
        """The price of a piece of work; `resident` is the share of weights that stay in the last cache."""
        return price(work, Rates(self.profile), Resident(resident, resident), seconds)


def _infer_open(module: Module) -> str | None:
    """Infer shapes while dimensions are still free, if any is.

    What the runtime folds at load depends on them: a Shape is constant only where its input's shape is fixed.
    """
    return infer_all(module, symbolic=True) if symbols(module) else None


def _has_half(module: Module) -> bool:
    return any(v.dtype == ir.DataType.FLOAT16 for node in walk.nodes(module.model) for v in node.outputs)


def _footprint(plan: Plan, sizes: Sizes) -> int:
    """Bytes between two uses of a weight: all the constants that kernels read in a run, each once, and the largest
    result beside them (buffers are used again)."""
    running = [kernel for kernel in plan.kernels.values() if kernel.runs]
    read = dict.fromkeys(v for kernel in running for v in kernel.reads if v in plan.constants)
    largest = max((sizes.nbytes(value) for kernel in running for value in kernel.writes), default=0)
    return sum(sizes.nbytes(value) for value in read) + largest


def _batch_input(module: Module) -> ir.Value | None:
    """The input whose dimension 0 is the batch: the one free leading dimension, or the one that all inputs share."""
    candidates = [value for value in module.inputs() if value.shape is not None and len(value.shape) > 1]
    free = [value for value in candidates if not isinstance(_leading(value), int)]
    chosen = free or candidates
    names = {str(_leading(value)) for value in chosen}
    unnamed = any(not isinstance(_leading(v), int) and not is_named(_leading(v)) for v in chosen)
    return chosen[0] if len(chosen) == 1 or (len(names) == 1 and not unnamed) else None


def _leading(value: ir.Value) -> int | ir.SymbolicDim:
    return value.shape[0] if value.shape is not None else 1


def _samples(module: Module, batch: ir.Value | None) -> int | None:
    """The batch size, if the first output has it too."""
    shape = static_shape(batch)
    made = static_shape(module.graph.outputs[0]) if module.graph.outputs else None
    return shape[0] or None if shape and made and shape[0] == made[0] else None


@dataclass
class _Run:
    """One estimate in the making."""

    rates: Rates
    plan: Plan
    sizes: Sizes
    seconds: Mapping[str, float]
    resident: Resident = field(default_factory=Resident)
    notes: list[str] = field(default_factory=list)
    trips: dict[str, int] = field(default_factory=dict)

    def graph(self, graph: ir.Graph, path: str, repeats: int, depth: int) -> list[_Priced]:
        """The nodes of `graph` and of the bodies inside, each with its terms."""
        found: list[_Priced] = []
        for node in graph:
            found.append(self._node(node, path, repeats))
            if depth < MAX_DEPTH:
                found += self._bodies(node, path, repeats, depth)
            elif next(iter(bodies(node, self.sizes)), None) is not None:
                found[-1] = self._unknown(node, path, "control flow nested too deeply")
        return found

    def _node(self, node: ir.Node, path: str, repeats: int) -> _Priced:
        name = path + _name(node)
        try:
            work = work_of(node, self.plan.kernels[node], self.sizes, self.plan.constants)
        except (Unpriced, IndexError, ValueError, TypeError, OverflowError, LookupError) as error:
            return self._unknown(node, path, str(error) or type(error).__name__)
        seconds = self.seconds.get(name)
        paid = price(work, self.rates, self.resident, seconds)
        laws = self.rates.laws
        known = seconds is not None or work.family in laws or (bool(laws) and not work.launches)
        tier: Tier = "calibrated" if known else "estimated"
        spread = self._spread() if seconds is None and tier == "calibrated" else 1.0
        told = NodeEnergy(
            name, node.op_type, Energy.of(paid.joules * repeats, tier, spread), work.operations * repeats,
            work.bytes * repeats, work.kernel, node.domain, paid.seconds * repeats, repeats,
        )  # fmt: skip
        features = kernel_features(work, self.rates, self.resident)
        terms = {term: amount * repeats for term, amount in paid.terms.items()}
        return _Priced(told, terms, {family: _scaled(amounts, repeats) for family, amounts in features.items()})

    def _spread(self) -> float:
        """How far the profile's fitted times may be off."""
        made = self.rates.profile.calibration
        return 1.0 if made is None else made.spread

    def _unknown(self, node: ir.Node, path: str, why: str) -> _Priced:
        return _Priced(NodeEnergy(path + _name(node), node.op_type, Energy.unknown(), None, None, why, node.domain), {})

    def _bodies(self, node: ir.Node, path: str, repeats: int, depth: int) -> list[_Priced]:
        """The nodes of the bodies of `node`: the costlier branch of an If, each other body times its trips."""
        inside = path + _name(node)
        priced: list[tuple[Body, list[_Priced]]] = []
        for body in bodies(node, self.sizes):
            if body.assumed is not None:
                self.trips[f"{inside}: {body.assumed}"] = 1
            nested = self.graph(body.graph, f"{inside}/{body.name}/", repeats * body.trips, depth + 1)
            priced.append((body, nested))
        if node.op_type != "If" or len(priced) < 2:
            return [one for _, nested in priced for one in nested]
        costly = max(priced, key=lambda pair: _joules(pair[1]))
        self.notes.append(f"If '{inside}': the costlier branch, {costly[0].name}, is counted")
        others = [one for pair in priced if pair is not costly for one in pair[1] if one.told.energy.joules is None]
        return costly[1] + others

    def _start(self) -> list[_Priced]:
        seconds = self.rates.laws.get("run", {}).get("launch", 0.0)
        if not seconds:
            return []
        term = "static:kernels:run"
        joules = seconds * self.rates.bounds(term).value
        energy = Energy.of(joules, "calibrated", self._spread())
        told = NodeEnergy("(start of a run)", "Run", energy, 0, 0, "run", seconds=seconds)
        return [_Priced(told, {term: seconds})]

    def total(self, nodes: list[_Priced], assumed: list[str], samples: int | None) -> Estimate:
        """Sum up, with what starting the run costs where the profile knows it."""
        nodes = [*nodes, *self._start()]
        told = tuple(one.told for one in nodes)
        known = [(n.energy.joules, n.energy.low, n.energy.high) for n in told if n.energy.joules is not None]
        terms: dict[str, float] = {}
        for one in nodes:
            for term, amount in one.terms.items():
                terms[term] = terms.get(term, 0.0) + amount
        features = _summed(one.features for one in nodes)
        tiers = [n.energy.tier for n in told if n.energy.joules]
        return Estimate(
            total_joules=sum(j or 0.0 for j, _, _ in known),
            low=sum(low or 0.0 for _, low, _ in known),
            high=sum(high or 0.0 for _, _, high in known),
            tier=max(tiers, key=TIERS.index, default="estimated"),
            device=self.rates.profile.name,
            nodes=told,
            unknown=tuple(dict.fromkeys(n.op for n in told if n.energy.joules is None)),
            assumed=tuple(_limited(list(dict.fromkeys(assumed)))),
            samples=samples,
            seconds=sum(n.seconds or 0.0 for n in told),
            notes=tuple(self.notes),
            terms=terms,
            coefficients={term: self.rates.bounds(term) for term in terms},
            features=features,
        )


@dataclass(frozen=True)
class _Priced:
    """A node's entry and its energy terms."""

    told: NodeEnergy
    terms: Mapping[str, float]
    features: Features = field(default_factory=dict)


Features = Mapping[str, Mapping[str, float]]
"""Kernel family -> term -> amount."""


def _scaled(amounts: Mapping[str, float], repeats: int) -> dict[str, float]:
    return {name: amount * repeats for name, amount in amounts.items()}


def _summed(every: Iterable[Features]) -> dict[str, dict[str, float]]:
    total: dict[str, dict[str, float]] = {}
    for features in every:
        for family, amounts in features.items():
            mine = total.setdefault(family, {})
            for name, amount in amounts.items():
                mine[name] = mine.get(name, 0.0) + amount
    return total


def _joules(nodes: list[_Priced]) -> float:
    return sum(one.told.energy.joules or 0.0 for one in nodes)


def _name(node: ir.Node) -> str:
    return node.name or next((str(value.name) for value in node.outputs if value.name), node.op_type)


def _limited(names: list[str]) -> Iterator[str]:
    yield from names[:MAX_ASSUMED]
    if len(names) > MAX_ASSUMED:
        yield f"and {len(names) - MAX_ASSUMED} more"
