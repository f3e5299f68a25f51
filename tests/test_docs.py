"""What the documents show is what the repository holds, and it runs."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnx.parser
import pytest
import typer.main

import joulec
from joulec import cli
from joulec.energy import load_profile
from joulec.errors import BudgetError, CheckError, InputError, UnavailableError
from joulec.ir.lower import lower
from joulec.ir.runner import LocalRunner
from joulec.passes import registry, spelling
from joulec.passes.default import simplifying_passes
from joulec.passes.target import Target

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PLUGIN = ROOT / "examples" / "my_passes.py"
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{page.name}" for page in sorted(DOCS.glob("*.md")))]
TARGET = Target("test", "CPUExecutionProvider", 0, 0, None, "generic-server-cpu")

CLIPS = """
<ir_version: 8, opset_import: ["" : 17]>
clips (float[2,8] x, float low) => (float[2,8] y, float[2,8] z)
<float zero = {0}, float one = {1}>
{
    h = Neg (x)
    y = Clip (h, zero)
    s = Clip (h, zero, one)
    t = Clip (h, low)
    z = Add (s, t)
}
"""


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "clips.onnx"
    onnx.save(onnx.parser.parse_model(CLIPS), path)
    return path


def ops(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_the_pass_catalogue_is_up_to_date():
    generate = load("generate", DOCS / "generate.py")
    assert (DOCS / "passes.md").read_text(encoding="utf-8") == generate.catalogue(), "run 'make docs'"


def test_the_page_shows_the_example_file():
    (block,) = re.findall(r"```python title=my_passes\.py\n(.*?)```", page("docs/writing-a-pass.md"), re.DOTALL)
    assert block == PLUGIN.read_text(encoding="utf-8")


def test_the_example_runs_in_a_pipeline_of_ones_own(model: Path):
    kind = registry.with_plugins([PLUGIN])["clip-to-relu"]
    feed = {"x": np.linspace(-2, 2, 16, dtype=np.float32).reshape(2, 8), "low": np.array(-1, np.float32)}
    with LocalRunner() as runner:
        context = joulec.Context(target=TARGET, probes=[feed], runner=runner)
        outcome = joulec.Pipeline([kind()]).run(lower(model).module, context)
    (step,) = outcome.steps
    assert step.status == "applied"
    assert [rewrite.rule for rewrite in step.result.rewrites] == ["clip-at-zero"]
    assert [refusal.reason for refusal in step.result.refusals] == ["its lower bound is computed"]
    assert step.deviation is not None and step.deviation.value == 0
    assert [node.op_type for node in outcome.module.graph] == ["Neg", "Relu", "Clip", "Clip", "Add"]


def test_the_example_runs_from_the_command_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    plugin = ["--plugin", str(PLUGIN), "--passes", "clip-to-relu"]
    assert cli.main(["optimize", str(model), "-o", str(out), "--json", *plugin]) == 0
    report = json.loads(capsys.readouterr().out)["targets"]["cpu"]
    assert ops(out / "model.onnx") == ["Neg", "Relu", "Clip", "Clip", "Add"]
    assert [one["spelling"] for one in report["steps"] if one["status"] == "applied"] == ["upgrade-opset", "clip-to-relu"]


def test_the_command_line_explains_the_example(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["passes", "clip-to-relu", "--plugin", str(PLUGIN)]) == 0
    assert "lower bound of 0" in capsys.readouterr().out


def test_the_example_is_found_as_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_package.py").write_text(PLUGIN.read_text(encoding="utf-8"), encoding="utf-8")
    installed = tmp_path / "my_package-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n", encoding="utf-8")
    (installed / "entry_points.txt").write_text("[joulec.passes]\nmy-passes = my_package\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert "clip-to-relu" not in registry.builtin()
    assert "clip-to-relu" in registry.with_plugins(["my-passes"])


@pytest.mark.parametrize("options", ["bound=1", "=", "{"])
def test_an_option_that_the_example_lacks_is_refused(options: str):
    with pytest.raises(InputError):
        spelling.parse(f"clip-to-relu{{{options}}}", registry.with_plugins([PLUGIN]))


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files(name: str):
    here = (ROOT / name).parent
    targets = [t.partition("#")[0] for t in re.findall(r"\]\(([^)\s]+)\)", page(name)) if "://" not in t]
    assert [target for target in targets if target and not (here / target).exists()] == []


@pytest.mark.parametrize("name", PAGES)
def test_files_that_a_page_names_exist(name: str):
    named = re.findall(r"`((?:joulec|docs|examples|tests|benchmarks)/[\w./-]+\.(?:py|md|toml|yml|json))`", page(name))
    assert [file for file in named if not (ROOT / file).exists()] == []


@pytest.mark.parametrize("name", PAGES)
def test_options_that_a_page_names_exist(name: str):
    foreign = {"--saved-model", "--opset"}  # tf2onnx's
    named = set(re.findall(r"(?<![\w-])--[a-z]+[a-z0-9]*(?:-[a-z0-9]+)*(?![\w-])", page(name))) - foreign
    assert sorted(named - options_of_the_command_line()) == []


@pytest.mark.parametrize("name", [name for name in PAGES if name != "docs/passes.md"])  # which shows only the form
def test_pipelines_that_a_page_shows_parse(name: str):
    known = registry.with_plugins([PLUGIN])
    shown = re.findall(r"--passes ('[^']+'|[a-z0-9-]+(?=\n))", page(name))
    assert all(spelling.parse(text.strip("'"), known) for text in shown)


@pytest.mark.parametrize("name", PAGES)
def test_python_that_a_page_shows_compiles(name: str):
    for block in re.findall(r"```python[^\n]*\n(.*?)```", page(name), re.DOTALL):
        compile(block, name, "exec")


@pytest.mark.parametrize("name", ["README.md", "docs/artefact.md"])
def test_exit_codes_are_those_of_the_errors(name: str):
    kinds = (InputError, BudgetError, CheckError, UnavailableError)
    told = [int(code) for code in re.findall(r"^\| (\d+) \|", page(name), re.MULTILINE)]
    assert sorted(told) == sorted([0, cli.INTERNAL_ERROR, cli.INTERRUPTED, *(kind.exit_code for kind in kinds)])


def test_every_default_pass_is_in_the_catalogue():
    told = re.findall(r"^## ([a-z0-9-]+)$", page("docs/passes.md"), re.MULTILINE)
    assert {one.pass_name() for one in simplifying_passes()} <= set(told) == set(registry.builtin())


def test_the_first_commands_of_the_readme_are_targets_of_make():
    goals = set(re.findall(r"^([a-z]+):", page("Makefile"), re.MULTILINE))
    assert set(re.findall(r"^    make (\w+)", page("README.md"), re.MULTILINE)) <= goals


def options_of_the_command_line() -> set[str]:
    commands = typer.main.get_group(cli.app)
    parameters = [p for command in [commands, *commands.commands.values()] for p in command.params]
    return {"--help", *(name for p in parameters for name in (*p.opts, *p.secondary_opts))}


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_device_profile_of_the_how_to_loads(tmp_path: Path) -> None:
    shown = re.search(r"```toml\n(base = .*?)```", page("docs/how-to.md"), re.DOTALL)
    assert shown is not None
    (tmp_path / "box.toml").write_text(shown[1])
    assert load_profile(tmp_path / "box.toml").power["static"].value == 11
