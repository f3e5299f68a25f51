"""joulec.toml."""

from __future__ import annotations

from pathlib import Path

import pytest

from joulec.config import SIZE_LIMIT, load_config
from joulec.errors import InputError

KNOWN = {
    "model": Path,
    "out": Path,
    "target": list[str],
    "data": str,
    "metric": str | None,
    "max-drop": str | float,
    "shape": str | dict,
    "sparsity": float,
    "int8": bool,
    "plugin": list[str],
    "threads": int,
}
PATHS = {"data", "metric", "plugin"}


def load(folder: Path, text: str) -> dict:
    (folder / "joulec.toml").write_text(text)
    return load_config(folder / "joulec.toml", KNOWN, PATHS)


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(InputError) as caught:
        load(folder, text)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert str(folder / "joulec.toml") in str(caught.value)
    return str(caught.value)


def test_every_kind_of_option(tmp_path):
    text = """
        model = "small.keras"
        target = ["cpu", "cuda"]
        metric = "metric.py:accuracy"
        max_drop = "1%"
        sparsity = 1
        int8 = false
        threads = 2
        plugin = "mine.py"
        [shape]
        batch = 8
    """
    assert load(tmp_path, text) == {
        "model": tmp_path / "small.keras",
        "target": ["cpu", "cuda"],
        "metric": str(tmp_path / "metric.py:accuracy"),
        "max-drop": "1%",
        "sparsity": 1.0,
        "int8": False,
        "threads": 2,
        "plugin": [str(tmp_path / "mine.py")],
        "shape": {"batch": 8},
    }
    assert isinstance(load(tmp_path, "sparsity = 1")["sparsity"], float)
    assert load(tmp_path, 'target = "cpu"\nmax-drop = 0.01\nshape = "n=1"') == {
        "target": ["cpu"], "max-drop": 0.01, "shape": "n=1",
    }  # fmt: skip


def test_paths_are_relative_to_the_file_unless_absolute_and_random_is_no_path(tmp_path):
    assert load(tmp_path, 'model = "/m.onnx"\ndata = "random"') == {"model": Path("/m.onnx"), "data": "random"}
    assert load(tmp_path, 'out = "../b"')["out"] == tmp_path / "../b"


def test_unknown_keys_name_the_closest(tmp_path):
    assert "unknown key 'max_dorp'; did you mean 'max-drop'?" in refusal(tmp_path, "max_dorp = 1")
    assert "unknown key 'zzz'; known keys: model, out," in refusal(tmp_path, "zzz = 1")
    assert "'max-drop' is given twice" in refusal(tmp_path, "max_drop = 1.0\nmax-drop = 2.0")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("int8 = 1", "'int8' must be true or false, not 1"),
        ("threads = true", "'threads' must be a whole number, not True"),
        ("threads = 1.5", "'threads' must be a whole number, not 1.5"),
        ("sparsity = '0.5'", "'sparsity' must be a number, not '0.5'"),
        ("target = ['cpu', 1]", "'target' must be a list of strings"),
        ("max-drop = true", "'max-drop' must be a string or a number, not True"),
        ("model = ''", "'model' must be a path"),
        ("metric = 1", "'metric' must be a string, not 1"),
        ("shape = 2024-01-01", "'shape' must be a string or a table"),
        ("threads =", "not valid TOML"),
    ],
)
def test_wrong_values(tmp_path, line, reason):
    assert reason in refusal(tmp_path, line)


def test_files_that_are_no_configuration(tmp_path):
    with pytest.raises(InputError, match=r"none\.toml: no such file"):
        load_config(tmp_path / "none.toml", KNOWN)
    (tmp_path / "joulec.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not valid TOML"):
        load_config(tmp_path / "joulec.toml", KNOWN)
    assert "larger than 1 MiB" in refusal(tmp_path, "#" * (SIZE_LIMIT + 1))
    assert "not valid TOML" in refusal(tmp_path, "model = " + "[" * 50000)
