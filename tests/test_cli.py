"""The command line: spellings, exit codes, and errors in plain words. The real process where only that can tell."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main

import joulec
from joulec import cli, cli_options
from joulec.errors import BudgetError, CheckError, InputError, UnavailableError


def run(*arguments: str, python: tuple[str, ...] = (), **more: Any) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own."""
    command = [sys.executable, *python, "-m", "joulec", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **more)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command in this process: exit code, stdout, stderr."""
    monkeypatch.setattr(cli, "_silence_libraries", lambda: None)  # pytest's warning filters stay

    def invoke(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return invoke


# -- the real process -----------------------------------------------------------------------------------------------


def test_version():
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"joulec {joulec.__version__}\n", "")


def test_help_and_version_import_nothing_heavy():
    code = (
        "import sys; from joulec.cli import main\n"
        "assert main(['--help']) == 0\nassert main(['--version']) == 0\n"
        "heavy = {'onnx', 'onnx_ir', 'onnxruntime', 'tensorflow', 'torch', 'numpy', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "optimize" in done.stdout and "Exit codes" in done.stdout


def test_a_wrong_flag_is_two_plain_lines():
    done = run("optimize", "model.onnx", "--unheard-of")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: No such option: --unheard-of\ntry 'joulec optimize --help'\n"


def test_a_closed_pipe_is_quiet():
    command = f"{sys.executable} -m joulec optimize --help | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert done.returncode in (0, 1, 141)


def test_the_help_is_readable_at_80_columns():
    done = run("optimize", "--help", env={"COLUMNS": "80", "PATH": "/usr/bin"})
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "fold-constants" in done.stdout


# -- usage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bake"], "No such command 'bake'"),
        (["optimize"], "no model: write 'joulec optimize MODEL -o DIR'"),
        (["optimize", "m.onnx"], "no place for the artefact: add -o DIR"),
        (["optimize", "m.onnx", "-o", "d", "--max-drop", "lots"], "--max-drop lots: write 0.01, 1% or none"),
        (["optimize", "m.onnx", "-o", "d", "--max-drop", "-1"], "--max-drop -1: write 0.01, 1% or none"),
        (["optimize", "m.onnx", "-o", "d", "--sparsity", "1.5"], "--sparsity"),
        (["optimize", "m.onnx", "-o", "d", "--memory-limit", "much"], "--memory-limit much: write a size"),
        (["optimize", "m.onnx", "-o", "d", "--time-limit", "0s"], "--time-limit 0s: write a duration"),
        (["optimize", "m.onnx", "-o", "d", "--shape", "batch"], "--shape 'batch': 'batch' is not NAME=SIZE"),
        (["optimize", "m.onnx", "-o", "d", "--config", "none.toml"], "none.toml: no such file"),
        (["optimize", "m.onnx", "-o", "d", "--threads", "0"], "--threads"),
        (["optimize", "m.onnx", "-o", "d", "--threads", "100000"], "--threads"),
        (["optimize", "m.onnx", "-o", "d", "--seed", "-1"], "--seed"),
        (["estimate"], "Missing argument"),
        (["verify", "a.onnx"], "Missing argument"),
    ],
)
def test_bad_usage_is_exit_2_and_one_reason(call, arguments, said):
    code, out, err = call(*arguments)
    assert code == 2
    assert out == ""
    assert said in err
    assert 1 <= len(err.splitlines()) <= 3
    assert err.startswith("error: ")


def test_no_command_shows_the_help(call):
    code, out, _ = call()
    assert code == 2
    assert "Usage: joulec" in out


def test_commands_have_the_promised_names():
    command: Any = typer.main.get_command(cli.app)
    assert list(command.commands) == [
        "optimize", "simplify", "estimate", "carbon", "gate", "verify", "explain", "bisect", "measure", "finetune", "passes", "targets",
        "lint", "package", "place", "devices", "calibrate-device",
    ]  # fmt: skip


def test_options_have_the_promised_spellings():
    command: Any = typer.main.get_command(cli.app)
    found = {name for option in command.commands["optimize"].params for name in (*option.opts, *option.secondary_opts)}
    promised = {
        "--out", "-o", "--target", "--data", "--metric", "--max-drop", "--shape", "--passes", "--sparsity", "--int8",
        "--no-int8", "--config", "--decisions", "--json", "--plugin", "--custom-ops", "--trust-code", "--memory-limit",
        "--time-limit", "--threads", "--seed", "--device", "--remeasure",
    }  # fmt: skip
    assert promised <= found


# -- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"), [("0.01", 0.01), ("1%", 0.01), ("0.5 %", 0.005), ("none", None), (0.02, 0.02), ("0", 0.0)]
)
def test_max_drop(text, value):
    assert cli_options.drop(text) == pytest.approx(value) if value is not None else cli_options.drop(text) is None


@pytest.mark.parametrize("text", ["", "nan", "inf", "-0.1", "1%%", "%"])
def test_max_drop_refused(text):
    with pytest.raises(InputError, match="max-drop"):
        cli_options.drop(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GiB", 8 << 30), ("8G", 8 << 30), ("512MB", 512_000_000), ("1.5KiB", 1536), ("1000", 1000), ("7B", 7)],
)
def test_memory_sizes(text, size):
    assert cli_options.memory_size(text) == size


@pytest.mark.parametrize(("text", "seconds"), [("600s", 600), ("10m", 600), ("1h", 3600), ("90", 90), ("500ms", 0.5)])
def test_durations(text, seconds):
    assert cli_options.duration(text) == seconds


# -- joulec.toml ----------------------------------------------------------------------------------------------------


def test_every_option_of_optimize_is_a_key_of_joulec_toml():
    command: Any = typer.main.get_command(cli.app)
    options = {option.name for option in command.commands["optimize"].params} - {"help", "config", "json", "dump"}
    assert options == set(cli_options.CONFIG_KEYS)


def test_flags_win_over_the_file(tmp_path: Path):
    config = tmp_path / "joulec.toml"
    config.write_text(
        'model = "m.keras"\nout = "a"\nmax-drop = "none"\nint8 = true\nthreads = 4\nplugin = ["p.py", "entry"]\n'
        'target = ["cpu", "cuda"]\n[shape]\nbatch = 8\n'
    )
    flags = {
        "config": config,
        "out": Path("b"),
        "int8": False,
        "threads": None,
        "target": None,
        "custom_ops": (),
        "shape": [],
        "trust_code": False,
    }
    found = cli_options.merged(flags)
    assert found.pop("limits").seconds == 600
    assert found == {
        "model": tmp_path / "m.keras", "out": Path("b"), "max_drop": None, "int8": False, "threads": 4,
        "plugins": [str(tmp_path / "p.py"), "entry"], "target": ["cpu", "cuda"], "shape": {"batch": 8},
    }  # fmt: skip


@pytest.mark.parametrize("line", ["threads = 0", "threads = 100000", "seed = -1"])
def test_the_bounds_of_flags_hold_in_the_file(call, tmp_path: Path, line: str):
    (tmp_path / "joulec.toml").write_text(f'model = "m.onnx"\n{line}\n')
    code, _, err = call("optimize", "--config", str(tmp_path / "joulec.toml"), "-o", "d")
    assert code == 2 and err.startswith(f"error: --{line.replace(' = ', ' ')}: write a number from ")


def test_an_unknown_key_is_exit_2(call, tmp_path: Path):
    (tmp_path / "joulec.toml").write_text('model = "m.onnx"\nmax-dorp = 0.1\n')
    code, _, err = call("optimize", "--config", str(tmp_path / "joulec.toml"))
    assert code == 2
    assert "unknown key 'max-dorp'; did you mean 'max-drop'?" in err


# -- errors of the work itself ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("m.onnx: truncated"), 2, "error: m.onnx: truncated\n"),
        (BudgetError("drops by 0.2"), 3, "error: drops by 0.2\n"),
        (CheckError("output 'y' differs"), 4, "error: output 'y' differs\n"),
        (UnavailableError("no CUDA"), 5, "error: no CUDA\n"),
        (InputError("node '\x1b[31m\n\u202ex' is odd"), 2, "error: node '\\x1b[31m \\u202ex' is odd\n"),
        (FileNotFoundError(2, "No such file or directory", "x.npz"), 2, "error: x.npz: No such file or directory\n"),
        (KeyError("bug"), 1, "internal error: KeyError: 'bug' (a bug in joulec; --debug shows where)\n"),
        (KeyboardInterrupt(), 130, "interrupted; nothing was left half-written\n"),
    ],
)
def test_exit_codes(call, monkeypatch, error, code, said):
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(cli, "_known_passes", fail)
    assert call("passes") == (code, "", said)


def test_debug_shows_the_traceback_wherever_it_stands(call, monkeypatch):
    def fail(*_: Any) -> None:
        raise KeyError("bug")

    monkeypatch.setattr(cli, "_known_passes", fail)
    for arguments in (["--debug", "passes"], ["passes", "--debug"]):
        with pytest.raises(KeyError):
            call(*arguments)


def test_a_very_long_message_is_cut(call, monkeypatch):
    def fail(*_: Any) -> None:
        raise InputError("x" * 100_000)

    monkeypatch.setattr(cli, "_known_passes", fail)
    _, _, err = call("passes")
    assert len(err) < 2000


# -- the commands, on a model of a few nodes --------------------------------------------------------------------

GRAPH = """g (float[batch, 4] x) => (float[batch, 4] y) {
    a = Identity(x)
    b = Relu(a)
    c = Constant<value = float {2}>()
    y = Mul(b, c)
}"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    import onnx
    import onnx.parser

    made = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 17]>\n{GRAPH}')
    path = tmp_path / "small.onnx"
    onnx.save(made, path)
    return path


