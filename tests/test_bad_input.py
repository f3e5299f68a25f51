"""Hostile and clumsy users at the real command line: one clear line, the documented exit code, nothing half-written."""

from __future__ import annotations

import json
import os
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as onh
import onnx.parser
from command_kit import Done, run_all

HEADER = '<ir_version: 9, opset_import: ["" : 18, "local" : 1]>'
SOUND = "g (float[n, 4] x) => (float[n, 4] y) { a = Relu(x)\n y = Neg(a) }"


def parsed(graph: str, functions: str = "") -> onnx.ModelProto:
    return onnx.parser.parse_model(f"{HEADER}\n{graph}\n{functions}")


def external(location: str, **more: int) -> onnx.ModelProto:
    proto = parsed("g (float[n, 4] x) => (float[n, 4] y) { y = Add(x, w) }")
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=str(value))
    proto.graph.initializer.append(tensor)
    return proto


def listing(folder: Path) -> list[tuple[str, int]]:
    """Everything in `folder`, by name and size; the cache of decisions left out."""
    found = [path for path in folder.rglob("*") if ".cache" not in path.parts]
    return sorted((str(path.relative_to(folder)), path.lstat().st_size) for path in found)


def refused(done: Done, code: int, said: str) -> None:
    assert (done.code, done.out) == (code, ""), done.err
    assert said in done.err
    assert done.err.startswith("error: ") and 1 <= len(done.err.splitlines()) <= 3
    assert "Traceback" not in done.err
    assert harmless(done.err)
    assert done.seconds < 20 and done.memory < 300


def harmless(text: str) -> bool:
    """Whether nothing in `text` moves a cursor, reverses a line or hides."""
    return not any(unicodedata.category(c) in ("Cc", "Cf", "Co", "Cs") and c != "\n" for c in text)


# -- models ---------------------------------------------------------------------------------------------------------


def _files(folder: Path) -> None:
    (folder / "w.bin").write_bytes(bytes(16))
    (folder / "sub").mkdir()
    (folder / "sub" / "up.onnx").write_bytes(external("../w.bin").SerializeToString())
    (folder / "sub" / "link.bin").symlink_to(folder / "w.bin")
    (folder / "sub" / "link.onnx").write_bytes(external("link.bin").SerializeToString())
    os.mkfifo(folder / "sub" / "pipe")
    (folder / "sub" / "pipe.onnx").write_bytes(external("pipe").SerializeToString())
    os.link(folder / "w.bin", folder / "sub" / "hard.bin")
    (folder / "sub" / "hard.onnx").write_bytes(external("hard.bin").SerializeToString())
    (folder / "absolute.onnx").write_bytes(external("/etc/passwd").SerializeToString())
    (folder / "beyond.onnx").write_bytes(external("sub/short.bin", offset=8).SerializeToString())
    (folder / "sub" / "short.bin").write_bytes(bytes(16))
    (folder / "text.onnx").write_text("hello, I am text\n")
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "good.onnx").write_bytes(parsed(SOUND).SerializeToString())
    (folder / "cut.onnx").write_bytes(parsed(SOUND).SerializeToString()[:-30])
    huge = parsed("g (float[n, 4] x) => (float[n, 4] y) { y = Add(x, w) }")
    huge.graph.initializer.append(onnx.TensorProto(name="w", data_type=1, dims=[1 << 40, 4], raw_data=bytes(8)))
    (folder / "huge.onnx").write_bytes(huge.SerializeToString())
    calls = "g (float[2] x) => (float[2] y) { y = local.F(x) }"
    loop = '<domain: "local", opset_import: ["" : 18, "local" : 1]>\nF (a) => (b) { b = local.F(a) }'
    (folder / "recursive.onnx").write_bytes(parsed(calls, loop).SerializeToString())
    with zipfile.ZipFile(folder / "zip.onnx", "w") as archive:
        archive.writestr("readme.txt", "hi")


