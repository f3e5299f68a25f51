"""`--data` in all its forms, and one clear line for each way in which data can be wrong."""

from __future__ import annotations

import tempfile
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulec.data import load_feeds, synthetic_feeds
from joulec.errors import InputError
from joulec.ir.feeds import Feeds


def model_input(name: str = "x", shape: tuple = ("batch", 2, 3), dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    return ir.Value(name=name, shape=None if shape is None else ir.Shape(shape), type=ir.TensorType(dtype))


X = [model_input()]
SAMPLES = np.arange(24, dtype=np.float32).reshape(4, 2, 3)


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def refusal(spec: object, inputs: list[ir.Value] = X, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        list(load_feeds(spec, inputs, **options))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_rows_of_one_npz_become_batch_one_where_the_first_dimension_is_symbolic(tmp_path):
    feeds = load_feeds(save(tmp_path / "c.npz", x=SAMPLES), X)
    assert (feeds.count, feeds.kind, feeds.description) == (4, "data", "c.npz (4 feeds)")
    assert [feed["x"].shape for feed in feeds] == [(1, 2, 3)] * 4
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in feeds]), SAMPLES)


def test_rows_that_have_the_models_own_shape_are_taken_as_they_are(tmp_path):
    stacked = SAMPLES.reshape(2, 2, 2, 3)
    feeds = load_feeds(str(save(tmp_path / "c.npz", x=stacked)), X)
    assert [feed["x"].shape for feed in feeds] == [(2, 2, 3)] * 2


def test_rows_fill_a_first_dimension_fixed_at_one(tmp_path):
    feeds = load_feeds(save(tmp_path / "c.npz", x=SAMPLES), [model_input(shape=(1, 2, 3))])
    assert [feed["x"].shape for feed in feeds] == [(1, 2, 3)] * 4


def test_inputs_are_batched_each_by_its_own_shape_and_come_in_the_models_order(tmp_path):
    inputs = [model_input("x"), model_input("rate", (), ir.DataType.INT64), model_input("state", (2, None, 5))]
    path = save(tmp_path / "c.npz", rate=np.ones(4, np.int64), state=np.zeros((4, 2, 1, 5), np.float32), x=SAMPLES)
    feed = load_feeds(path, inputs).head(1)[0]
    shapes = [(name, array.shape) for name, array in feed.items()]
    assert shapes == [("x", (1, 2, 3)), ("rate", ()), ("state", (2, 1, 5))]


def test_a_directory_is_one_feed_a_file_by_name(tmp_path):
    for name in ("b", "a", "c"):
        save(tmp_path / f"{name}.npz", x=np.full((2, 2, 3), ord(name), np.float32))
    (tmp_path / "readme.txt").write_text("not data")
    feeds = load_feeds(tmp_path, X)
    assert feeds.count == 3
    assert [chr(int(feed["x"][0, 0, 0])) for feed in feeds] == ["a", "b", "c"]


def test_a_directory_takes_the_models_own_shape_only(tmp_path):
    save(tmp_path / "a.npz", x=SAMPLES[0])
    assert "a.npz: array 'x' has shape [2, 3], the model wants float32[batch,2,3]" in refusal(tmp_path)


def test_a_function_in_a_file(tmp_path):
    path = tmp_path / "feeds.py"
    body = "for i in range(3): yield {'x': np.full((1, 2, 3), i, 'f4')}"
    path.write_text(f"import numpy as np\ndef three():\n    {body}\n")
    feeds = load_feeds(f"{path}:three", X)
    assert feeds.count is None
    assert [int(feed["x"].max()) for feed in feeds] == [0, 1, 2]
    assert len(list(feeds)) == 3


def test_python_lists_functions_dicts_and_feeds():
    listed = [{"x": SAMPLES[:1]}, {"x": SAMPLES[1:3]}]
    assert load_feeds(listed, X).count == 2
    assert len(list(load_feeds(lambda: iter(listed), X))) == 2
    assert [feed["x"].shape for feed in load_feeds({"x": SAMPLES}, X)] == [(1, 2, 3)] * 4
    given = Feeds.of(listed)
    assert load_feeds(given, X) is given


def test_a_generator_is_kept_because_it_is_read_more_than_once(monkeypatch):
    feeds = load_feeds(({"x": SAMPLES[i : i + 1]} for i in range(4)), X)
    assert len(list(feeds)) == len(list(feeds)) == 4
    monkeypatch.setattr("joulec.data.sources.BUFFER_LIMIT", 50)
    assert "a generator can be read only once" in refusal({"x": SAMPLES[i : i + 1]} for i in range(4))


