"""Carbon: the SCI formula by hand, the table's own promises, and no number without region, year and kind."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulec.cli_quantities import embodied, joules, rate
from joulec.energy.carbon import KINDS, Embodied, Intensity, Spread, emissions, intensities, intensity_of
from joulec.errors import InputError

GRID = Intensity("XX", "Nowhere", 2024, "average", 360.0, "somebody", "generation")
OWN = """
[sources.mine]
title = "our meter"
scope = "the roof"
[grids.ROOF]
name = "Our roof"
rows = [{ year = 2025, kind = "average", value = 20, source = "mine" }, { year = 2023, kind = "average", value = 30, source = "mine" }]
"""


def carbon(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "joulec", "carbon", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_grams_by_hand():
    """1 kWh at 360 g is 360 g; a thousandth of it with PUE 1.5 is 0.54 g; 100 kg over 4 years are 25 kg a year."""
    whole = emissions(Spread(3.6e6, 1.8e6, 7.2e6), "estimated", GRID)
    assert (whole.per_inference, whole.per_year) == (Spread(360.0, 180.0, 720.0), None)
    found = emissions(Spread(3600.0, 3600.0, 3600.0), "given", GRID, pue=1.5, rate=2.0, embodied=Embodied(100.0, 4.0, 0.5))
    runs = 2.0 * 365 * 86400
    assert found.per_inference.value == pytest.approx(0.54 + 12_500 / runs)
    assert found.per_year is not None and found.per_year.value == pytest.approx(0.54 * runs + 12_500)


@settings(deadline=None)
@given(st.floats(1e-9, 1e3), st.floats(1.0, 3.0), st.floats(1e-3, 1e6))
def test_the_interval_is_carried_through_in_order(amount: float, pue: float, per_second: float):
    found = emissions(Spread(amount, amount / 3, amount * 3), "estimated", GRID, pue=pue, rate=per_second)
    each, year = found.per_inference, found.per_year
    assert year is not None and each.low < each.value < each.high and year.low < year.value < year.high
    assert each.high / each.low == pytest.approx(9.0)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"pue": 0.9}, "between 1 and 10"), ({"pue": math.nan}, "between 1 and 10"), ({"rate": 0.0}, "above 0"),
        ({"embodied": Embodied(1, 1)}, "--embodied needs --rate"),
    ],
)  # fmt: skip
def test_factors_that_make_no_sense_are_refused(more: dict, said: str):
    with pytest.raises(InputError, match=said):
        emissions(Spread(1, 1, 1), "given", GRID, **more)


def test_every_row_of_the_table_says_whose_number_it_is_and_what_is_in_it():
    table = intensities()
    assert len({row.region for row in table}) >= 80
    for row in table:
        assert row.kind in KINDS and 2020 <= row.year <= 2026 and 5 < row.value < 1000, row
        assert len(row.source) > 20 and "generation" in row.scope
    assert len({(row.region, row.year, row.kind) for row in table}) == len(table)


def test_a_region_goes_by_code_or_name_and_the_newest_row_wins(tmp_path: Path):
    assert intensity_of("de") == intensity_of("Germany")
    assert (intensity_of("DE").kind, intensity_of("DE", "marginal").kind) == ("average", "marginal")
    file = tmp_path / "own.toml"
    file.write_text(OWN)
    assert (intensity_of("roof", file=file).year, intensity_of("roof", file=file).value) == (2025, 20.0)
    with pytest.raises(InputError, match="did you mean Germany"):
        intensity_of("Germny")
    with pytest.raises(InputError, match="no marginal intensity"):
        intensity_of("AT", "marginal")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x", "not a TOML file"), ("a = 1", r"needs tables \[sources"), ("[sources]\n[grids.A]\nname = 1", "needs a name and rows"),
        (OWN.replace("2025", "25"), "year must be a year"), (OWN.replace("= 20,", "= -1,"), "must be in gCO2e/kWh"),
        (OWN.replace("= 20,", "= nan,"), "must be in gCO2e/kWh"), (OWN.replace('"average"', '"mean"'), "average or marginal"),
        (OWN.replace('source = "mine"', 'source = "x"'), r"needs a table \[sources.x\]"), (OWN.replace("value", "wert"), "a row is"),
    ],
)  # fmt: skip
def test_a_table_of_ones_own_is_checked(tmp_path: Path, text: str, said: str):
    file = tmp_path / "own.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=said):
        intensities(file)


def test_quantities_as_people_write_them():
    assert [joules(text, "") for text in ("2.5mJ", "800 uJ", "3J", "1e-3 kJ")] == pytest.approx([2.5e-3, 8e-4, 3.0, 1.0])
    assert [rate(text) for text in ("100/s", "6k/min", "36 / h", "1M/day")] == pytest.approx([100, 100, 0.01, 1e6 / 86400])
    assert embodied("1.2t/4y", 0.25) == Embodied(1200.0, 4.0, 0.25) == embodied("1200 kg / 4 y", 0.25)
    for wrong in ("5", "mJ", "-1mJ", "0mJ", "5mW"):
        with pytest.raises(InputError, match="--max-energy"):
            joules(wrong, "--max-energy")
    for wrong in ("5", "0/s", "5/fortnight"):
        with pytest.raises(InputError, match="--rate"):
            rate(wrong)
    with pytest.raises(InputError, match="--embodied"):
        embodied("5kg/0y", 1.0)


# -- the command ----------------------------------------------------------------------------------------------------


def test_no_number_is_printed_without_region_year_and_kind():
    done = carbon("--joules", "2.5mJ", "--region", "DE", "--region", "US-CAMX", "--rate", "100/s", "--pue", "1.2")
    assert (done.returncode, done.stderr) == (0, "")
    head, *rows = done.stdout.splitlines()
    assert re.split(r"\s\s+", head.strip())[:4] == ["region", "year", "kind", "gCO2e/kWh"]
    assert re.match(r"Germany +2024 +average +342\.1 ", rows[0])
    for said in ("PUE        1.2", "embodied   not included", "Ember, Yearly Electricity Data", "eGRID2022"):
        assert said in done.stdout


def test_json_holds_everything_the_number_rests_on(tmp_path: Path):
    file = tmp_path / "own.toml"
    file.write_text(OWN)
    done = carbon("--joules", "3.6J", "--region", "ROOF", "--grids", str(file), "--json")
    (found,) = json.loads(done.stdout)
    assert found["gco2e_per_inference"]["value"] == pytest.approx(2e-5)
    assert {"region": "ROOF", "year": 2025, "kind": "average", "pue": 1.0, "embodied": "not included", "tier": "given"}.items() <= found.items()
    assert (found["source"], found["scope"], found["gco2e_per_year"]) == ("our meter", "the roof", None)


def test_models_are_priced_and_estimate_says_grams_too(tmp_path: Path):
    from compile_kit import cnn

    model = cnn(tmp_path / "cnn.onnx")
    (found,) = json.loads(carbon(str(model), "--region", "FR", "--shape", "N=4", "--json").stdout)
    command = [sys.executable, "-m", "joulec", "estimate", str(model), "--region", "FR", "--shape", "N=4"]
    priced = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    assert found == priced["carbon"][0]
    assert found["joules"]["value"] == pytest.approx(priced["total_joules"] / 4), "of one sample of the batch"
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    line = r"gCO2e per inference \(.*\): France, 2024, average intensity, PUE 1, embodied not included"
    assert re.search(line, " ".join(said.split())), "a terminal breaks lines"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--region", "DE"], "name a model, or give --joules"), (["--joules", "1mJ"], "no region"),
        (["--joules", "1mJ", "--region", "DE", "--kind", "mean"], "no mean intensity"),
        (["--joules", "1mJ", "--region", "DE", "--grids", "none.toml"], "no such file"),
        (["--joules", "1mJ", "--region", "DE", "--embodied", "5kg/3y"], "--embodied needs --rate"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_exit_code_2(arguments: list[str], said: str):
    done = carbon(*arguments)
    assert (done.returncode, done.stdout) == (2, "") and said in done.stderr and len(done.stderr.splitlines()) == 1