BAD_MODELS = {
    "absolute.onnx": "external data '/etc/passwd' lies outside the model's folder",
    "sub/up.onnx": "external data '../w.bin' lies outside the model's folder",
    "sub/link.onnx": "external data 'link.bin' lies outside the model's folder",
    "sub/pipe.onnx": "external data 'pipe' is not a regular file",
    "sub/hard.onnx": "has several hard links: copy it",
    "beyond.onnx": "bytes 8 to 24 lie beyond the end of 'sub/short.bin' (16 bytes)",
    "text.onnx": "not an ONNX model, or a damaged one",
    "empty.onnx": "the file is empty",
    "cut.onnx": "cut.onnx: ",
    "huge.onnx": "tensor 'w' (1099511627776x4) needs",
    "recursive.onnx": "function 'local::F' calls itself",
    "zip.onnx": "a zip archive, but neither a Keras model nor a PyTorch export",
    "missing.onnx": "no such file or directory",
    "sub/pipe": "not a regular file",
    "/dev/zero": "not a regular file",
    "sub": "a directory without saved_model.pb, so not a SavedModel",
}


def test_bad_models_are_refused_alike_by_every_command(tmp_path: Path):
    _files(tmp_path)
    before = listing(tmp_path)
    commands = [command for name in BAD_MODELS for command in (["estimate", name], ["optimize", name, "-o", "out"])]
    commands += [["verify", "good.onnx", "cut.onnx"], ["measure", "text.onnx"], ["simplify", "huge.onnx", "out.onnx"]]
    reasons = [said for said in BAD_MODELS.values() for _ in range(2)] + ["cut.onnx", "text.onnx", "tensor 'w'"]
    for done, said in zip(run_all(commands, tmp_path), reasons, strict=True):
        refused(done, 2, said)
    assert listing(tmp_path) == before


def test_explain_and_bisect_refuse_the_same_and_write_nothing(tmp_path: Path):
    _files(tmp_path)
    before = listing(tmp_path)
    names = ("absolute.onnx", "cut.onnx", "huge.onnx", "recursive.onnx")
    commands = [[command, name] for name in names for command in ("explain", "bisect")]
    for (_, name), done in zip(commands, run_all(commands, tmp_path), strict=True):
        refused(done, 2, BAD_MODELS[name])
    assert listing(tmp_path) == before


BOMBS = {
    "fill": """g (float[2] x) => (float[n, m] y) {
        s = Constant<value = int64[2] {1000000, 1000000}>()
        y = ConstantOfShape(s) }""",
    "range": """g (float[2] x) => (int64[n] y) { a = Constant<value = int64 {0}>()
        b = Constant<value = int64 {1000000000000}>()
        d = Constant<value = int64 {1}>()
        y = Range(a, b, d) }""",
    "expand": """g (float[1] x) => (float[n, m] y) { s = Constant<value = int64[2] {1000000, 1000000}>()
        y = Expand(x, s) }""",
    "tiles of tiles": """g (float[1] x) => (float[n] y) { c = Constant<value = float[1] {1}>()
        r = Constant<value = int64[1] {1000}>()
        a = Tile(c, r)
        b = Tile(a, r)
        d = Tile(b, r)
        e = Tile(d, r)
        y = Add(e, x) }""",
    "doubling": "g (float[1] x) => (int64[n] y) { a0 = Constant<value = int64[2] {1, 2}>()\n"
    + "\n".join(f"a{i + 1} = Concat<axis = 0>(a{i}, a{i})" for i in range(40))
    + "\n y = Identity(a40) }",
    "one hot": """g (float[2] x) => (float[n, m] y) { i = Constant<value = int64[1] {0}>()
        d = Constant<value = int64 {1000000000000}>()
        v = Constant<value = float[2] {0, 1}>()
        o = OneHot(i, d, v)
        y = Identity(o) }""",
    "endless loop": """g (float[2] x) => (float[2] y) { n = Constant<value = int64 {9000000000000}>()
        c = Constant<value = bool {1}>()
        y = Loop(n, c, x) <body = b (int64 i, bool ci, float[2] v) => (bool co, float[2] vo) {
            co = Identity(ci)
            vo = Relu(v) }> }""",
}


