"""Keras models, functions, SavedModels and TFLite files: names, order and shapes survive, and the numbers agree."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from joulec.errors import CheckError, InputError
from joulec.ir.lower import lower, parity
from joulec.ir.lower import tensorflow as front_end
from joulec.ir.lower.saved_model import reaches_outside
from joulec.ir.lower.worker import lower_file
from joulec.ir.module import Module
from joulec.ir.precision import precision_of
from joulec.ir.sandbox import Limits

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
pytest.importorskip("tensorflow")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def signature(module: Module) -> list[tuple[str, str]]:
    """Names and shapes of inputs, then of outputs."""
    return [(str(value.name), str(value.shape)) for value in (*module.inputs(), *module.graph.outputs)]


def sequential(*layers: Any) -> Any:
    import keras

    keras.utils.set_random_seed(0)
    return keras.Sequential(list(layers))


def recurrent(make: Callable[[Any], Any], length: int | None) -> Any:
    import keras

    keras.utils.set_random_seed(0)
    x = keras.Input((length, 5), name="x")
    return keras.Model(x, make(keras.layers)(x))


# -- live Keras models ----------------------------------------------------------------------------------------------


def test_a_sequential_cnn() -> None:
    from keras import Input, layers

    model = sequential(
        Input((16, 16, 3), name="image"), layers.Conv2D(4, 3, strides=2, padding="same"), layers.BatchNormalization(),
        layers.ReLU(6.0), layers.DepthwiseConv2D(3), layers.Flatten(), layers.Dense(2, name="digit"),
    )  # fmt: skip
    lowered = lower(model)
    assert signature(lowered.module) == [("image", "[batch,16,16,3]"), ("digit", "[batch,2]")]
    assert lowered.parity is not None and lowered.parity.feeds == 2
    assert 0 < lowered.parity.outputs["digit"] < 1e-5


@pytest.mark.parametrize(
    ("make", "length"),
    [
        (lambda layers: layers.LSTM(4), 7),
        (lambda layers: layers.GRU(4), 7),
        (lambda layers: layers.GRU(4, reset_after=False, return_sequences=True), None),
        (lambda layers: layers.SimpleRNN(4), 7),
        (lambda layers: layers.Bidirectional(layers.GRU(4, return_sequences=True)), None),
        (lambda layers: layers.Bidirectional(layers.LSTM(4)), 7),
    ],
    ids=["lstm", "gru", "gru-variable", "rnn", "bigru-variable", "bilstm"],
)
def test_recurrent_layers_of_fixed_and_variable_length(make: Callable[[Any], Any], length: int | None) -> None:
    lowered = lower(recurrent(make, length))
    assert signature(lowered.module)[0] == ("x", f"[batch,{length or 'x_dim1'},5]")
    assert lowered.parity is not None and max(lowered.parity.outputs.values()) < 1e-5


def test_masked_tokens_and_an_exact_gelu() -> None:
    from keras import Input, Model, layers

    ids = Input((None,), dtype="int32", name="ids")
    hidden = layers.Embedding(20, 8, mask_zero=True)(ids)
    hidden = layers.LSTM(8, return_sequences=True)(hidden)
    hidden = layers.LayerNormalization()(hidden + layers.MultiHeadAttention(2, 4)(hidden, hidden))
    lowered = lower(Model(ids, layers.Dense(3, activation="gelu", name="out")(hidden)))
    assert signature(lowered.module)[0] == ("ids", "[batch,ids_dim1]")
    assert lowered.parity is not None and max(lowered.parity.outputs.values()) < 1e-5


def test_several_inputs_and_a_dict_of_outputs_keep_names_types_and_order() -> None:
    from keras import Input, Model, layers

    number, token = Input((8,), name="number"), Input((4,), dtype="int32", name="token")
    joined = layers.Concatenate()([number, layers.Flatten()(layers.Embedding(10, 3)(token))])
    module = lower(Model([number, token], {"z": layers.Dense(3)(joined), "a": layers.Dense(2)(joined)})).module
    assert signature(module) == [
        ("number", "[batch,8]"), ("token", "[batch,4]"), ("z", "[batch,3]"), ("a", "[batch,2]"),
    ]  # fmt: skip
    assert [str(value.dtype) for value in module.inputs()] == ["FLOAT", "INT32"]


def test_a_dict_of_inputs() -> None:
    from keras import Input, Model, layers

    inputs = {"b": Input((4,), name="b"), "a": Input((8,), name="a")}
    module = lower(Model(inputs, layers.Dense(2, name="y")(layers.Concatenate()([inputs["a"], inputs["b"]])))).module
    assert sorted(signature(module)) == [("a", "[batch,8]"), ("b", "[batch,4]"), ("y", "[batch,2]")]


def test_a_subclassed_model_that_was_called_and_one_that_was_not() -> None:
    import keras

    class Mine(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.head = keras.layers.Dense(2)

        def call(self, x: Any) -> Any:
            return self.head(x)

    model = Mine()
    with pytest.raises(InputError, match="not built; call it on data"):
        lower(model)
    model(np.ones((3, 5), np.float32))
    assert str(lower(model).module.inputs()[0].shape) == "[batch,5]"


def test_captured_constants_are_weights_not_inputs() -> None:
    """As in EfficientNetV2B0: a Normalization layer captures its mean and variance."""
    from keras import Input, layers

    scale = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0])
    module = lower(sequential(Input((4, 4, 3), name="image"), layers.Rescaling(1 / 255), scale)).module
    assert [value.name for value in module.inputs()] == ["image"]
    assert [value.name for value in module.graph.inputs] == ["image"]


@pytest.mark.parametrize("policy", ["float16", "mixed_float16"])
def test_half_precision_is_compared_as_such(policy: str) -> None:
    from keras import Input, layers

    lowered = lower(
        sequential(Input((4,), dtype="float32"), layers.Dense(8, dtype=policy), layers.Dense(2, dtype="float32"))
    )
    assert precision_of(lowered.module) == "float16"


# -- functions ------------------------------------------------------------------------------------------------------


def test_a_function_with_branches_loops_and_named_outputs() -> None:
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((None, 3), tf.float32, name="x")])  # type: ignore[untyped-decorator]
    def function(x: Any) -> Any:
        total = tf.while_loop(lambda i, a: i < 3, lambda i, a: (i + 1, a * 2), [0, x])[1]
        return {"twice": tf.cond(tf.reduce_sum(x) > 0, lambda: total, lambda: -total), "again": x + 1}

    module = lower(function).module
    assert signature(module) == [("x", "[batch,3]"), ("twice", "[batch,3]"), ("again", "[batch,3]")]


def test_a_function_without_a_signature_says_what_is_missing() -> None:
    import tensorflow as tf

    with pytest.raises(InputError, match="without input_signature"):
        lower(tf.function(lambda x: x))


# -- the parity gate ------------------------------------------------------------------------------------------------


def test_the_parity_gate_names_the_first_output_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    from keras import Input, Model, layers

    real = front_end._convert

    def sabotaged(concrete: Any) -> Any:
        proto = real(concrete)
        for node in proto.graph.node:
            if node.op_type == "Tanh":
                node.op_type = "Sigmoid"
        return proto

    x = Input((4,), name="x")
    model = Model(x, {"good": layers.Dense(2)(x), "bad": layers.Dense(2, activation="tanh")(x)})
    monkeypatch.setattr(front_end, "_convert", sabotaged)
    with pytest.raises(CheckError, match=r"parity: output 'bad' differs from the source framework's by"):
        lower(model)


def test_a_shape_that_differs_is_named() -> None:
    with pytest.raises(CheckError, match=r"parity: output 'y' has shape \(2,\), the source gives \(3,\)"):
        parity._compare({"y": np.ones(2, np.float32)}, lambda _: {"y": np.ones(3, np.float32)}, {}, {}, 0.0)


# -- files: content decides, never the extension --------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small model in every format that TensorFlow writes."""
    import tensorflow as tf
    from keras import Input, layers

    folder = tmp_path_factory.mktemp("saved")
    model = sequential(
        Input((8, 8, 1), name="image"),
        layers.Conv2D(4, 3, activation="relu"),
        layers.Flatten(),
        layers.Dense(3, name="digit"),
    )
    model.save(folder / "m.keras")
    model.save(folder / "m.h5")
    model.export(folder / "saved_model", verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved_model"))
    (folder / "m.tflite").write_bytes(converter.convert())
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved_model"))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    generator = np.random.default_rng(0)
    converter.representative_dataset = lambda: (
        [generator.normal(size=(1, 8, 8, 1)).astype(np.float32)] for _ in range(8)
    )
    (folder / "int8.tflite").write_bytes(converter.convert())
    return {
        "keras": folder / "m.keras", "h5": folder / "m.h5", "saved-model": folder / "saved_model",
        "tflite": folder / "m.tflite", "int8": folder / "int8.tflite",
    }  # fmt: skip


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the child does, done here: each child would load TensorFlow anew."""

    def call(function: str, arguments: Mapping[str, Any], *_: object) -> Any:
        assert function == "joulec.ir.lower.worker:lower_file"
        return lower_file(**arguments)

    monkeypatch.setattr("joulec.ir.sandbox.call_in_child", call)


def test_a_child_process_lowers_files(saved: dict[str, Path]) -> None:
    assert lower(saved["keras"]).parity is not None
    with pytest.raises(InputError, match=r"lowering .*m\.keras"):
        lower(saved["keras"], limits=Limits(64 << 20, 60.0))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("kind", ["keras", "h5", "saved-model", "tflite"])
def test_each_file_format(kind: str, saved: dict[str, Path], tmp_path: Path) -> None:
    source = saved[kind]
    if source.is_file():
        source = tmp_path / "model.bin"
        source.write_bytes(saved[kind].read_bytes())
    lowered = lower(source)
    assert lowered.module.origin.format == kind
    assert lowered.parity is not None and lowered.parity.feeds >= 1
    assert max(lowered.parity.outputs.values()) < 1e-5
    (image,), (digit,) = lowered.module.inputs(), lowered.module.graph.outputs
    assert list((image.shape or [])[1:]) == [8, 8, 1]
    if kind != "tflite":
        assert signature(lowered.module) == [("image", "[batch,8,8,1]"), (digit.name, "[batch,3]")]


@pytest.mark.usefixtures("here")
def test_a_savedmodel_keeps_no_slots_of_an_optimizer(tmp_path: Path) -> None:
    """As Keras 2 wrote compiled models; TensorFlow 2.21 revives the optimizer as an object that takes no slots."""
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    class Trained(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.optimizer = tf.Variable(np.eye(3, dtype=np.float32) * 2), tf.Module()
            self.optimizer.momentum = tf.Variable(np.zeros((3, 3), np.float32))

        @tf.function(input_signature=[tf.TensorSpec((None, 3), tf.float32, name="x")])  # type: ignore[untyped-decorator]
        def __call__(self, x: Any) -> Any:
            return {"y": x @ self.weight}

    trained = Trained()
    tf.saved_model.save(trained, str(tmp_path), signatures=trained.__call__)
    proto = saved_model_pb2.SavedModel()
    proto.ParseFromString((tmp_path / "saved_model.pb").read_bytes())
    nodes = proto.meta_graphs[0].object_graph_def.nodes
    found = {child.local_name: child.node_id for child in nodes[0].children}
    optimizer = nodes[found["optimizer"]]
    (momentum,) = [child.node_id for child in optimizer.children if child.local_name == "momentum"]
    slot = {"slot_name": "m", "slot_variable_node_id": momentum, "original_variable_node_id": found["weight"]}
    optimizer.slot_variables.add(**slot)
    (tmp_path / "saved_model.pb").write_bytes(proto.SerializeToString())
    with pytest.raises(Exception, match="add_slot"):
        tf.saved_model.load(str(tmp_path))
    lowered = lower(tmp_path)
    assert signature(lowered.module) == [("x", "[batch,3]"), ("y", "[batch,3]")]
    assert lowered.parity is not None and lowered.parity.feeds == 2


@pytest.mark.usefixtures("here")
def test_operators_that_onnx_has_none_for_are_named(tmp_path: Path) -> None:
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((3, 3), tf.float32, name="x")])  # type: ignore[untyped-decorator]
    def function(x: Any) -> Any:
        return {"y": tf.linalg.cholesky(x)}

    module = tf.Module()
    module.function = function
    tf.saved_model.save(module, str(tmp_path), signatures=function)
    with pytest.raises(InputError, match="tf2onnx knows no ONNX operators for Cholesky"):
        lower(tmp_path)


@pytest.mark.usefixtures("here")
def test_a_quantized_tflite_model_is_accepted_as_quantized(saved: dict[str, Path]) -> None:
    lowered = lower(saved["int8"])
    assert precision_of(lowered.module) == "quantized"


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("kind", ["keras", "h5", "tflite"])
def test_a_truncated_file_is_one_clear_line(kind: str, saved: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / f"broken.{kind}"
    path.write_bytes(saved[kind].read_bytes()[: saved[kind].stat().st_size // 2])
    with pytest.raises(InputError, match=rf"broken\.{kind}") as caught:
        lower(path)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("here")
def test_a_damaged_savedmodel_is_one_clear_line(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "saved_model.pb").write_bytes((saved["saved-model"] / "saved_model.pb").read_bytes()[:100])
    with pytest.raises(InputError, match="saved") as caught:
        lower(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("here")
def test_savedmodel_operators_that_open_files_run_only_when_trusted(tmp_path: Path) -> None:
    import tensorflow as tf

    class Reader(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[tf.TensorSpec((None, 3), tf.float32, name="x")])  # type: ignore[untyped-decorator]
        def __call__(self, x: Any) -> Any:
            return x + tf.cast(tf.strings.length(tf.io.read_file("secret")), tf.float32)

    reader = Reader()
    tf.saved_model.save(reader, str(tmp_path), signatures=reader.__call__)
    with pytest.raises(InputError, match=r"\(ReadFile\) reads or writes files; --trust-code allows it"):
        lower(tmp_path)


@pytest.mark.parametrize(
    ("operator", "what"),
    [
        ("EagerPyFunc", "runs Python code"), ("RpcServerStart", "uses the network"),
        ("WriteFile", "reads or writes files"), ("CacheDatasetV2", "reads or writes files"),
        ("CreateSummaryFileWriter", "reads or writes files"), ("ImmutableConst", "reads or writes files"),
        ("RestoreV2", "reads or writes files"), ("LMDBReader", "reads or writes files"),
        ("ReadVariableOp", None), ("TensorListReserve", None), ("Conv2D", None), ("ShardedFilespec", None),
    ],
)  # fmt: skip
def test_what_operators_do_beyond_computing(operator: str, what: str | None) -> None:
    assert reaches_outside(operator) == what


@pytest.mark.usefixtures("here")
def test_a_lambda_layer_runs_only_when_trusted(tmp_path: Path) -> None:
    from keras import Input, layers

    path = tmp_path / "lambda.keras"
    sequential(Input((4,)), layers.Lambda(lambda x: x * 2, output_shape=(4,))).save(path)
    with pytest.raises(InputError, match="is a Lambda, which carries code; --trust-code allows it"):
        lower(path)
    assert lower(path, trust_code=True).parity is not None