def test_random_only_by_name_seeded_and_said():
    ids, flags = model_input("ids", (None, "seq"), ir.DataType.INT64), model_input("b", (2,), ir.DataType.BOOL)
    inputs = [model_input(), ids, flags]
    feeds = load_feeds("random", inputs, shapes={"seq": 5, "ids[0]": 3}, seed=1)
    first, second = feeds.head(2)
    assert feeds.kind == "random" and "random numbers (seed 1" in feeds.description
    assert [array.shape for array in first.values()] == [(1, 2, 3), (3, 5), (2,)]
    assert [array.dtype.name for array in first.values()] == ["float32", "int64", "bool"]
    assert set(np.unique(np.stack([feed["ids"] for feed in feeds]))) == {0, 1}
    assert not np.array_equal(first["x"], second["x"])
    np.testing.assert_array_equal(feeds.head(1)[0]["x"], first["x"])


def test_a_shape_given_for_one_input_binds_its_symbols_in_the_others():
    inputs = [model_input(), model_input("y", ("batch", "n"))]
    feed = synthetic_feeds(inputs, {"x": (4, 2, 3)}, count=1).head(1)[0]
    assert feed["y"].shape == (4, 1)


def test_synthetic_feeds_are_labelled_and_bounded():
    feeds = synthetic_feeds(X, {"batch": 2}, count=3)
    assert (feeds.kind, feeds.count) == ("synthetic", 3)
    with pytest.raises(InputError, match="give smaller dimensions with --shape"):  # numpy counts without the 0
        synthetic_feeds([model_input(shape=(0, 1 << 62, 2))])
    with pytest.raises(InputError, match="give smaller dimensions with --shape"):
        synthetic_feeds(X, {"batch": 1 << 31})
    with pytest.raises(InputError, match="declares no shape"):
        synthetic_feeds([model_input(shape=None)])


def test_strings_and_half_precision_are_drawn_and_read(tmp_path):
    inputs = [model_input("t", (None,), ir.DataType.STRING), model_input("h", (2,), ir.DataType.BFLOAT16)]
    assert [array.dtype.name for array in load_feeds("random", inputs).head(1)[0].values()] == ["object", "bfloat16"]
    path = save(tmp_path / "s.npz", t=np.array(["a", "b"]), h=np.ones((2, 2), np.float32))
    first = load_feeds(path, inputs).head(1)[0]
    assert first["t"].tolist() == ["a"] and first["h"].dtype.name == "bfloat16"


@pytest.mark.parametrize(
    ("given", "wanted", "note"),
    [
        (np.float64, ir.DataType.FLOAT, "'x' cast from float64 to float32"),
        (np.uint8, ir.DataType.FLOAT, "'x' cast from uint8 to float32"),
        (np.int64, ir.DataType.INT32, "'x' cast from int64 to int32"),
        (np.int32, ir.DataType.INT64, "'x' cast from int32 to int64"),
        (np.float32, ir.DataType.FLOAT16, "'x' cast from float32 to float16"),
    ],
)
def test_harmless_casts_are_made_and_noted(tmp_path, given, wanted, note):
    inputs = [model_input(dtype=wanted)]
    feeds = load_feeds(save(tmp_path / "c.npz", x=SAMPLES.astype(given)), inputs)
    assert note in feeds.description
    assert feeds.head(1)[0]["x"].dtype == wanted.numpy()


def test_labels_beside_the_inputs_are_left_out_and_said(tmp_path):
    feeds = load_feeds(save(tmp_path / "c.npz", x=SAMPLES, y=np.zeros(7)), X)
    assert "'y' is no input of the model and left out" in feeds.description
    assert list(feeds.head(1)[0]) == ["x"]


def test_nan_is_said(tmp_path):
    broken = SAMPLES.copy()
    broken[2, 0, 0] = np.nan
    assert "'x' holds NaN or infinity" in load_feeds(save(tmp_path / "c.npz", x=broken), X).description


def test_missing_and_empty_data(tmp_path):
    assert "no such file or directory" in refusal(tmp_path / "none.npz")
    assert "data: no path given" in refusal("")
    (tmp_path / "empty").mkdir()
    assert "holds no .npz files" in refusal(tmp_path / "empty")
    assert "holds no feeds" in refusal(save(tmp_path / "zero.npz", x=SAMPLES[:0]))
    assert "holds no arrays" in refusal(save(tmp_path / "nothing.npz"))
    assert "holds no feeds" in refusal([])
    assert "holds no feeds" in refusal(lambda: iter([]))
    empty = np.zeros((3, 0, 2, 3), np.float32)
    assert "e.npz, row 0: holds no numbers: 'x' [0, 2, 3]" in refusal(save(tmp_path / "e.npz", x=empty))