def test_bombs_cost_neither_memory_nor_time(tmp_path: Path):
    """Folding and estimating leave them alone; running them is bounded by the limits, and said."""
    for name, graph in BOMBS.items():
        (tmp_path / f"{name}.onnx").write_bytes(parsed(graph).SerializeToString())
    limits = ("--time-limit", "1s", "--memory-limit", "2GiB")
    commands = [["estimate", f"{name}.onnx"] for name in BOMBS]
    commands += [["simplify", f"{name}.onnx", f"{name}.out.onnx", *limits] for name in BOMBS]
    for command, done in zip(commands, run_all(commands, tmp_path), strict=True):
        assert done.code == 0, (command, done)
        assert done.seconds < 20 and done.memory < 300, (command, done)
    assert max((tmp_path / f"{name}.out.onnx").stat().st_size for name in BOMBS) < 4 << 20


def test_bombs_are_compiled_unrun_and_neither_verified_nor_measured(tmp_path: Path):
    limits = ("--time-limit", "1s", "--memory-limit", "2GiB")
    names = ("fill", "endless loop")
    for name in names:
        (tmp_path / f"{name}.onnx").write_bytes(parsed(BOMBS[name]).SerializeToString())
    for name in names:
        model = f"{name}.onnx"
        commands = [["optimize", model, "-o", name], ["verify", model, model], ["measure", model]]
        built, compared, timed = run_all([[*command, *limits] for command in commands], tmp_path)
        assert built.code == 0 and "does not run here" in built.out, built
        assert [compared.code, timed.code] == [2, 2] and compared.err.count("\n") == timed.err.count("\n") == 1
        assert max(done.seconds for done in (built, compared, timed)) < 60


def test_bisect_leaves_bombs_alone(tmp_path: Path):
    graph = BOMBS["tiles of tiles"]
    (tmp_path / "tiles.onnx").write_bytes(parsed(graph).SerializeToString())
    limits = ("--time-limit", "1s", "--memory-limit", "2GiB")
    (done,) = run_all([["bisect", "tiles.onnx", *limits]], tmp_path)  # explain runs the same passes
    assert (done.code, done.err) == (0, "") and done.memory < 300, done
    assert [path.name for path in tmp_path.glob("*.onnx")] == ["tiles.onnx"]


# -- data, metrics, configuration, places ---------------------------------------------------------------------------

FUNCTIONS = """
import numpy as np, sys
def late():
    yield {'x': np.ones((1, 4), 'f')}
    raise ValueError('two\\nlines \\x1b[31m')
def nothing(): return None
def empty(): return iter([])
def quits(): sys.exit(0); yield
def ends(infer): sys.exit(0)
def wrong(infer): return infer({'x': np.ones((1, 3), 'f')})
"""


def _data(folder: Path) -> None:
    x = np.ones((4, 4), np.float32)
    arrays = {
        "ok": {"x": x}, "objects": {"x": np.array([{"a": 1}], object)}, "none": {"x": x[:0]}, "nothing": {},
        "name": {"image": x}, "shape": {"x": x[:, :3]}, "strings": {"x": np.array([["a"] * 4])},
        "complex": {"x": x.astype(complex)}, "hollow": {"x": np.zeros((2, 0, 4), np.float32)},
    }  # fmt: skip
    for name, held in arrays.items():
        np.savez(folder / f"{name}.npz", **held)
    (folder / "text.npz").write_text("text")
    (folder / "cut.npz").write_bytes((folder / "ok.npz").read_bytes()[:100])
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**12}, 4), }}".ljust(117) + "\n"
    with zipfile.ZipFile(folder / "bomb.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\0" + (118).to_bytes(2, "little") + header.encode())
    (folder / "f.py").write_text(FUNCTIONS)
    (folder / "syntax.py").write_text("def f(:\n")
    (folder / "folder").mkdir()


def _clumsy(folder: Path) -> None:
    """A sound model, data of all sorts, and things that stand in the way."""
    (folder / "good.onnx").write_bytes(parsed(SOUND).SerializeToString())
    _data(folder)
    (folder / "thesis").mkdir()
    (folder / "thesis" / "chapter.tex").write_text("years of work")
    (folder / "file").write_text("x")
    for name, text in CONFIGS.items():
        (folder / f"{name}.toml").write_bytes(text)
    (folder / "other.json").write_text('{"version": 1, "target": "cuda"}')
    os.mkfifo(folder / "pipe")


