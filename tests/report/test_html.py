"""The page: deterministic, offline, and safe whatever a model calls its nodes."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

from report_sample import EVIL, decisions, estimate, node, report, steps

from joulec.report.data import EnergyChange, Latency, Report, Roofs, RungReport, Sparsity
from joulec.report.html import MAX_NODES, node_rows, render, render_estimate

VOID = {"meta", "br", "link", "img", "hr", "line", "polyline"}


class _Balance(HTMLParser):
    """Fails on a tag that closes what is not open, and collects the tags seen."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def tags(page: str) -> set[str]:
    parser = _Balance()
    parser.feed(page)
    assert parser.open == []
    return parser.seen


def everywhere(text: str) -> Report:
    """A report that carries `text` in every place that a model or a user can fill."""
    energy = EnergyChange(
        estimate([node(text, text, 1e-3, domain=text, kernel=text)]),
        estimate([node(text, text, 1e-3, domain=text, kernel=text)], unknown=[text], assumed=[text], notes=[text]),
        ((text, 1.0, 2.0),),
    )
    return dataclasses.replace(
        report(text),
        model=text,
        format=text,
        target=text,
        device=text,
        orders=(text,),
        energy=energy,
        steps=tuple(
            dataclasses.replace(s, spelling=text, notes=(text, text), rules={text: 1}, reason=text) for s in steps(text)
        ),
        decisions=tuple(dataclasses.replace(d, what=text, reason=text) for d in decisions()),
        notes=(text,),
        checks=(RungReport(text, "passed", text),),
        sparsity=(Sparsity(text, 1, 2),),
        parity={"outputs": {text: 0.0}, "feeds": 1, "note": text},
        files={text: 1},
        directory=text,
    )


def test_the_same_report_gives_the_same_bytes():
    assert render(report()) == render(Report.from_json(report().to_json()))


def test_measured_times_stand_only_in_marked_elements():
    slower = dataclasses.replace(report(), latency=Latency(3.3, 4.4, 0.75, 0.7, 0.8, 99, 2))
    other = dataclasses.replace(slower, steps=tuple(dataclasses.replace(s, seconds=9.9) for s in slower.steps))
    assert _unmarked(render(report())) == _unmarked(render(other)) != ""
    assert "12.3 ms" not in _unmarked(render(report()))


def _unmarked(page: str) -> str:
    return re.sub(r"<(\w+)[^>]* data-timing.*?</\1>", "", page, flags=re.DOTALL)


def test_nothing_is_loaded_from_elsewhere():
    page = render(report())
    assert tags(page).isdisjoint({"script", "link", "img", "iframe", "object"})
    assert "url(" not in page and "http" not in page.replace("http-equiv", "")


def test_hostile_names_stay_text_everywhere():
    page = render(everywhere(EVIL))
    assert tags(page).isdisjoint({"script"})
    assert "<script" not in page and "\x1b" not in page and "\u202e" not in page
    assert page.count("&lt;script&gt;") > 20


def test_the_headline_and_the_reasons_are_in_plain_words():
    page = render(report())
    assert "1.51x as fast, 61\u00a0% less energy, 73\u00a0% smaller, metric lower by 0.0014" in page
    assert "INT8 of convolutions only" in page and "slower than INT8 everywhere" in page
    assert "refused fuse-batch-norm at <code>conv1/Conv</code>: bias has rank 3" in page
    assert "and 12 more refusals" in page


def test_an_empty_report_still_gives_a_page():
    bare = Report("0.1.0", "m.onnx", "onnx", "simplify", "", "written", (), (), (), 3, 2, 10, 10)
    page = render(bare)
    assert "3 nodes became 2 nodes" in page
    assert 'id="operators"' not in page and 'id="checks"' not in page
    tags(page)


def test_the_page_of_an_estimate_is_offline_deterministic_and_safe_too():
    nodes = [node(f"{EVIL}/a", EVIL, 2e-3, domain=EVIL, kernel=EVIL, seconds=1e-3), node("b/c", "Conv", 1e-3, seconds=1e-4)]
    priced = estimate([*nodes, node("x", "Mystery", None)], unknown=[EVIL], assumed=[EVIL], notes=[EVIL], device=EVIL)
    roofs = Roofs(((EVIL, 1e12),), ((EVIL, 1e10),))
    page = render_estimate(EVIL, priced, {"b/c": f"{EVIL}/{EVIL}"}, roofs)
    assert page == render_estimate(EVIL, priced, {"b/c": f"{EVIL}/{EVIL}"}, roofs)
    assert tags(page).isdisjoint({"script", "link", "img", "iframe", "object"})
    assert "<script" not in page and "\x1b" not in page and "\u202e" not in page and page.count("&lt;script&gt;") > 8
    for name in ("treemap", "layers", "roofline", "nodes", "how"):
        assert f'<section id="{name}">' in page
    assert "3.00 mJ per inference" in page and "1 node without a price cannot be drawn" in page


def test_every_picture_says_in_words_what_it_shows():
    page = render(report())
    assert page.count('role="img"') == page.count("aria-label=") >= 4
    assert not re.search(r'aria-label="\s*"', page)


def test_unknown_nodes_stand_first_and_long_lists_are_cut():
    nodes = [node(f"n{i}", "Add", i * 1e-9) for i in range(MAX_NODES + 50)] + [node("odd", "Odd", None)]
    rows = node_rows(estimate(nodes))
    assert [rows[0].name, rows[0].joules, rows[1].name] == ["odd", "unknown", f"n{MAX_NODES + 49}"]
    assert len(rows) == MAX_NODES
