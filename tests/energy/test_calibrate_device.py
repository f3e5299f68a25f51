"""The ladder, the fit, and the profile that comes of them; timing itself is replaced by a law that is known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulec.energy import calibrate, fit, ladder, load_profile, profile_for
from joulec.energy.families import FAMILIES
from joulec.energy.model import EnergyModel
from joulec.energy.profile import parse_profile
from joulec.errors import InputError
from joulec.ir.module import Module
from joulec.ir.runner import LocalRunner

RUNGS = ladder.ladder()
MODEL = EnergyModel(load_profile().with_cores(1))


def module_of(rung: ladder.Rung) -> Module:
    return Module(ir.from_proto(rung.model))


LAW = {"flop": 1e-11, "operation": 1e-11, "element": 1e-10, "byte": 5e-11, "dram_read": 1e-10, "launch": 2e-6}


def law(features: Mapping[str, Mapping[str, float]]) -> float:
    """A machine of 100 Gop/s and 20 GB/s that needs 2 us a launch and 5 us a run."""
    terms = ((name, amount) for amounts in features.values() for name, amount in amounts.items())
    return 5e-6 + sum(LAW.get(name, 0.0) * amount for name, amount in terms)


def test_every_family_has_rungs_of_several_sizes() -> None:
    seen: dict[str, set[float]] = {}
    for rung in RUNGS:
        estimate = MODEL.estimate(module_of(rung), in_place=True)
        assert estimate.unknown == () and estimate.assumed == ()
        for family, amounts in estimate.features.items():
            seen.setdefault(family, set()).add(sum(amounts.values()))
    assert set(seen) == set(FAMILIES) - {"run"}
    assert min(len(sizes) for family, sizes in seen.items() if family != "view") >= 3, "a view is a launch and no more"
    assert len({rung.name for rung in RUNGS}) == len(RUNGS)


def test_quick_keeps_every_family() -> None:
    quick = ladder.ladder(quick=True)
    families = {family for rung in quick for family in MODEL.estimate(module_of(rung), in_place=True).features}
    assert len(quick) <= 0.6 * len(RUNGS)
    assert families == set(FAMILIES) - {"run"}


@pytest.mark.parametrize("rung", RUNGS[::24], ids=lambda rung: rung.name)
def test_rungs_run(rung: ladder.Rung) -> None:
    with LocalRunner() as runner:
        (result,) = runner.run(runner.load(module_of(rung)), ladder.feed_of(rung)).values()
    rooted = rung.name.split()[0] in ("Sqrt", "Log")  # of normal numbers: half of them have none
    assert rooted or np.all(np.isfinite(result))


def test_the_fit_finds_the_law_that_made_the_times() -> None:
    runs = [MODEL.estimate(module_of(rung), in_place=True).features for rung in RUNGS[::2]]
    fitted = fit.fit(runs, [law(run) for run in runs])
    assert np.median(np.abs(fitted.errors)) < 1e-3
    assert fit.predict(fitted.laws, runs[0]) == pytest.approx(law(runs[0]), rel=1e-3)
    assert all(0 <= one.low <= one.value <= one.high for one in fitted.laws.values())


@settings(max_examples=20, deadline=None)
@given(noise=st.floats(0.01, 0.3), seed=st.integers(0, 1000))
def test_noise_widens_the_spread_and_never_makes_a_time_negative(noise: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    runs = [{"conv": {"operation": float(n), "launch": 4.0}} for n in random.integers(10**6, 10**9, 40)]
    times = [n["conv"]["operation"] * 1e-11 * float(np.exp(noise * random.normal())) + 1e-5 for n in runs]
    fitted = fit.fit(runs, times)
    assert 1 + noise / 2 < fitted.spread < np.exp(5 * noise)
    assert all(one.value >= 0 for one in fitted.laws.values())
    assert fit.fit(runs, times) == fitted, "the same times give the same fit"


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Times follow `law`; the user's folder is empty; a short ladder."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(calibrate, "ladder", lambda quick: RUNGS[:: 6 if quick else 3])
    monkeypatch.setattr(calibrate, "_time", lambda rung, *_: law(MODEL.estimate(module_of(rung), in_place=True).features))


def test_a_calibrated_profile_predicts_time_and_says_that_it_is_calibrated(timed: None) -> None:
    found = calibrate.calibrate_cpu()
    model = module_of(RUNGS[1])
    estimate = EnergyModel(found.profile).estimate(model)
    assert estimate.seconds == pytest.approx(law(estimate.features), rel=0.02)
    assert estimate.tier == "calibrated"
    assert (found.drift, found.unstable, found.median_error < 0.02) == (0.0, False, True)
    assert sum(node.energy.joules or 0.0 for node in estimate.nodes) == pytest.approx(estimate.total_joules)


def test_a_profile_survives_being_written_and_is_found_on_this_machine_only(timed: None, tmp_path: Path) -> None:
    assert profile_for(None, "generic-server-cpu") == load_profile()
    found = calibrate.calibrate_cpu(quick=True)
    place = calibrate.write_profile(found.profile)
    read = load_profile(place)
    assert read.kernels == found.profile.kernels and read.peak == found.profile.peak
    assert profile_for(None, "generic-server-cpu").name == found.profile.name
    assert profile_for(None, "h100").name == "h100"
    assert profile_for("a100", "generic-server-cpu").name == "a100"
    assert profile_for(None, "generic-server-cpu", threads=2).name == "generic-server-cpu"
    place.write_text(place.read_text().replace("[calibration]\nmachine = \"", "[calibration]\nmachine = \"another "))
    assert profile_for(None, "generic-server-cpu").name == "generic-server-cpu"
    place.write_text("broken")
    assert profile_for(None, "generic-server-cpu").name == "generic-server-cpu"
    assert list(place.parent.iterdir()) == [place]


def test_a_wide_spread_widens_the_interval(timed: None) -> None:
    text = "\n".join(calibrate._toml(calibrate.calibrate_cpu(quick=True).profile))
    spread = text.partition("spread = ")[2].partition("\n")[0]
    wide = parse_profile(text.replace(f"spread = {spread}", "spread = 4.0").encode(), "wide")
    estimate = EnergyModel(wide).estimate(module_of(RUNGS[1]))
    assert estimate.high == pytest.approx(4 * estimate.total_joules)


def test_an_unstable_machine_is_said(timed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    steady, calls = calibrate._time, [0]

    def slower(*given: object) -> float:
        calls[0] += 1
        return steady(*given) * (1 + 0.01 * calls[0])  # type: ignore[arg-type]

    monkeypatch.setattr(calibrate, "_time", slower)
    found = calibrate.calibrate_cpu(quick=True)
    assert found.unstable
    assert "unstable" in found.profile.description


def test_more_threads_than_cores_are_refused() -> None:
    with pytest.raises(InputError, match="cores"):
        calibrate.calibrate_cpu(threads=10_000)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("[kernels.conv.operation]\nvalue=1e-11\nlow=0\nhigh=1\nunit='s/op'\nsource='x-ray'", "needs a table \\[calibration\\]"),
        ("[calibration]\nmachine='m'\nthreads=0\nruntime='r'\nspread=2", "threads must be"),
        ("[calibration]\nmachine='m'\nthreads=1\nruntime='r'\nspread=1", "spread must be"),
        ("[calibration]\nmachine='m'\nthreads=1\nruntime='r'\nspread=2\n[kernels.dance.operation]\nvalue=1", "unknown key 'kernels.dance'"),
        ("[calibration]\nmachine='m'\nthreads=1\nruntime='r'\nspread=2\n[kernels.conv.joule]\nvalue=1", "unknown key 'kernels.conv.joule'"),
    ],
)  # fmt: skip
def test_wrong_kernel_times_are_refused(extra: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse_profile(f'base = "t4"\nname = "mine"\n{extra}'.encode(), "mine.toml")