CONFIGS = {
    "typo": b'model = "good.onnx"\nsparsty = 0.5\n',
    "type": b'model = "good.onnx"\nint8 = "yes"\n',
    "syntax": b"model = = 3\n",
    "binary": b"\xff\xfe\0",
    "seed": b'model = "good.onnx"\nseed = -1\n',
}

CLUMSY: list[tuple[tuple[str, ...], str]] = [
    (("--data", "objects.npz"), "objects.npz: array 'x' holds Python objects or records; save plain numbers"),
    (("--data", "none.npz"), "none.npz: holds no feeds"),
    (("--data", "nothing.npz"), "nothing.npz: holds no arrays"),
    (("--data", "hollow.npz"), "hollow.npz, row 0: holds no numbers: 'x' [0, 4]"),
    (("--data", "name.npz"), "no array for model input 'x'; it holds 'image'"),
    (("--data", "shape.npz"), "array 'x' has shape [4, 3], the model wants float32[n,4]"),
    (("--data", "strings.npz"), "array 'x' is <U1, the model wants float32[n,4]"),
    (("--data", "complex.npz"), "array 'x' is complex128"),
    (("--data", "text.npz"), "text.npz: not an .npz file, or a damaged one"),
    (("--data", "cut.npz"), "cut.npz: not an .npz file, or a damaged one"),
    (("--data", "bomb.npz"), "bomb.npz: array 'x' is damaged (its size contradicts its shape"),
    (("--data", "missing.npz"), "missing.npz: no such file"),
    (("--data", "pipe"), "pipe: not a regular file"),
    (("--data", "folder"), "folder: holds no .npz files"),
    (("--data", "f.py"), "name the function too: f.py:FUNCTION"),
    (("--data", "f.py:late"), "f.py:late failed at line 5: ValueError: two"),
    (("--data", "f.py:nothing"), "f.py:nothing returned a NoneType; it must yield dicts of arrays"),
    (("--data", "f.py:empty"), "f.py:empty: holds no feeds"),
    (("--data", "f.py:quits"), "f.py:quits failed at line 8: SystemExit: 0"),
    (("--data", "syntax.py:f"), "syntax.py: fails to load at line 1: SyntaxError"),
    (("--metric", "f.py:ends"), "f.py:ends failed at line 9: SystemExit: 0"),
    (("--metric", "f.py:wrong"), "the model fails on this feed"),
    (("--metric", "f.py:absent"), "f.py: has no function 'absent'"),
    (("--config", "typo.toml"), "typo.toml: unknown key 'sparsty'; did you mean 'sparsity'?"),
    (("--config", "type.toml"), "type.toml: 'int8' must be true or false, not 'yes'"),
    (("--config", "syntax.toml"), "syntax.toml: not valid TOML"),
    (("--config", "binary.toml"), "binary.toml: not valid TOML"),
    (("--config", "seed.toml"), "--seed -1: write a number from 0"),
    (("--config", "pipe"), "pipe: not a regular file"),
    (("--decisions", "other.json"), "other.json: made for target 'cuda', not 'cpu'"),
    (("--decisions", "pipe"), "pipe: not a regular file"),
    (("--shape", "m=3"), "unknown name 'm'; the symbols are: n"),
    (("--target", "tpu"), "target 'tpu' is not known; choose from cpu, cuda, tensorrt"),
    (("--passes", "fold-constnats"), "no pass is called 'fold-constnats'"),
    (("--plugin", "missing.py"), "plugin missing.py: no such file"),
    (("--custom-ops", "missing.so"), "--custom-ops missing.so: no such file"),
    (("--device", "toaster"), "no device profile 'toaster'"),
    (("--dump", "file"), "file: cannot be made"),
    (("-o", "thesis"), "thesis: holds files that joulec did not write"),
    (("-o", "file"), "file: exists and is not a directory"),
    (("-o", "file/below"), "file: is not a directory"),
    (("-o", "good.onnx"), "good.onnx: exists and is not a directory"),
    (("-o", "/proc/joulec/x"), "/proc/joulec/x: cannot be written"),
    (("-o", "x" * 300), "File name too long"),
]