def test_one_empty_array_among_others_is_data(tmp_path):
    """A decoder's first step has a cache of length 0."""
    inputs = [model_input("x"), model_input("past", ("batch", "length", 4))]
    path = save(tmp_path / "c.npz", x=SAMPLES, past=np.zeros((4, 0, 4), np.float32))
    assert load_feeds(path, inputs).head(1)[0]["past"].shape == (1, 0, 4)


def test_wrong_names(tmp_path):
    text = refusal(save(tmp_path / "c.npz", image=SAMPLES))
    assert "no array for model input 'x'; it holds 'image', the model's inputs are 'x'" in text
    assert "no array for model input 'x'; it holds 'image'" in refusal([{"image": SAMPLES}])
    np.savez(tmp_path / "unnamed.npz", SAMPLES)
    assert "; save it with numpy.savez(path, x=array)" in refusal(tmp_path / "unnamed.npz")


def test_wrong_shapes(tmp_path):
    text = refusal(save(tmp_path / "c.npz", x=SAMPLES.reshape(4, 3, 2)))
    assert "array 'x' has shape [4, 3, 2], the model wants float32[batch,2,3]" in text
    assert "(N, model shape) or (N, model shape without its first dimension)" in text
    assert "data, feed 1: array 'x' has shape [2, 3]" in refusal([{"x": SAMPLES[:1]}, {"x": SAMPLES[0]}])
    fixed = [model_input(shape=(2, 2, 3))]
    text = refusal(save(tmp_path / "c.npz", x=SAMPLES), fixed)
    assert "has shape [4, 2, 3], the model wants float32[2,2,3]; arrays of one .npz must be (N, model shape)" in text


def test_wrong_element_types(tmp_path):
    ids = [model_input(dtype=ir.DataType.INT64)]
    assert "array 'x' is float32, the model wants int64[batch,2,3]" in refusal(save(tmp_path / "c.npz", x=SAMPLES), ids)
    small = [model_input(dtype=ir.DataType.UINT8)]
    text = refusal(save(tmp_path / "c.npz", x=SAMPLES.astype(np.int64) + 250), small)
    assert "row 1: array 'x' holds 261, which uint8 cannot" in text
    assert "data, feed 0: 'x' cannot be read as an array" in refusal([{"x": [[1, 2], [3]]}])
    assert "array 'x' is <U1" in refusal([{"x": np.full((1, 2, 3), "a")}])


def test_arrays_of_different_length(tmp_path):
    inputs = [model_input("x"), model_input("y")]
    text = refusal(save(tmp_path / "c.npz", x=SAMPLES, y=SAMPLES[:3]), inputs)
    assert "differ in their number of samples: 'x' 4, 'y' 3" in text


def test_one_symbol_has_one_size_within_a_feed():
    inputs = [model_input("x"), model_input("y")]
    text = refusal([{"x": SAMPLES[:1], "y": SAMPLES[:2]}], inputs)
    assert "dimension 'batch' is 1 in 'x' but 2 in 'y'" in text


def test_functions_that_fail_are_told_in_one_line(tmp_path):
    path = tmp_path / "f.py"
    path.write_text("def bad():\n    yield {}['x']\ndef one():\n    return {'x': 1}\nvalue = 3\n")
    assert refusal(f"{path}:bad") == "f.py:bad failed at line 2: KeyError: 'x'"
    assert "f.py:one returned a dict; it must yield dicts of arrays" in refusal(f"{path}:one")
    assert "has no function 'none'" in refusal(f"{path}:none")
    assert "'value' is not a function" in refusal(f"{path}:value")
    assert "name the function too" in refusal(str(path))
    assert "no such file" in refusal(f"{tmp_path}/missing.py:f")
    assert "data, feed 0: is of type list; a feed is a dict" in refusal([[1, 2]])


@given(
    hnp.array_shapes(min_dims=0, max_dims=3, max_side=4), st.integers(1, 4), st.booleans(),
    st.sampled_from([ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.UINT8, ir.DataType.BOOL]), st.data(),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_whatever_is_stacked_comes_back_row_by_row(shape, count, symbolic, dtype, data):
    stacked = data.draw(hnp.arrays(dtype.numpy(), (count, *shape)))
    inputs = [model_input(shape=("batch", *shape) if symbolic else shape, dtype=dtype)]
    with tempfile.TemporaryDirectory() as folder:
        feeds = list(load_feeds(save(Path(folder, "c.npz"), x=stacked), inputs))
    assert len(feeds) == count
    for row, feed in zip(stacked, feeds, strict=True):
        np.testing.assert_array_equal(feed["x"], row[np.newaxis] if symbolic else row)


def test_inputs_that_are_no_tensors_are_refused():
    sequence = ir.Value(name="s", type=ir.SequenceType(ir.TensorType(ir.DataType.FLOAT)))
    assert "'s' is not a tensor" in refusal("random", [sequence])
