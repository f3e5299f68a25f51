"""How `benchmarks/energy` scores, and that its page says what its results hold."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = ("score", "predict", "zoo", "page", "networks", "layers")


@pytest.fixture(scope="module")
def benchmark() -> Iterator[dict[str, ModuleType]]:
    """Its modules, which import each other by their bare names."""
    sys.path.insert(0, str(ROOT / "benchmarks" / "energy"))
    try:
        yield {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.pop(0)
        for name in MODULES:
            sys.modules.pop(name, None)


def scored(benchmark: dict[str, ModuleType], factors: tuple[float, float, float]) -> Any:
    """Three models of 1, 2 and 4 ms, each predicted wrong by a factor."""
    predict, zoo = benchmark["predict"], benchmark["zoo"]
    runs = [zoo.Run("convolution", name, 1, zoo.EXACT) for name in "abc"]
    timed = [predict.Timed(run, ms * 1e-3, ms * 1e-3, {"k": ms * 1e-3}) for run, ms in zip(runs, (1, 2, 4), strict=True)]
    told = {
        one.run: predict.Predicted(one.seconds * factor, {"k": one.seconds * factor}, 1.5)
        for one, factor in zip(timed, factors, strict=True)
    }
    pairs = {
        (runs[1], runs[0]): {"ratio": 2.0, "low": 1.9, "high": 2.1},
        (runs[0], runs[2]): {"ratio": 0.25, "low": 0.2, "high": 0.3},
        (runs[1], runs[2]): {"ratio": 1.01, "low": 1.005, "high": 1.015},
    }
    return benchmark["score"].score(timed, told, pairs)


def test_the_truth_scores_best(benchmark: dict[str, ModuleType]) -> None:
    found = scored(benchmark, (1.0, 1.0, 1.0))
    assert (found.mape, found.op_median, found.tau, found.signs, found.coverage) == (0.0, 0.0, 1.0, 1.0, 1.0)
    assert (found.models, found.kernels, found.changes) == (3, 3, 2), "a change within the noise is none"


def test_errors_ranks_signs_and_intervals_are_seen(benchmark: dict[str, ModuleType]) -> None:
    found = scored(benchmark, (3.0, 1.0, 1.0))
    assert found.mape == pytest.approx(2 / 3)
    assert found.tau == pytest.approx(1 / 3)
    assert (found.op_median, found.signs) == (0.0, 0.5)
    assert found.coverage == pytest.approx(2 / 3)
    assert found.interval == pytest.approx(2 * math.log(1.5) + 40 * math.log(3 / 1.5) / 3)


def test_what_the_profiler_costs_is_taken_off_every_kernel(benchmark: dict[str, ModuleType]) -> None:
    entry = {"cpu_seconds": 10e-6, "kernels": {"k0": 8.0, "k1": [8.0, 2], "": 1.0}}
    assert benchmark["predict"]._kernels(entry) == pytest.approx({"k0": 6.25e-6, "k1": 4.5e-6})


def test_networks_are_those_that_they_are_called(benchmark: dict[str, ModuleType]) -> None:
    """Parameters, in millions, as published."""
    networks = benchmark["networks"]
    for name, millions in (("mobilenet_v2", 3.5), ("squeezenet", 1.24), ("efficientnet", 5.3)):
        model = getattr(networks, name)(1)
        total = sum(math.prod(tensor.dims) for tensor in model.graph.initializer)
        assert total / 1e6 == pytest.approx(millions, rel=0.05), name


def test_the_page_is_that_of_the_results(benchmark: dict[str, ModuleType]) -> None:
    kept = json.loads((ROOT / "benchmarks" / "results" / "energy.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "energy-benchmark.md").read_text(encoding="utf-8")
    assert benchmark["page"].page(kept) == page
