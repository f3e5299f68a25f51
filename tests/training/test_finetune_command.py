"""`joulec finetune` at a real prompt: what it writes, and what it refuses in one line with its exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the kit lies one folder up

from command_kit import run_all

from joulec.errors import InputError
from joulec.training.finetuning import finetune

WRONG = [
    (["m.keras", "--data", "d.npz"], 2, "no output: write -o OUT.keras"),
    (["m.keras", "-o", "o.keras"], 2, "no data: write --data DATA"),
    (["m.keras", "--data", "d.npz", "-o", "o.onnx"], 2, "o.onnx: name a file that ends in .keras"),
    (["m.keras", "--data", "d.npz", "-o", "no/o.keras"], 2, "its folder does not exist"),
    (["m.keras", "--data", "d.npz", "-o", "o.keras", "--epochs", "0"], 2, "--epochs 0: write a number from 1"),
    (["m.keras", "--data", "d.npz", "-o", "o.keras", "--sparsity", "0.5", "--masks", "x"], 2, "give one"),
    (["m.keras", "--data", "d.npz", "-o", "o.keras", "--gradual"], 2, "there is nothing to prune"),
    (["m.keras", "--data", "d.npz", "-o", "o.keras", "--max-drop", "much"], 2, "--max-drop much: write 0.01"),
]


def test_wrong_usage_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    done = run_all([["finetune", *arguments] for arguments, _, _ in WRONG], tmp_path)
    for (arguments, code, said), run in zip(WRONG, done, strict=True):
        assert run.code == code and said in run.err and run.err.count("\n") == 1, (arguments, run)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".cache")] == []


def keras_files(folder: Path) -> Any:
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    y = generator.integers(0, 3, 120)
    x = (generator.standard_normal((120, 8)) * 0.3 + np.eye(3, 8)[y]).astype("f")
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((8,), name="x"), layers.Dense(16, "relu", name="a"), layers.Dense(3, name="b")]
    )
    model.save(folder / "m.keras")
    keras.Sequential([keras.Input((8,)), layers.Lambda(lambda value: value), layers.Dense(3)]).save(
        folder / "code.keras"
    )
    np.savez(folder / "d.npz", x=x, y=y)
    np.savez(folder / "labels.npz", y=y)
    np.savez(folder / "seven.npz", x=x[:, :7], y=y)
    np.savez(folder / "masks.npz", **{"a/kernel": generator.random((8, 16)) > 0.5})
    np.savez(folder / "foreign.npz", **{"c/kernel": np.ones((2, 2), bool)})
    (folder / "torn.keras").write_bytes((folder / "m.keras").read_bytes()[:900])
    (folder / "data.py").write_text(
        "import numpy as np, tensorflow as tf\n"
        "def batches():\n"
        "    found = np.load('d.npz')\n"
        "    return tf.data.Dataset.from_tensor_slices((found['x'], found['y'])).batch(30)\n"
        "def broken():\n    return 1 / 0\n"
    )
    return keras


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_models_and_data_from_files(tmp_path: Path) -> None:
    keras = keras_files(tmp_path)
    runs = [
        (["m.keras", "--data", "data.py:batches", "--validation", "d.npz", "--masks", "masks.npz", "-o", "o.keras",
          "--epochs", "1", "--json"], 0, ""),
        (["code.keras", "--data", "d.npz", "-o", "x.keras"], 2, "is a Lambda, which carries code; --trust-code allows"),
        (["torn.keras", "--data", "d.npz", "-o", "x.keras"], 2, "torn.keras: a damaged"),
        (["m.keras", "--data", "data.py:broken", "-o", "x.keras"], 2, "data.py:broken failed at line 6: ZeroDivision"),
    ]  # fmt: skip
    done = run_all([["finetune", *arguments] for arguments, _, _ in runs], tmp_path)
    for (arguments, code, said), run in zip(runs, done, strict=True):
        assert run.code == code and said in run.err, (arguments, run)
        assert run.err.count("\n") == (code != 0), run
    report = json.loads(done[0].out)
    assert report["files"] == ["o.keras"] and report["sparsity"] > 0.4 and "val_accuracy" in report["history"]
    mask = np.load(tmp_path / "masks.npz")["a/kernel"]
    kernel = np.asarray(keras.models.load_model(tmp_path / "o.keras").get_layer("a").kernel)
    assert not kernel[~mask].any() and kernel[mask].all()
    assert not (tmp_path / "x.keras").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_data_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keras_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    wrong = [
        ({"data": "d.npz", "masks": "foreign.npz"}, "names no weight of the model"),
        ({"data": "seven.npz"}, r"has shape \[120, 7\], the model takes \['N', 8\]"),
        ({"data": "labels.npz"}, "no array for input 'x'; it holds no inputs"),
        ({"data": "data.py"}, "name the function too"),
        ({"data": lambda: 3}, "a int; it must be a tf.data.Dataset"),
        ({"data": (np.zeros((9, 8), "f"), np.full(9, 3))}, "labels lie between 0 and 3, the model has 3 classes"),
        ({"data": (np.zeros((9, 8), "f"), np.zeros(8, int))}, r"differ in their number of samples: \[8, 9\]"),
        ({"data": "d.npz", "loss": "no_such"}, "Keras knows no such loss"),
    ]
    for given, said in wrong:
        with pytest.raises(InputError, match=said):
            finetune("m.keras", **given)
