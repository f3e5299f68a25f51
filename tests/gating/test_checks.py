"""What is worse: more than noise, more than slack, and only where both builds can be compared."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lock_sample import LOCK, MACHINE, TERMS, lock

from joulec.energy import load_profile
from joulec.errors import InputError
from joulec.gating.checks import Slack, accuracy, checks, energy, operators
from joulec.gating.lock import LockedAccuracy, LockedLatency, LockedModel, LockedOperator

CPU = load_profile("generic-server-cpu")
OTHER = LockedModel(1000, 6, "cd" * 32)


def verdicts(**changes: object) -> dict[str, str]:
    new = lock(**{"artefact": OTHER, **changes})
    return {check.what: check.verdict for check in checks(LOCK, new, CPU, Slack())}


def test_the_same_costs_are_the_same():
    assert verdicts() == dict.fromkeys(("energy", "latency", "time", "size", "accuracy"), "same")


def test_more_of_everything_that_energy_is_made_of_is_worse_and_less_is_better():
    more, less = ({name: factor * amount for name, amount in TERMS.items()} for factor in (1.2, 0.8))
    assert verdicts(terms=more, joules=2.1e-3 * 1.2)["energy"] == "worse"
    assert verdicts(terms=less, joules=2.1e-3 * 0.8)["energy"] == "better"


def test_a_change_that_the_model_cannot_tell_is_no_regression():
    """More arithmetic against fewer bytes: whether that is more depends on coefficients nobody knows so well."""
    traded = {**TERMS, "energy:fp32": 4.2e7, "memory:cache": 1e5, "launch": 5.0}
    found = energy(LOCK, lock(artefact=OTHER, terms=traded, joules=2.4e-3), CPU, 0.01)
    assert found.verdict == "same" and found.low < 0 < found.high  # type: ignore[operator]
    assert found.why.startswith("no detectable change")


def test_a_percent_of_joules_is_nobodys_regression_and_the_slack_can_be_changed():
    more = {name: 1.005 * amount for name, amount in TERMS.items()}
    new = lock(artefact=OTHER, terms=more, joules=2.1e-3 * 1.005)
    assert energy(LOCK, new, CPU, 0.01).verdict == "same"
    assert energy(LOCK, new, CPU, 0.001).verdict == "worse"


def test_the_same_bytes_cost_the_same_whatever_joulec_says_of_them_now():
    found = energy(LOCK, lock(joules=9.9, joulec="0.2.0"), CPU, 0.01)
    assert (found.verdict, found.why) == ("same", "the same model; joulec 0.1.0 priced it then, 0.2.0 now")


def test_new_operators_without_a_price_leave_nothing_to_tell():
    less = {name: 0.5 * amount for name, amount in TERMS.items()}
    assert verdicts(terms=less, joules=1e-3, unknown={"Mystery": 1})["energy"] == "same"


@settings(deadline=None)
@given(st.floats(0.2, 5.0), st.floats(1.0, 1.3), st.floats(1.0, 1.3))
def test_speed_is_worse_only_beyond_both_intervals_and_the_slack(ratio: float, then: float, now: float):
    old = LockedLatency(1.0, 1 / then, then, 5.0, MACHINE, 1)
    new = LockedLatency(ratio, ratio / now, ratio * now, 5.0, MACHINE, 1)
    found = next(one for one in checks(lock(latency=old), lock(artefact=OTHER, latency=new), CPU, Slack()) if one.what == "latency")
    if found.verdict == "worse":
        assert ratio < 1 / 1.1
    if found.verdict == "better":
        assert ratio > 1 / 0.9 * 0.999
    assert found.low <= found.change <= found.high  # type: ignore[operator]
    if then == now == 1.0:
        assert (found.verdict == "worse") == (1 / ratio - 1 > 0.1)


def test_milliseconds_are_compared_on_one_machine_only():
    slow = LockedLatency(2.0, 1.9, 2.1, 50.0, MACHINE, 1)
    assert verdicts(latency=slow)["time"] == "worse"
    assert verdicts(latency=replace(slow, machine="another"))["time"] == "not compared"
    assert verdicts(latency=replace(slow, threads=4))["time"] == "not compared"
    assert verdicts(latency=None)["latency"] == "not compared"


def test_accuracy_is_worse_beyond_the_noise_of_both():
    old = LockedAccuracy("metric", "its own", 0.98, 0.003)
    verdict = lambda value, noise=0.004: accuracy(old, LockedAccuracy("metric", "its own", value, noise), 0.002).verdict  # noqa: E731
    assert [verdict(value) for value in (0.99, 0.98, 0.974, 0.972)] == ["better", "same", "same", "worse"]
    assert verdict(0.974, 0.0) == "worse"
    assert accuracy(old, LockedAccuracy("fidelity", "x", 0.5), 0.002).verdict == "not compared"


def test_size_has_no_noise():
    assert verdicts(artefact=LockedModel(1011, 6, "cd" * 32))["size"] == "worse"
    assert verdicts(artefact=LockedModel(1009, 6, "cd" * 32))["size"] == "same"
    assert verdicts(artefact=LockedModel(980, 6, "cd" * 32))["size"] == "better"


def test_operators_are_listed_by_what_moved_most():
    now = {"Add": LockedOperator(5, 1.1e-4, 1, 1), "Gemm": LockedOperator(1, 5e-4, 1, 1)}
    found = operators(LOCK, lock(operators=now))
    assert [(one.op, one.nodes_before, one.nodes_after) for one in found] == [("Conv", 2, 0), ("Gemm", 0, 1), ("Add", 4, 5)]
    assert found[0].moved == -2e-3


def test_slack_has_names_and_bounds():
    assert Slack().granted({"energy": 0.05}) == Slack(energy=0.05)
    for wrong in ({"joules": 0.1}, {"energy": -1.0}, {"energy": float("nan")}):
        with pytest.raises(InputError, match="--slack"):
            Slack().granted(wrong)


def test_a_lock_with_an_energy_term_that_no_profile_has_is_refused():
    with pytest.raises(InputError, match="knows no energy term"):
        energy(LOCK, lock(artefact=OTHER, terms={"memory:nowhere": 1.0}), CPU, 0.01)
