"""prune-blocks on models of Keras: a residual network with a projection, and an encoder."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnx
import pytest

from joulec.backends import backend
from joulec.ir.feeds import Feeds
from joulec.ir.lower import lower
from joulec.ir.runner import LocalRunner
from joulec.passes.base import Context
from joulec.passes.default import exact_passes
from joulec.passes.pipeline import Pipeline
from joulec.passes.prune_blocks import PruneBlocks

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def residual() -> Any:
    """Four blocks of two convolutions; the third halves the image, and its shortcut has a layer of its own."""
    import keras
    from keras import layers

    image = keras.Input((16, 16, 3), name="x")
    value = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, 3, padding="same")(image)))
    for block in range(4):
        wide, step = (32 if block > 1 else 16), (2 if block == 2 else 1)
        branch = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(wide, 3, step, padding="same")(value)))
        branch = layers.BatchNormalization()(layers.Conv2D(wide, 3, padding="same")(branch))
        shortcut = value if step == 1 else layers.Conv2D(wide, 1, step)(value)
        value = layers.ReLU()(layers.Add()([shortcut, branch]))
    return keras.Model(image, layers.Dense(10)(layers.GlobalAveragePooling2D()(value)))


def encoder() -> Any:
    """Four pre-normalized blocks."""
    import keras
    from keras import layers

    tokens = keras.Input((12, 32), name="x")
    value = tokens
    for _ in range(4):
        normed = layers.LayerNormalization(epsilon=1e-6)(value)
        value = layers.Add()([value, layers.MultiHeadAttention(4, 8)(normed, normed)])
        normed = layers.LayerNormalization(epsilon=1e-6)(value)
        value = layers.Add()([value, layers.Dense(32)(layers.Dense(64, "gelu")(normed))])
    return keras.Model(tokens, layers.Dense(10)(layers.GlobalAveragePooling1D()(value)))


CASES = {"residual": (residual, (1, 16, 16, 3), 4, 2), "encoder": (encoder, (1, 12, 32), 8, 3)}
"""Name -> what builds it, its input, how many blocks it has, and how many go."""


@pytest.mark.parametrize("name", CASES)
def test_blocks_of_a_real_architecture_go(name: str) -> None:
    pytest.importorskip("tensorflow")
    build, shape, blocks, count = CASES[name]
    generator = np.random.default_rng(0)
    feeds = [{"x": generator.normal(size=shape).astype(np.float32)} for _ in range(4)]
    with LocalRunner() as runner:
        context = Context(backend("cpu").target, feeds=Feeds.of(feeds), probes=feeds[:2], runner=runner)
        whole = Pipeline(exact_passes()).run(lower(build()).module, context).module
        outcome = Pipeline([PruneBlocks(count=count)]).run(whole, context)
        (step,) = outcome.steps
        assert (step.status, step.reason) == ("applied", None)
        assert step.result.notes[0].startswith(f"{count} of {blocks} residual blocks left out")
        assert len(outcome.module.graph) < len(whole.graph) * (1 - count / blocks / 2)
        proto = outcome.module.to_proto()
        onnx.checker.check_model(proto, full_check=True)
        (found,) = runner.run(runner.load(outcome.module), feeds[0]).values()
    assert np.asarray(found).shape == (1, 10)
    assert np.isfinite(found).all()
