"""Metrics and the user's own Python files."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from joulec.data import load_function, load_metric
from joulec.errors import CheckError, InputError


def failure(call, *args) -> str:
    with pytest.raises(InputError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_metric_from_a_file(tmp_path):
    (tmp_path / "helper.py").write_text("SCALE = 2\n")
    path = tmp_path / "metric.py"
    path.write_text("from helper import SCALE\ndef score(infer):\n    return float(infer({})['y'].mean()) * SCALE\n")
    metric = load_metric(f"{path}:score")
    assert metric(lambda feed: {"y": np.array([0.25])}) == 0.5
    assert metric.name == "metric.py:score"
    assert "SCALE" in metric.source
    assert str(tmp_path) not in sys.path


def test_a_metric_from_python_carries_the_text_of_its_file():
    metric = load_metric(test_a_metric_from_a_file)
    assert "def test_a_metric_from_a_file" in metric.source
    assert load_metric(lambda infer: np.float32(1))(lambda feed: {}) == 1.0


@pytest.mark.parametrize("value", [None, "0.9", float("nan"), float("inf"), np.ones(3), {}])
def test_anything_but_one_finite_number_is_refused(value):
    assert "it must return one finite number" in failure(load_metric(lambda infer: value), lambda feed: {})


def test_failures_name_the_users_file_and_line(tmp_path):
    path = tmp_path / "m.py"
    path.write_text("import json\n\ndef bad(infer):\n    return json.loads('{')\n")
    assert failure(load_metric(f"{path}:bad"), None).startswith("m.py:bad failed at line 4: JSONDecodeError:")
    path.write_text("x = 1\nraise ValueError('two\\nlines')\n")
    assert failure(load_function, f"{path}:bad") == f"{path}: fails to load at line 2: ValueError: two"
    path.write_text("def (:\n")
    assert "fails to load at line 1: SyntaxError" in failure(load_function, f"{path}:bad")
    path.write_text("import sys\nsys.exit(0)\n")
    assert "fails to load at line 2: SystemExit" in failure(load_function, f"{path}:bad")
    path.write_bytes(b"\xff\xfe\0")
    assert failure(load_function, f"{path}:bad").startswith(f"{path}: fails to load: SyntaxError")


def test_a_metric_cannot_end_joulec(tmp_path):
    path = tmp_path / "m.py"
    path.write_text("import sys\ndef bad(infer):\n    sys.exit(0)\n")
    assert failure(load_metric(f"{path}:bad"), None) == "m.py:bad failed at line 3: SystemExit: 0"


def test_what_joulec_raises_inside_a_metric_stays_what_it_is():
    def metric(infer):
        raise CheckError("the model fails")

    with pytest.raises(CheckError, match="the model fails"):
        load_metric(metric)(lambda feed: {})


@pytest.mark.parametrize("spec", ["metric.py", "metric:f", "metric.py:", "metric.py:not a name", ":f"])
def test_specs_of_another_form(spec):
    assert "write FILE.py:FUNCTION" in failure(load_metric, spec)


def test_missing_files_and_functions(tmp_path):
    assert failure(load_metric, f"{tmp_path}/none.py:f") == f"{tmp_path}/none.py: no such file"
    (tmp_path / "m.py").write_text("")
    assert failure(load_metric, f"{tmp_path}/m.py:f") == f"{tmp_path}/m.py: has no function 'f'"


def test_importing_joulec_data_loads_no_framework():
    code = "import sys, joulec.data; print([m for m in ('tensorflow', 'torch', 'onnxruntime') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
