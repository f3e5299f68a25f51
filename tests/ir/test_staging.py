"""Large weights that lie in files already are not written anew for a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from joulec.ir import staging
from joulec.ir.child import ChildRunner
from joulec.ir.module import Module
from joulec.ir.onnx_file import read
from joulec.ir.runner import LocalRunner, Runner
from joulec.ir.sandbox import Limits
from joulec.ir.session import SessionOptions
from joulec.ir.staging import Staged, stage

WIDTH = 64
X = np.ones((1, WIDTH), np.float32)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
    """y = Relu(x w) + b, with w in a file beside the model; what does not fit into 256 bytes counts as large."""
    monkeypatch.setattr(staging, "INLINE_LIMIT", 512)
    weights = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32)
    (tmp_path / "w.bin").write_bytes(weights.tobytes())
    w = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=weights.shape, data_location=TensorProto.EXTERNAL)
    w.external_data.add(key="location", value="w.bin")
    b = helper.make_tensor("b", TensorProto.FLOAT, [1], [2.0])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Relu", ["m"], ["r"]),
        helper.make_node("Add", ["r", "b"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [w, b])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    return read(tmp_path / "m.onnx")


@pytest.fixture(params=["local", "child"])
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    with LocalRunner() if request.param == "local" else ChildRunner(Limits(4 << 30, 60.0)) as made:
        yield made


def test_only_the_graph_is_written(module: Module, tmp_path: Path) -> None:
    folder = tmp_path / "staged"
    folder.mkdir()
    staged = stage(module, folder)
    assert staged.weights == tmp_path
    assert [file.name for file in folder.iterdir()] == ["model.onnx"]
    assert staged.path.stat().st_size < 1000
    assert Staged.from_json(staged.to_json()) == staged


def test_it_runs_with_the_weights_of_the_input(module: Module, runner: Runner, tmp_path: Path) -> None:
    weights = np.fromfile(tmp_path / "w.bin", np.float32).reshape(WIDTH, WIDTH)
    outputs = runner.run(runner.load(module, extra_outputs=["m"]), {"x": X})
    np.testing.assert_allclose(outputs["m"], X @ weights, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(outputs["y"], np.maximum(X @ weights, 0) + 2, rtol=1e-5, atol=1e-5)
    assert sum(runner.kernels(module, SessionOptions()).values()) == 3


def test_weights_of_our_own_that_are_too_large_are_written(module: Module, tmp_path: Path) -> None:
    module.load_weights()
    folder = tmp_path / "staged"
    folder.mkdir()
    assert stage(module, folder).weights is None


def test_weights_in_two_folders_are_written(module: Module, runner: Runner, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "v.bin").write_bytes(np.ones(WIDTH, np.float32).tobytes())
    import onnx_ir as ir

    tensor = ir.ExternalTensor(
        "v.bin", 0, WIDTH * 4, ir.DataType.FLOAT, shape=ir.Shape([WIDTH]), name="b", base_dir=elsewhere
    )
    module.graph.initializers["b"].const_value = tensor
    folder = tmp_path / "staged"
    folder.mkdir()
    assert stage(module, folder).weights is None
    assert runner.run(runner.load(module), {"x": X})["y"].min() >= 1.0