def test_passes_lists_them_and_explains_one(call):
    code, out, _ = call("passes")
    assert code == 0
    assert re.search(r"^fold-constants +exact ", out, re.MULTILINE)
    code, out, _ = call("passes", "fold-constants")
    assert code == 0
    assert out.startswith("fold-constants (exact)")
    code, _, err = call("passes", "fold-constnats")
    assert (code, err) == (2, "error: no pass is called 'fold-constnats'; 'joulec passes' lists them\n")


def test_targets(call):
    code, out, _ = call("targets")
    assert code == 0
    assert re.search(r"^cpu +CPUExecutionProvider +yes ", out, re.MULTILINE)
    assert re.search(r"^tensorrt +TensorrtExecutionProvider +", out, re.MULTILINE)


def test_devices_lists_them_and_shows_every_number_with_its_source(call):
    code, out, _ = call("devices")
    assert code == 0
    assert re.search(r"^h100 +96 W +700 W ", out, re.MULTILINE)
    code, out, _ = call("devices", "h100", "--json")
    assert json.loads(out)["memory"]["dram_energy"]["value"] == 100
    code, out, _ = call("devices", "h100")
    assert "memory.dram_energy" in out and "93 to 108" in out
    assert call("devices", "h1000")[0] == 2


def test_estimate_prints_a_table_or_json(call, model):
    code, out, _ = call("estimate", str(model), "--shape", "batch=8")
    assert code == 0
    assert "small.onnx on generic-server-cpu" in out and "Relu" in out and "per inference" in out
    code, out, _ = call("estimate", str(model), "--json")
    found = json.loads(out)
    assert code == 0
    assert found["total_joules"] > 0 and "batch" in found["assumed"]


