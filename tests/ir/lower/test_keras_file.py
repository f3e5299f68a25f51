"""Keras files are inspected before Keras opens them. No TensorFlow needed here."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from joulec.errors import InputError
from joulec.ir.lower.keras_file import _named, inspect

h5py = pytest.importorskip("h5py")


def archive(folder: Path, layer: Any, **members: bytes) -> Path:
    path = folder / "m.keras"
    config = {"class_name": "Sequential", "module": "keras", "config": {"layers": [layer]}}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("config.json", json.dumps(config))
        for name, data in members.items():
            file.writestr(name, data)
    return path


def entry(kind: str, module: str | None, config: Any) -> dict[str, Any]:
    return {"class_name": kind, "module": module, "config": config}


def wrapped(inner: dict[str, Any]) -> dict[str, Any]:
    return entry("TimeDistributed", "keras.layers", {"layer": inner})


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (entry("Lambda", "keras.layers", {"name": "f"}), "layer 'f' is a Lambda"),
        (wrapped(entry("Lambda", "keras.layers", {"name": "f"})), "layer 'f' is a Lambda"),
        (entry("function", "keras.utils", "get_file"), "custom function 'get_file'"),
        (entry("function", "os", "system"), "custom function 'system'"),
        (entry("function", "builtins", "eval"), "custom function 'eval'"),
        (entry("Popen", "subprocess", {}), "custom class 'Popen'"),
        (entry("Mine", None, {}) | {"registered_name": "mine>Mine"}, "custom class 'Mine'"),
        (entry("StringLookup", "keras.layers", {"vocabulary": "/etc/passwd"}), "reads the file '/etc/passwd'"),
    ],
)
def test_code_and_files_are_refused_unless_trusted(tmp_path: Path, layer: dict[str, Any], reason: str) -> None:
    path = archive(tmp_path, layer)
    with pytest.raises(InputError, match=reason):
        inspect(path, "keras", False)
    inspect(path, "keras", True)


def test_what_keras_itself_writes_is_accepted(tmp_path: Path) -> None:
    relu = entry("function", "builtins", "relu")
    dense = entry(
        "Dense", "keras.layers", {"activation": relu, "kernel_initializer": entry("Zeros", "keras.initializers", {})}
    )
    inspect(archive(tmp_path, dense), "keras", False)


def test_bombs_paths_and_damage_are_refused(tmp_path: Path) -> None:
    dense = entry("Dense", "keras.layers", {})
    with pytest.raises(InputError, match="expands to"):
        inspect(archive(tmp_path, dense, bomb=bytes(64 << 20)), "keras", False)
    with pytest.raises(InputError, match="leads outside"):
        inspect(archive(tmp_path, dense, **{"../x": b""}), "keras", False)
    (tmp_path / "cut.keras").write_bytes(archive(tmp_path, dense).read_bytes()[:60])
    with pytest.raises(InputError, match=r"cut\.keras: a damaged Keras file"):
        inspect(tmp_path / "cut.keras", "keras", False)


def test_hdf5_never_leads_out_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file["out"] = h5py.ExternalLink("/etc/passwd", "/")
    with pytest.raises(InputError, match=r"is a link \(ExternalLink\)"):
        inspect(path, "h5", False)
    with h5py.File(path, "w") as file:
        file.create_dataset("w", (4,), "f4", external=[(str(tmp_path / "raw"), 0, 16)])
    with pytest.raises(InputError, match="stored outside the file"):
        inspect(path, "h5", False)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("w", h5py.VirtualLayout((4,), "f4"))
        layout = h5py.VirtualLayout((4,), "f4")
        layout[:] = h5py.VirtualSource("other.h5", "w", (4,))
        file.create_virtual_dataset("v", layout)
    with pytest.raises(InputError, match="stored outside the file"):
        inspect(path, "h5", False)


def test_hdf5_cycles_end_and_declared_sizes_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file.create_group("g")["back"] = file["/"]
    inspect(path, "h5", False)
    with h5py.File(path, "w") as file:
        file.create_dataset("w", (1 << 40,), "f4", chunks=(1 << 10,))
    with pytest.raises(InputError, match="datasets declare 4398046511104 bytes"):
        inspect(path, "h5", False)


def test_a_wrong_extension_is_mended_by_a_link_in_the_folder_that_the_parent_removes(tmp_path: Path) -> None:
    path, folder = tmp_path / "model.bin", tmp_path / "of the parent"
    path.write_bytes(b"content")
    folder.mkdir()
    named = _named(path, "h5", folder)
    assert (named.parent, named.suffix) == (folder, ".h5")
    assert named.read_bytes() == b"content"
    assert _named(tmp_path / "other.bin", "h5", folder) != named, "a teacher beside a student"
    assert _named(tmp_path / "model.keras", "keras", folder) == tmp_path / "model.keras"
