"""Fine-tuning of live Keras models: masks hold after each step, and every option does what it says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from joulec.errors import BudgetError, InputError, UnavailableError
from joulec.training.finetuning import finetune
from joulec.training.masked import Masked
from joulec.training.masks import variables

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

CLASSES = 3


@pytest.fixture(scope="module")
def keras() -> Any:
    return pytest.importorskip("keras")


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    """Three clouds in eight dimensions, which a linear model can tell apart."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, CLASSES, 160)
    return (generator.standard_normal((160, 8)) * 0.4 + np.eye(CLASSES, 8)[y]).astype("f"), y


def small(keras: Any, seed: int = 0, end: str | None = "softmax", units: int = CLASSES) -> Any:
    """8 -> a nested model that is used twice, with a layer used twice -> classes."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    shared = layers.Dense(8, name="shared", kernel_constraint=keras.constraints.MaxNorm(1.5))
    into = keras.Input((8,))
    inner = keras.Model(into, layers.ReLU()(layers.BatchNormalization(name="norm")(shared(shared(into)))), name="inner")
    x = keras.Input((8,), name="x")
    value = layers.Concatenate()([inner(x), inner(layers.ReLU()(x)), x])
    value = layers.Dropout(0.0, name="drop")(value)
    return keras.Model(x, layers.Dense(units, activation=end, name="out")(value))


def masks_of(model: Any) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    kernels = {name: v for name, v in variables(model).items() if name.endswith("kernel")}
    return {name: generator.random(tuple(v.shape)) > 0.6 for name, v in kernels.items()}


def gone(model: Any, masks: dict[str, np.ndarray]) -> float:
    """The largest magnitude that a mask should have removed."""
    named = variables(model)
    return max(float(np.abs(np.asarray(named[name].numpy())[~mask]).max()) for name, mask in masks.items())


OPTIMIZERS = {
    "adamw with decay": lambda keras: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "momentum, accumulated": lambda keras: keras.optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=3),
    "scaled losses": lambda keras: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masks_hold_after_every_step(keras: Any, data: Any, name: str) -> None:
    model = small(keras)
    masks, seen = masks_of(model), []
    watch = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(gone(model, masks)))
    with Masked(variables(model), dict(masks)) as masked:
        model.compile(OPTIMIZERS[name](keras), "sparse_categorical_crossentropy")
        before = model.get_weights()
        model.fit(*data, batch_size=40, verbose=0, callbacks=[watch])
        masked.verify()
    assert seen == [0.0] * 4
    assert any(not np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    own = variables(model)["shared/kernel"]
    assert isinstance(own.constraint, keras.constraints.MaxNorm)  # back again
    assert np.linalg.norm(own.numpy(), axis=0).max() <= 1.5 + 1e-5  # and it held under the mask
    if name.startswith("adamw"):
        model.compile(OPTIMIZERS[name](keras), "sparse_categorical_crossentropy")
        model.fit(*data, batch_size=40, verbose=0)
        assert gone(model, masks) > 0  # without the masks the same training writes there


def test_a_model_recovers_under_masks_and_its_teacher_helps(keras: Any, data: Any, tmp_path: Path) -> None:
    model = small(keras)
    finetune(model, data, epochs=8, learning_rate=0.02, patience=0)
    model.save(tmp_path / "m.keras")
    masks = masks_of(model)
    done = finetune(
        tmp_path / "m.keras", data, masks=masks, teacher=tmp_path / "m.keras", out=tmp_path / "t.keras",
        epochs=5, learning_rate=0.02, accumulate=2, weight_decay=0.01, l2=1e-4,
    )  # fmt: skip
    report = done.report
    assert report.pruned is not None and report.tuned["accuracy"] >= report.pruned["accuracy"]
    assert min(report.history["distillation_loss"]) > 1e-4
    assert report.loss.startswith("0.5 x sparse categorical cross-entropy of probabilities + 0.5 x distillation")
    assert report.files == ("t.keras",) and done.masks == {}
    assert not done.model.optimizer.variables[2:]  # nothing of the training is left in the model or its file
    assert report.judged_on == "16 of 160 samples of data, held back"
    again = keras.models.load_model(tmp_path / "t.keras")
    assert gone(again, masks) == 0.0


@pytest.mark.parametrize("end", ["softmax", None])
def test_distillation_is_hintons(keras: Any, data: Any, end: str | None) -> None:
    """T^2 times the divergence of the softened classes; the penalties of the student on top."""
    from joulec.training.examples import load_examples
    from joulec.training.objectives import distiller, objectives

    student, teacher = small(keras, 1, end), small(keras, 2, end)
    student.get_layer("out").kernel.regularizer = keras.regularizers.L2(0.01)
    (objective,) = objectives(student, load_examples(data, student, 32), None)
    both = distiller(student, teacher, objective, 0.25, 4.0)
    both.compile("sgd", loss=objective.loss)
    x, y = data
    logits = [np.log(m(x).numpy()) if end else m(x).numpy() for m in (teacher, student)]
    soft = [np.exp(z / 4.0) / np.exp(z / 4.0).sum(-1, keepdims=True) for z in logits]
    divergence = 16.0 * float(np.mean((soft[0] * np.log(soft[0] / soft[1])).sum(-1)))
    plain = np.exp(logits[1]) / np.exp(logits[1]).sum(-1, keepdims=True)
    own = float(-np.mean(np.log(plain[np.arange(len(y)), y])))
    penalty = 0.01 * float(np.square(student.get_layer("out").kernel.numpy()).sum())
    total = float(both.compute_loss(x, y, student(x)))
    assert total == pytest.approx(0.75 * own + 0.25 * divergence + penalty, rel=1e-3)


def test_gradual_pruning_ends_at_its_sparsity(keras: Any, data: Any, tmp_path: Path) -> None:
    done = finetune(small(keras), data, sparsity=0.75, epochs=4, batch=8, out=tmp_path / "s.keras")
    kernels = {name: v for name, v in variables(done.model).items() if name in done.masks}
    zeros = sum(int((np.asarray(v.numpy()) == 0).sum()) for v in kernels.values())
    assert zeros == round(0.75 * sum(mask.size for mask in done.masks.values()))
    shares = done.report.history["sparsity"]
    assert shares == sorted(shares) and 0 < shares[0] < 0.75 and shares[-1] == done.report.sparsity == 0.75
    assert done.report.best_epoch >= 3  # not one whose weights were not all gone yet
    assert done.report.files == ("s.keras", "s_masks.npz")
    assert gone(keras.models.load_model(tmp_path / "s.keras"), read(tmp_path / "s_masks.npz")) == 0.0


def read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as found:
        return dict(found)


def test_given_masks_may_come_gradually(keras: Any, data: Any) -> None:
    model = small(keras)
    masks = masks_of(model)
    done = finetune(model, data, masks=masks, gradual=True, epochs=3, prune_until=1.0)
    assert done.report.pruned is None
    assert done.report.history["sparsity"][0] < done.report.sparsity
    assert gone(model, masks) == 0.0


def test_what_is_not_better_is_not_kept_and_a_missed_budget_changes_nothing(
    keras: Any, data: Any, tmp_path: Path
) -> None:
    model = small(keras)
    finetune(model, data, epochs=10, learning_rate=0.02)
    before = model.get_weights()
    done = finetune(model, data, epochs=6, learning_rate=3.0, optimizer="sgd", patience=2)
    assert done.report.best_epoch == 0 and done.report.epochs <= 6
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert "no epoch was better" in done.report.notes[0]
    nothing = {name: np.zeros(mask.shape, bool) for name, mask in masks_of(model).items()}
    with pytest.raises(BudgetError, match=r"accuracy drops by .*, the budget is 0.01"):
        finetune(model, data, masks=nothing, epochs=1, max_drop=0.01, out=tmp_path / "t.keras")
    assert list(tmp_path.iterdir()) == []
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_the_same_seed_gives_the_same_weights(keras: Any, data: Any) -> None:
    runs = [finetune(small(keras), data, epochs=2, dropout=0.3, seed=seed).model.get_weights() for seed in (3, 3, 4)]
    assert all(np.array_equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))


def test_dropout_and_precision_are_for_training_only(keras: Any, data: Any) -> None:
    model = small(keras)
    done = finetune(model, data, epochs=2, dropout=0.4, precision="mixed_bfloat16", masks=masks_of(model))
    assert model.get_layer("drop").rate == 0.0
    assert {layer.dtype_policy.name for layer in model._flatten_layers()} == {"float32"}
    assert done.report.history["loss"][1] < done.report.history["loss"][0]
    plain = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    with pytest.raises(InputError, match="no Dropout layer"):
        finetune(plain, data, dropout=0.4)


def test_a_new_head_learns_and_the_backbone_stays(keras: Any, data: Any) -> None:
    model = small(keras, units=7)
    masks = masks_of(model)
    before = {name: np.asarray(v.numpy()) for name, v in variables(model).items()}
    done = finetune(model, data, new_head=CLASSES, masks=masks, epochs=6, learning_rate=0.05)
    after = {name: np.asarray(v.numpy()) for name, v in variables(done.model).items()}
    assert done.model.output_shape == (None, CLASSES) and done.model.output_names == ["out"]
    backbone = [name for name in before if not name.startswith("out/")]
    assert len(backbone) == len(before) - 2
    for name in backbone:  # statistics of batch normalization too
        assert np.array_equal(after[name], np.where(masks[name], before[name], 0) if name in masks else before[name])
    assert set(done.report.frozen) == {"shared", "norm"}
    assert done.report.notes[0] == "the mask of 'out/kernel' went with the old head"
    assert done.report.tuned["accuracy"] > 0.5


def test_what_cannot_be_frozen(keras: Any, data: Any) -> None:
    with pytest.raises(InputError, match="fits no layer with weights; there are "):
        finetune(small(keras), data, freeze=("conv*",))
    with pytest.raises(InputError, match="nothing is left to learn"):
        finetune(small(keras), data, freeze=("*",))
    sequence = keras.Sequential([keras.Input((8, 1)), keras.layers.LSTM(3, name="memory")])
    with pytest.raises(InputError, match="ends with 'memory', not with a Dense layer"):
        finetune(sequence, data, new_head=2)


def test_training_that_diverges_is_told(keras: Any, data: Any) -> None:
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    before = model.get_weights()
    with pytest.raises(InputError, match="training diverged"):
        finetune(model, (data[0], data[0][:, :1] * 1e18), optimizer="sgd", learning_rate=1000.0, epochs=9)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_logs_for_tensorboard(keras: Any, data: Any, tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(UnavailableError, match=r"needs tensorboard: pip install 'joulec\[tensorboard\]'"):
            finetune(small(keras), data, epochs=1, logs=tmp_path)
        return
    model = small(keras)
    finetune(model, data, epochs=1, logs=tmp_path, masks=masks_of(model))
    events = b"".join(file.read_bytes() for file in tmp_path.rglob("events.*"))
    assert b"epoch_sparsity" in events and b"epoch_accuracy" in events


def test_several_outputs_and_streams_with_weights(keras: Any, data: Any) -> None:
    import tensorflow as tf

    x, y = data
    into = keras.Input((8,), name="x")
    hidden = keras.layers.Dense(8, "relu")(into)
    ends = [keras.layers.Dense(CLASSES, name="kind")(hidden), keras.layers.Dense(1, name="size")(hidden)]
    model = keras.Model(into, ends)
    done = finetune(model, {"x": x, "y_kind": y, "y_size": x[:, :1]}, epochs=2)
    assert done.report.metric == "loss"
    assert done.report.loss == "sparse categorical cross-entropy of logits; mean squared error"
    with pytest.raises(InputError, match="no labels 'y_size'; the model has outputs kind, size"):
        finetune(model, {"x": x, "y_kind": y})
    with pytest.raises(InputError, match="only models with one output"):
        finetune(model, {"x": x, "y_kind": y, "y_size": x[:, :1]}, teacher=model, epochs=1)
    stream = tf.data.Dataset.from_tensor_slices((x, y, np.ones(len(x), "f")))
    done = finetune(small(keras), stream, teacher=small(keras), epochs=1)
    assert done.report.notes == (
        "judged on what it learned from: give --validation, or more samples; training did not stop early",
        "weights of samples do not count beside a teacher: Keras' Distiller takes none",
    )
    with pytest.raises(InputError, match="never ends"):
        finetune(small(keras), stream.batch(8).repeat(), epochs=1)