def test_an_unknown_shape_lists_the_known_ones(call, model):
    code, _, err = call("estimate", str(model), "--shape", "bach=8")
    assert code == 2
    assert "bach" in err and "batch" in err


def test_missing_files_and_targets(call, model, tmp_path):
    assert call("estimate", str(tmp_path / "none.onnx"))[0] == 2
    code, _, err = call("estimate", str(model), "--target", "tpu")
    assert code == 2
    assert "cpu, cuda, tensorrt" in err


def test_simplify_then_verify_then_change(call, model, tmp_path):
    import onnx

    out = tmp_path / "out.onnx"
    code, text, err = call("simplify", str(model), str(out))
    assert code == 0, err
    assert "What changed" in text
    assert len(onnx.load(out).graph.node) == 2
    code, text, _ = call("verify", str(model), str(out))
    assert (code, text.splitlines()[0]) == (0, "equal")
    changed = onnx.load(out)
    three = onnx.numpy_helper.from_array(np.array(3, np.float32), changed.graph.initializer[0].name)
    changed.graph.initializer[0].CopyFrom(three)
    onnx.save(changed, out)
    code, text, _ = call("verify", str(model), str(out), "--json")
    assert code == 4
    assert json.loads(text)["equal"] is False


def test_measure_itself(call, model):
    code, out, _ = call("measure", str(model), "--seconds", "0.1", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["low"] <= found["ratio"] <= found["high"]


def test_optimize_writes_the_artefact_and_says_up_to_date(call, model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "build"
    code, out, err = call("optimize", str(model), "-o", str(place))
    assert code == 0, err
    assert "INT8" in out and "no calibration data" in out and f"report    {place}/report.html" in out
    assert {"model.onnx", "session.json", "manifest.json", "report.html", "decisions.json"} <= {
        f.name for f in place.iterdir()
    }
    code, out, _ = call("optimize", str(model), "-o", str(place))
    assert code == 0
    assert "up to date" in out
    code, out, _ = call("optimize", str(model), "-o", str(place), "--json")
    assert json.loads(out)["targets"]["cpu"]["status"] == "up to date"
