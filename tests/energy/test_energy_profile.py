"""Device profiles: complete, sourced, refused when wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from joulec.energy import load_profile, profile_names, user_folder, user_profiles
from joulec.energy.profile import MAX_PROFILE_BYTES, parse_profile
from joulec.errors import InputError

DEVICES = Path(__file__).parents[2] / "joulec" / "energy" / "devices"


@pytest.mark.parametrize("name", profile_names())
def test_every_number_has_a_source_and_lies_in_its_range(name: str) -> None:
    profile = load_profile(name)
    tables = (profile.energy, profile.peak, profile.memory, profile.launch, profile.power, profile.efficiency)
    numbers = [number for table in tables for number in table.values()]
    assert len(numbers) >= 20
    assert all(number.low <= number.value <= number.high and len(number.source) > 5 for number in numbers)
    assert all(number.low < number.high for number in numbers), "a range of zero width claims to be exact"


@pytest.mark.parametrize("name", profile_names())
def test_full_load_stays_near_the_power_cap(name: str) -> None:
    profile = load_profile(name)
    watts = profile.energy["fp32"].value * 1e-12 * profile.peak["fp32"].value + profile.power["static"].value
    assert watts <= 1.01 * profile.power["cap"].value


def test_the_profiles_that_ship() -> None:
    assert profile_names() == [
        "a100", "generic-server-cpu", "generic-server-cpu-amx", "generic-server-cpu-avx512", "h100", "h200",
        "jetson-agx-orin", "l4", "t4",
    ]  # fmt: skip


def test_a_profile_may_say_only_what_differs_from_one_that_ships() -> None:
    text = b'base = "t4"\nname = "mine"\n[launch.time]\nvalue = 3e-6\nlow = 1e-6\nhigh = 9e-6\nunit = "s"\nsource = "measured"'
    mine, t4 = parse_profile(text, "mine.toml"), load_profile("t4")
    assert (mine.name, mine.launch["time"].value) == ("mine", 3e-6)
    assert (mine.peak, mine.launch["energy"]) == (t4.peak, t4.launch["energy"])
    with pytest.raises(InputError, match="base 'nope' is not a profile that ships"):
        parse_profile(b'base = "nope"', "mine.toml")
    with pytest.raises(InputError, match="take 'generic-server-cpu'"):
        parse_profile(b'base = "generic-server-cpu-amx"', "mine.toml")


def test_a_cpu_without_vnni_pays_more_for_int8_and_one_with_amx_less() -> None:
    plain, usual, amx = (load_profile(f"generic-server-cpu{variant}") for variant in ("-avx512", "", "-amx"))
    joules = [p.energy[p.resolve("energy", "int8-matrix")].value for p in (plain, usual, amx)]
    assert joules == sorted(joules, reverse=True)
    assert len(set(joules)) == 3


def test_a_profile_in_the_users_folder_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert user_profiles() == {}
    user_folder().mkdir(parents=True)
    (user_folder() / "mine.toml").write_bytes((DEVICES / "t4.toml").read_bytes())
    (user_folder() / "a100.toml").write_text("not a profile, and not looked at")
    assert user_profiles() == {"mine": user_folder() / "mine.toml"}
    assert load_profile("mine").peak == load_profile("t4").peak
    assert load_profile("a100").name == "a100"
    with pytest.raises(InputError, match="t4, mine, or give"):
        load_profile("yours")


def test_figures_of_the_published_table() -> None:
    a100 = load_profile("a100")
    assert [a100.energy[k].value for k in ("fp16-matrix", "fp32")] == [0.70, 10.7]
    assert [a100.memory[k].value for k in ("dram_energy", "cache_energy")] == [105, 37.7]
    assert a100.power["static"].value == 54
    assert load_profile().memory["dram_energy"].value == 160


def test_vnni_and_amx_are_fields() -> None:
    profile = load_profile()
    assert profile.resolve("energy", "int8-matrix") == "int8-matrix+vnni"
    assert profile.with_features().resolve("energy", "int8-matrix") == "int8-matrix"
    assert profile.with_features("amx").resolve("energy", "bf16-matrix") == "bf16-matrix+amx"
    assert profile.resolve("energy", "fp16-matrix") == "fp32", "no half-precision units: as float32"


def test_cores_scale_power_but_not_energy_per_operation() -> None:
    two = load_profile().with_cores(2)
    assert two.power["static"].value == pytest.approx(5)
    assert two.peak["fp32"].value == pytest.approx(2.56e11)
    assert two.energy["fp32"] == load_profile().energy["fp32"]


def edited(old: str, new: str) -> bytes:
    text = (DEVICES / "t4.toml").read_text()
    assert old in text
    return text.replace(old, new, 1).encode()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('kind = "gpu"', 'kind = "gpu"\ncolour = "green"', "unknown key 'colour'"),
        ("[memory.cache_size]", "[memory.l9_size]", "unknown key 'memory.l9_size'"),
        ("[launch.time]", "[launch.energy2]", "unknown key 'launch.energy2'"),
        ("low = 3.34877", "low = 9.0", "low <= value <= high"),
        ("low = 3.34877", "low = nan", "low <= value <= high"),
        ("low = 3.34877", 'low = "3"', "needs numbers"),
        ('unit = "pJ/op"', 'unit = "J/op"', "must be in pJ/op"),
        ("[energy.fp32]", "[energy.fp31]", r"\[energy.fp32\] is missing"),
        ('kind = "gpu"', 'kind = "tpu"', "kind must be"),
        ('source = "derived', 'remark = "derived', "unknown key 'energy.fp32.remark'"),
        ('name = "t4"', "name = 4", "'name' must be a text"),
        ("[energy.fp32]", "[energy.fp32", "not a TOML file"),
    ],
)
def test_wrong_profiles_are_refused(old: str, new: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_profile(edited(old, new), "t4.toml")


def test_unreadable_profiles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no device profile 'cray-1': known are a100"):
        load_profile("cray-1")
    with pytest.raises(InputError, match="no device profile"):
        load_profile(tmp_path)
    with pytest.raises(InputError, match="larger than"):
        parse_profile(b"#" * (MAX_PROFILE_BYTES + 1), "big.toml")
    (tmp_path / "mine.toml").write_bytes(edited('name = "t4"', 'name = "mine"'))
    assert load_profile(tmp_path / "mine.toml").name == "mine"