SIMPLIFIED = {
    "thesis": "thesis: is a directory; name the file to write",
    "none/out.onnx": "none/out.onnx: ",
    "pipe": "pipe: exists and is not a regular file",
    "/dev/null": "/dev/null: exists and is not a regular file",
    "file/out.onnx": "file/out.onnx: ",
}


def test_clumsy_users_are_told_what_to_do_and_nothing_is_left_behind(tmp_path: Path):
    _clumsy(tmp_path)
    before = listing(tmp_path)
    commands = [["optimize", "good.onnx", *(() if "-o" in given else ("-o", "out")), *given] for given, _ in CLUMSY]
    commands += [["simplify", "good.onnx", out] for out in SIMPLIFIED]
    reasons = [*(said for _, said in CLUMSY), *SIMPLIFIED.values()]
    for done, said in zip(run_all(commands, tmp_path), reasons, strict=True):
        refused(done, 2, said)
    assert listing(tmp_path) == before


# -- names that a model chose ---------------------------------------------------------------------------------------

NAMES = [
    "\x1b[31mred",
    "<script>alert(1)</script>",
    "a\nb\r",
    "../../../escape",
    "/etc/joulec",
    "\u202egnp",
    "[bold]x[/]",
]


def named() -> onnx.ModelProto:
    """A chain of MatMul and Relu, each with another of `NAMES` for all that it names."""
    value, rng = oh.make_tensor_value_info, np.random.default_rng(0)
    nodes, weights = [], []
    for index, name in enumerate(NAMES):
        weights.append(onh.from_array(rng.standard_normal((16, 16)).astype(np.float32), f"{name}W"))
        source, result = f"{NAMES[index - 1]}{index}", f"{name}{index + 1}"
        nodes += [
            oh.make_node("MatMul", [source, f"{name}W"], [f"{name}M"], name=f"{name}m", doc_string=name),
            oh.make_node("Relu", [f"{name}M"], [result], name=f"{name}r"),
        ]
    shape, last = [NAMES[0], 16], len(NAMES)
    inputs, outputs = [value(f"{NAMES[-1]}0", 1, shape)], [value(f"{NAMES[-1]}{last}", 1, shape)]
    graph = oh.make_graph(nodes, NAMES[0], inputs, outputs, weights)
    made = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 18)], ir_version=9, producer_name=NAMES[0])
    made.metadata_props.add(key=NAMES[1], value=NAMES[0])
    return made


def test_names_from_a_model_are_shown_and_never_obeyed(tmp_path: Path):
    inner = tmp_path / "deep" / "er"
    inner.mkdir(parents=True)
    proto = named()
    (inner / "m.onnx").write_bytes(proto.SerializeToString())
    prune = ("--passes", "prune-magnitude{sparsity=0.5}", "--data", "random", "--dump", "dump")
    table, summary = run_all([["estimate", "m.onnx"], ["optimize", "m.onnx", "-o", "out", *prune]], inner)
    for done in (table, summary):
        assert (done.code, done.err) == (0, ""), done.err
        assert harmless(done.out)
    assert "\\x1b[31mredm" in table.out and "[bold]x[/]r" in table.out
    _check_artefact(inner / "out")
    emitted = onnx.load(inner / "out" / "model.onnx").graph
    assert [value.name for value in (*emitted.input, *emitted.output)] == ["[bold]x[/]0", "[bold]x[/]7"]
    assert {file.name for file in (inner / "dump").iterdir()} == {"01-upgrade-opset.onnx", "02-prune-magnitude.onnx"}
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["er"]


def _check_artefact(folder: Path) -> None:
    masks = {"masks.npz", "masks_source.npz"}
    names = {"decisions.json", "manifest.json", "model.onnx", "report.html", "session.json"} | masks
    assert {file.name for file in folder.iterdir()} == names
    with zipfile.ZipFile(folder / "masks.npz") as archive:
        members = archive.namelist()
    assert len(members) == len(NAMES)
    assert not any(not harmless(m) or m.startswith("/") or ".." in m.split("/") for m in members)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert harmless(page) and "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    for file in folder.glob("*.json"):
        text = file.read_text(encoding="utf-8")
        assert harmless(text) and json.loads(text)
