"""Reading .npz files as streams, and refusing what does not deserve trust."""

from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from joulec.data.npz import NpzFile, NpzLimits
from joulec.errors import InputError


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_rows_and_whole_give_what_numpy_saved(tmp_path, save):
    x, s = np.arange(24, dtype=np.int16).reshape(4, 2, 3), np.float32(7)
    save(tmp_path / "a.npz", x=x, s=s)
    file = NpzFile(tmp_path / "a.npz")
    assert list(file.members) == ["x", "s"]
    np.testing.assert_array_equal(file.whole("x"), x)
    np.testing.assert_array_equal(np.stack(list(file.rows("x"))), x)
    assert file.whole("s").shape == () and file.whole("s") == 7
    assert file.whole("x").flags.writeable


def test_column_major_arrays_keep_their_meaning(tmp_path):
    x = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    np.savez(tmp_path / "f.npz", x=x)
    file = NpzFile(tmp_path / "f.npz")
    assert file.members["x"].fortran
    np.testing.assert_array_equal(np.stack(list(file.rows("x"))), x)


def test_memory_is_one_row_whatever_the_number_of_rows(tmp_path):
    np.savez_compressed(tmp_path / "big.npz", x=np.zeros((2000, 4096), np.float32))  # 32 MB expanded
    tracemalloc.start()
    count = sum(1 for _ in NpzFile(tmp_path / "big.npz").rows("x"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 2000
    assert peak < 2 << 20


def forged(folder: Path, dtype: str, shape: str) -> Path:
    """An .npz whose header says `dtype` and `shape`, and that holds no numbers."""
    header = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
    header += f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    with zipfile.ZipFile(folder / "forged.npz", "w") as archive:
        archive.writestr("x.npy", header)
    return folder / "forged.npz"


def refused(path: Path, limits: NpzLimits | None = None) -> str:
    with pytest.raises(InputError) as caught:
        for name in NpzFile(path, limits).members:
            NpzFile(path, limits).whole(name)
    return str(caught.value)


def test_python_objects_are_refused(tmp_path):
    np.savez(tmp_path / "o.npz", x=np.array([{"a": 1}], dtype=object))
    assert "holds Python objects" in refused(tmp_path / "o.npz")


def test_missing_truncated_and_foreign_files_are_refused_in_one_line(tmp_path):
    assert refused(tmp_path / "none.npz").endswith("no such file")
    (tmp_path / "text.npz").write_text("hello")
    assert "not an .npz file" in refused(tmp_path / "text.npz")
    np.save(tmp_path / "single.npy", np.ones(3))
    assert "it is a single array; save it with numpy.savez(" in refused(tmp_path / "single.npy")
    np.savez(tmp_path / "a.npz", x=np.ones(1000))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-300])
    assert "not an .npz file" in refused(tmp_path / "cut.npz")
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as archive:
        archive.writestr("readme.txt", "hi")
    assert "which is not an array" in refused(tmp_path / "zip.npz")
    for name in ("none", "text", "cut", "zip"):
        assert "\n" not in refused(tmp_path / f"{name}.npz")


def test_flipped_bytes_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones(1000))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[1000] ^= 255
    (tmp_path / "a.npz").write_bytes(data)
    assert "is damaged" in refused(tmp_path / "a.npz")


def test_a_header_that_promises_more_than_the_file_holds_is_refused_before_reading(tmp_path):
    assert "size contradicts its shape" in refused(forged(tmp_path, "'<f4'", "(1000000000000,)"))
    assert "size contradicts its shape" in refused(forged(tmp_path, "'<f4'", "(-1, 0)"))
    assert "holds Python objects or records" in refused(forged(tmp_path, "[('a', '<f4')]", "(0,)"))


def test_endless_rows_of_nothing_are_refused(tmp_path):
    file = NpzFile(forged(tmp_path, "'<f4'", "(1000000000000, 0)"))
    with pytest.raises(InputError, match="declares 1000000000000 rows of nothing"):
        next(file.rows("x"))


def test_bombs_are_refused_before_expanding(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros(1 << 22, np.uint8))
    assert (tmp_path / "bomb.npz").stat().st_size < 1 << 14
    assert "expands to" in refused(tmp_path / "bomb.npz", NpzLimits(total=1 << 20))
    assert "of memory at once" in refused(tmp_path / "bomb.npz", NpzLimits(piece=1 << 20))


def test_foreign_compression_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones(3))
    with zipfile.ZipFile(tmp_path / "a.npz") as a, zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_LZMA) as b:
        b.writestr("x.npy", a.read("x.npy"))
    assert "encrypted or compressed" in refused(tmp_path / "b.npz")
