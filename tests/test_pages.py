"""Pages to look at: from the real command line, and inside a notebook."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from compile_kit import cnn

import joulec


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return cnn(tmp_path / "cnn.onnx")


def estimate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "joulec", "estimate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_estimate_writes_a_page_beside_its_table(model: Path, tmp_path: Path) -> None:
    place = tmp_path / "costs.html"
    done = estimate(str(model), "--shape", "N=4", "--html", str(place))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"page  {place}" in done.stdout
    page = place.read_text(encoding="utf-8")
    for name in ("treemap", "roofline", "nodes"):
        assert f'<section id="{name}">' in page
    assert "conv1 (Conv)" in page and "<script" not in page
    first = place.read_bytes()
    assert estimate(str(model), "--shape", "N=4", "--html", str(place)).returncode == 0
    assert place.read_bytes() == first, "the same model gives the same bytes"


@pytest.mark.parametrize(("place", "said"), [("costs.png", "name a file that ends in .html"), ("none/costs.html", "its folder does not exist")])
def test_a_page_goes_only_where_a_page_belongs(model: Path, tmp_path: Path, place: str, said: str) -> None:
    done = estimate(str(model), "--html", str(tmp_path / place))
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr and not (tmp_path / place).exists()


def test_a_notebook_shows_models_results_and_artefacts_in_a_frame_of_their_own(model: Path, tmp_path: Path) -> None:
    alone = joulec.show(str(model), shape={"N": 4})
    frame = alone._repr_html_()
    inside = re.fullmatch(r'<iframe srcdoc="([^"]*)" sandbox style="[^"]*"></iframe>', frame)
    assert inside is not None and html.unescape(inside[1]) == alone.html
    result = joulec.optimize(str(model), out=tmp_path / "out", passes="fold-constants")
    assert joulec.show(result).html == joulec.show(result.reports["cpu"]).html
    page = joulec.show(tmp_path / "out").html
    assert 'id="passes"' in page and page == (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    saved = joulec.show(result).save(tmp_path / "page.html")
    assert saved.read_text(encoding="utf-8") == joulec.show(result).html


def test_a_folder_that_is_no_artefact_is_said(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"report": {}}')
    with pytest.raises(joulec.InputError, match="not a manifest of this version"):
        joulec.show(tmp_path)


def test_layers_are_a_table_too_and_in_the_json(tmp_path: Path) -> None:
    import onnx

    place = cnn(tmp_path / "cnn.onnx")
    proto = onnx.load(place)
    for index, node in enumerate(proto.graph.node):
        node.name = f"net/{'stem' if index < 4 else 'head'}/{node.name}"
    onnx.save(proto, place)
    said = estimate(str(place), "--shape", "N=1").stdout
    table = said[said.index("By layer") :].splitlines()
    assert [line.split()[-1] for line in table[2:4]] == ["stem", "head/conv4"], "most of it is in the head"
    found = json.loads(estimate(str(place), "--shape", "N=1", "--json").stdout)
    assert {node["layer"] for node in found["nodes"]} == {node.name for node in proto.graph.node}
    assert {name for name, _ in found["roofs"]["compute"]} == {"fp32"} and len(found["roofs"]["memory"]) == 2
