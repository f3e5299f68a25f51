"""A loaded Keras model made ready to be tuned: a new head, what is frozen, rates of dropout, mixed precision."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from joulec.errors import InputError


def layers_of(model: Any) -> list[Any]:
    """Every layer that is no model, nested and wrapped ones included, each once, in Keras' order."""
    import keras

    found = {id(layer): layer for layer in model._flatten_layers(include_self=False)}
    return [layer for layer in found.values() if not isinstance(layer, keras.Model)]


# -- the head -----------------------------------------------------------------------------------------------------


def with_new_head(model: Any, units: int) -> Any:
    """The model with its last Dense layer replaced by one of `units`; the same activation, and what follows it.

    Raises:
        InputError: it is not Sequential or functional with one output, or ends otherwise.
    """
    import keras

    if not getattr(model, "inputs", None) or len(model.outputs) != 1:
        raise InputError("--new-head: only Sequential and functional models with one output have a head to replace")
    tail = _tail(model)
    head, behind = tail[0], tail[1:]
    config = {**head.get_config(), "units": units}
    made = keras.layers.Dense.from_config(config)
    value = made(head.input)
    for layer in behind:
        value = layer(value)
    inputs = getattr(model, "_inputs_struct", None)
    return keras.Model(model.inputs if inputs is None else inputs, value, name=model.name)


def _tail(model: Any) -> list[Any]:
    """The last Dense layer and what follows it, which must have no weights."""
    import keras

    behind: list[Any] = []
    node = model.outputs[0]._keras_history
    while True:
        layer = node.operation
        if isinstance(layer, keras.layers.Dense):
            return [layer, *reversed(behind)]
        sources = layer._inbound_nodes[node.node_index].input_tensors if layer._inbound_nodes else []
        if len(sources) != 1 or getattr(layer, "weights", []):
            raise InputError(f"--new-head: the model ends with '{layer.name}', not with a Dense layer")
        behind.append(layer)
        node = sources[0]._keras_history


# -- what learns --------------------------------------------------------------------------------------------------


def freeze(model: Any, backbone: bool, patterns: Sequence[str]) -> list[str]:
    """Let layers keep their weights: all but the last one that has any, and those that patterns name.

    Batch normalizations that are frozen also keep, and use, their statistics: so Keras has it.

    Returns:
        The names of the layers that were frozen.

    Raises:
        InputError: a pattern names no layer with weights, or nothing is left to learn.
    """
    weighted = [layer for layer in layers_of(model) if layer.weights]
    known = {layer.name: layer for layer in weighted} | {layer.path: layer for layer in weighted if layer.path}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise InputError(f"--freeze {pattern}: fits no layer with weights; there are {_some(list(known))}")
    chosen = {id(layer) for name, layer in known.items() if any(fnmatchcase(name, one) for one in patterns)}
    if backbone:
        chosen |= {id(layer) for layer in weighted[:-1]}
    frozen = [layer for layer in weighted if id(layer) in chosen]
    for layer in frozen:
        layer.trainable = False
    if not model.trainable_weights:
        raise InputError("nothing is left to learn: every layer with weights is frozen")
    return [layer.name for layer in frozen]


@contextlib.contextmanager
def dropout(model: Any, rate: float | None) -> Iterator[None]:
    """All Dropout layers at `rate` inside, at their own rates outside; None changes nothing.

    Raises:
        InputError: there are none.
    """
    import keras

    layers: list[Any] = [] if rate is None else [one for one in layers_of(model) if isinstance(one, _dropouts())]
    if rate is not None and not layers:
        raise InputError("--dropout: the model has no Dropout layer whose rate could be set")
    own, seedless = [layer.rate for layer in layers], [one for one in layers if not hasattr(one, "seed_generator")]
    for layer in layers:
        layer.rate = rate
    for layer in seedless:  # of rate 0; past Keras' tracking, which takes nothing new for a layer that is built
        object.__setattr__(layer, "seed_generator", keras.random.SeedGenerator(layer.seed))
    try:
        yield
    finally:
        for layer, before in zip(layers, own, strict=True):
            layer.rate = before
        for layer in seedless:
            object.__delattr__(layer, "seed_generator")


def _dropouts() -> tuple[type, ...]:
    """Every kind of layer that drops at random with a rate."""
    from keras import layers

    names = ("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "AlphaDropout", "GaussianDropout")
    return tuple(getattr(layers, name) for name in names)


@contextlib.contextmanager
def penalized(variables: Sequence[Any], l2: float) -> Iterator[None]:
    """`l2` times the sum of squares of these variables in the loss inside, beside their own regularizers."""
    import keras

    own = [variable.regularizer for variable in variables]

    def both(before: Any) -> Any:
        added = keras.regularizers.L2(l2)
        return added if before is None else lambda weight: before(weight) + added(weight)

    if l2:
        for variable in variables:
            variable.regularizer = both(variable.regularizer)
    try:
        yield
    finally:
        for variable, before in zip(variables, own, strict=True):
            variable.regularizer = before


@contextlib.contextmanager
def computing_in(model: Any, policy: str) -> Iterator[None]:
    """All layers under a dtype policy of Keras inside, but for the last one: losses want its numbers in float32.

    Raises:
        InputError: some of the model computes in another type than float32 as it is.
    """
    import keras

    layers = [model, *(layer for layer in model._flatten_layers(include_self=False))]
    own = [layer.dtype_policy for layer in layers]
    if policy != "float32":
        strange = next((layer for layer in layers if layer.dtype_policy.name != "float32"), None)
        if strange is not None:
            raise InputError(f"--precision: layer '{strange.name}' computes in {strange.dtype_policy.name} already")
        last = {id(one._keras_history.operation) for one in getattr(model, "outputs", None) or []}
        for layer in layers:
            if id(layer) not in last and not isinstance(layer, keras.layers.InputLayer):
                layer.dtype_policy = policy
    try:
        yield
    finally:
        for layer, before in zip(layers, own, strict=True):
            layer.dtype_policy = before


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
