"""The artefact directory: written whole or not at all, and treated as untrusted when it is opened."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest

from joulec.backends import artefact, backend
from joulec.backends.artefact import load, member_name, replacing, replacing_file, write_arrays
from joulec.errors import InputError, UnavailableError

GRAPH = "g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }"


@pytest.fixture
def built(tmp_path: Path, parse: Callable[..., Any]) -> Path:
    """An artefact of one Relu."""
    folder = tmp_path / "build"
    folder.mkdir()
    backend("cpu").emit(parse(GRAPH), folder, 1)
    artefact.write_manifest(folder, "key", "cpu", {}, "0")
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def sealed(folder: Path) -> None:
    """A manifest that fits, as someone would write who means harm."""
    artefact.write_manifest(folder, "key", "cpu", {}, "0")


def session(folder: Path, **changes: object) -> None:
    path = folder / "session.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    sealed(folder)


# -- opening --------------------------------------------------------------------------------------------------------


def test_what_was_written_is_opened(built: Path):
    x = np.array([[-1, 0, 1, 2]], np.float32)
    assert load(built).run(None, {"x": x})[0].tolist() == [[0, 0, 1, 2]]
    assert load(str(built), threads=2).get_session_options().intra_op_num_threads == 2
    (built / "manifest.json").unlink()
    assert load(built).get_providers() == ["CPUExecutionProvider"], "model and session are enough"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"custom_ops": ["/tmp/evil.so"]}, "key 'custom_ops' is not allowed"),
        ({"config": {"session.custom_ops_library": "x.so"}}, "session option 'session.custom_ops_library' is not"),
        ({"config": {"ep.context_file_path": "/etc"}}, "session option 'ep.context_file_path' is not allowed"),
        ({"config": {"session.set_denormal_as_zero": 1}}, "config must map names to strings"),
        ({"config": []}, "config must map names to strings"),
        ({"provider_options": {"trt_engine_cache_path": "/"}}, "provider option 'trt_engine_cache_path' is not allowed"),
        ({"disabled_optimizers": ["ConstantFolding"]}, "disabled optimizer 'ConstantFolding' is not allowed"),
        ({"disabled_optimizers": "x"}, "disabled_optimizers must be a list of names"),
        ({"threads": -1}, "threads must be an integer from 0 to 1024"),
        ({"threads": True}, "threads must be an integer"),
        ({"threads": "4"}, "threads must be an integer"),
        ({"provider": "EvilProvider"}, "provider 'EvilProvider' is not one joulec emits for"),
        ({"provider": ["CPUExecutionProvider"]}, "is not one joulec emits for"),
    ],
)  # fmt: skip
def test_options_that_are_not_on_the_lists_are_refused(built: Path, changes: dict[str, object], said: str):
    session(built, **changes)
    found = refusal(built)
    assert said in found and "session.json" in found


def test_a_provider_that_is_not_here_is_unavailable(built: Path):
    import onnxruntime

    if "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("TensorRT is here")
    session(built, provider="TensorrtExecutionProvider", provider_options={})
    with pytest.raises(UnavailableError, match="TensorrtExecutionProvider is not in this onnxruntime"):
        load(built)


def _flip(folder: Path) -> None:
    data = bytearray((folder / "model.onnx").read_bytes())
    data[-1] ^= 1
    (folder / "model.onnx").write_bytes(data)


def _cut(folder: Path) -> None:
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-9])
    sealed(folder)


def _outside(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).rename(folder.parent / name)
        (folder / name).symlink_to(folder.parent / name)

    return change


def _external(location: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        proto = onnx.load(folder / "model.onnx")
        tensor = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=location)
        proto.graph.initializer.append(tensor)
        proto.graph.node[0].op_type = "Add"
        proto.graph.node[0].input.append("w")
        (folder / "model.onnx").write_bytes(proto.SerializeToString())
        sealed(folder)

    return change


def _engine(folder: Path) -> None:
    proto = onnx.load(folder / "model.onnx")
    proto.graph.node[0].CopyFrom(oh.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", name="e"))
    proto.opset_import.append(oh.make_opsetid("com.microsoft", 1))
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    sealed(folder)


def _fifo(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def _text(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_flip, "model.onnx: is not the file that manifest.json names"),
        (_text("session.json", "{}"), "session.json: provider None is not one joulec emits for"),
        (_text("model.onnx.data", "x"), "model.onnx.data: is not the file that manifest.json names"),
        (_cut, "model.onnx: not an ONNX model, or a damaged one"),
        (_outside("model.onnx"), "model.onnx: links to a file outside the artefact"),
        (_outside("session.json"), "session.json: links to a file outside the artefact"),
        (_external("../secret"), "external data '../secret' lies outside the model's folder"),
        (_external("/etc/passwd"), "external data '/etc/passwd' lies outside the model's folder"),
        (_engine, "EPContext 'e' holds a compiled engine, which is not loaded"),
        (_fifo("session.json"), "session.json: not a regular file"),
        (_fifo("model.onnx"), "no model.onnx here; give the directory"),
        (_text("session.json", "[" * 100_000), "session.json: not readable as JSON"),
        (_text("session.json", "nonsense"), "session.json: not readable as JSON"),
        (_text("session.json", " " * (1 << 20) + "{}"), "session.json: larger than 1 MiB"),
        (lambda folder: (folder / "session.json").write_bytes(b"\xff\xfe"), "session.json: not readable as JSON"),
        (lambda folder: (folder / "session.json").unlink(), "session.json: no such file"),
        (_text("manifest.json", "[]"), "manifest.json: not a manifest of joulec's"),
        (_text("manifest.json", '{"files": {}}'), "model.onnx: is not the file that manifest.json names"),
    ],
)  # fmt: skip
def test_a_directory_that_was_tampered_with_is_refused(built: Path, change: Callable[[Path], object], said: str):
    change(built)
    assert said in refusal(built)


def test_links_inside_the_artefact_are_fine(built: Path):
    (built / "data").mkdir()
    (built / "model.onnx").rename(built / "data" / "m")
    (built / "model.onnx").symlink_to("data/m")
    load(built)


@pytest.mark.parametrize("place", ["none", "file", "empty"])
def test_what_is_no_artefact_is_said(tmp_path: Path, place: str):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    assert "give the directory that 'joulec optimize -o' wrote" in refusal(tmp_path / place)


def test_is_current_believes_only_an_intact_artefact(built: Path):
    assert artefact.is_current(built, "key")
    assert not artefact.is_current(built, "another key")
    _flip(built)
    assert not artefact.is_current(built, "key")
    (built / "manifest.json").write_text("{")
    assert not artefact.is_current(built, "key")


# -- writing --------------------------------------------------------------------------------------------------------


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_error_leaves_what_was_there(built: Path):
    before = (built / "model.onnx").read_bytes()
    with pytest.raises(KeyError), replacing(built) as folder:
        (folder / "model.onnx").write_text("half")
        raise KeyError
    assert (built / "model.onnx").read_bytes() == before
    assert leftovers(built.parent) == ["build"]
    with replacing(built) as folder:
        (folder / "manifest.json").write_text("{}")
    assert leftovers(built) == ["manifest.json"] and leftovers(built.parent) == ["build"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda place: place.write_text("x"), "exists and is not a directory"),
        (lambda place: (place.mkdir(), (place / "thesis.tex").write_text("x")), "holds files that joulec did not write"),
        (lambda place: place.symlink_to(place.parent), "exists and is not a directory"),
        (lambda place: place.symlink_to("nowhere"), "exists and is not a directory"),
    ],
)  # fmt: skip
def test_what_joulec_did_not_write_is_not_replaced(tmp_path: Path, make: Callable[[Path], object], said: str):
    make(tmp_path / "out")
    with pytest.raises(InputError, match=said), replacing(tmp_path / "out"):
        pytest.fail("refused before any work")
    assert leftovers(tmp_path) == ["out"]


def test_a_file_is_replaced_only_when_everything_held(tmp_path: Path):
    place = tmp_path / "m.onnx"
    place.write_text("old")
    with pytest.raises(KeyError), replacing_file(place) as staging:
        staging.write_text("half")
        raise KeyError
    assert place.read_text() == "old" and leftovers(tmp_path) == ["m.onnx"]
    with replacing_file(place) as staging:
        staging.write_text("new")
    assert place.read_text() == "new" and leftovers(tmp_path) == ["m.onnx"]
    missing = tmp_path / "none" / "m.onnx"
    with pytest.raises(InputError, match="cannot be written: No such file or directory"), replacing_file(missing):
        pytest.fail("there is no such folder")


@pytest.mark.parametrize("writer", [replacing, replacing_file])
def test_a_full_disk_is_told_with_the_place_and_leaves_nothing(tmp_path: Path, writer: Any):
    said = "build: cannot be written: No space left on device"
    with pytest.raises(InputError, match=said), writer(tmp_path / "build") as staging:
        (staging / "model.onnx" if staging.is_dir() else staging).write_text("half")
        raise OSError(28, "No space left on device")
    assert leftovers(tmp_path) == []


# -- names that a model chose ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "spelled"),
    [
        ("sequential/conv2d/kernel:0", "sequential/conv2d/kernel:0"),
        ("onnx::Conv_12 (weights)", "onnx::Conv_12 (weights)"),
        ("größe", "größe"),
        ("../../etc/passwd", "%2E%2E/%2E%2E/etc/passwd"),
        ("a/./b", "a/%2E/b"),
        ("/etc/passwd", "%2Fetc/passwd"),
        ("c:\\windows", "c:%5Cwindows"),
        ("a\0b\n\x1b[31m", "a%00b%0A%1B[31m"),
        ("\u202egnp", "%E2%80%AEgnp"),
        ("50%", "50%25"),
    ],
)
def test_names_of_arrays_lead_nowhere(name: str, spelled: str):
    assert member_name(name) == spelled


def test_names_stay_different_and_short(tmp_path: Path):
    names = ["../a", "%2E%2E/a", "/a", "%2Fa", "x" * 70_000, "x" * 70_001, "y"]
    write_arrays(tmp_path / "m.npz", {name: np.full(2, index) for index, name in enumerate(names)})
    with np.load(tmp_path / "m.npz", allow_pickle=False) as found:
        assert {name: int(found[member_name(name)][0]) for name in names} == {n: i for i, n in enumerate(names)}
    with zipfile.ZipFile(tmp_path / "m.npz") as archive:
        assert max(map(len, archive.namelist())) < 2000


def test_the_same_arrays_make_the_same_bytes(tmp_path: Path):
    arrays = {"b": np.ones(3), "a": np.zeros((2, 2), bool)}
    write_arrays(tmp_path / "1.npz", arrays)
    write_arrays(tmp_path / "2.npz", dict(reversed(arrays.items())))
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()


# -- sessions and CPUs ----------------------------------------------------------------------------------------------


def test_a_tuned_session_is_opened_as_it_says(built: Path):
    session(built, arena=False, sizes={"n": 1}, config={"session.disable_prepacking": "1"}, threads=2)
    opened = load(built)
    options = opened.get_session_options()
    assert (options.enable_cpu_mem_arena, options.intra_op_num_threads) == (False, 2)
    assert options.get_session_config_entry("session.disable_prepacking") == "1"
    assert opened.get_inputs()[0].shape == [1, 4]


@pytest.mark.parametrize("wrong", [{"arena": 1}, {"sizes": {"n": 0}}, {"sizes": {"n": True}}, {"sizes": [1]}])
def test_a_wrong_arena_or_size_is_refused(built: Path, wrong: dict[str, object]):
    session(built, **wrong)
    assert "must" in refusal(built)


def test_another_cpu_is_warned_of(built: Path, monkeypatch: pytest.MonkeyPatch):
    artefact.write_manifest(built, "key", "cpu", {}, "0", measured_here=True)
    load(built)  # the same CPU: no warning, which would be an error here
    monkeypatch.setattr(artefact, "described", lambda: {"instructions": ["avx2"]})
    manifest = json.loads((built / "manifest.json").read_text())
    manifest["cpu"]["instructions"] = ["avx2", "avx512_vnni"]
    (built / "manifest.json").write_text(json.dumps(manifest))
    with pytest.warns(UserWarning, match="chosen on a CPU with avx2, avx512_vnni; this one has avx2: right, but"):
        load(built)
