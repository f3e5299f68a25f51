"""The Python interface from a model file to the artefact and back."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from compile_kit import cnn, feeds, write

import joulec
from joulec.api import simplify_file
from joulec.backends import artefact
from joulec.errors import BudgetError, CheckError, InputError, UnavailableError
from joulec.ir.sandbox import Limits

X = feeds(1)[0]


@pytest.fixture(autouse=True)
def short_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is decided is tested in test_compiler; here it only has to be decided."""
    monkeypatch.setattr("joulec.payoff.MAX_ROUNDS", 36)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return cnn(tmp_path / "cnn.onnx")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "calib.npz"
    np.savez(path, x=np.concatenate([feed["x"] for feed in feeds(16)]))
    return path


def outputs(path: Path | bytes) -> Any:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, X)[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


# -- the artefact ---------------------------------------------------------------------------------------------------


def test_an_artefact_holds_what_the_documentation_promises(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = joulec.optimize(model, out, data=data, sparsity=0.5, int8=True)
    assert sorted(contents(out)) == [
        "calibration.json", "decisions.json", "manifest.json", "masks.npz", "masks_source.npz",
        "model.onnx", "report.html", "session.json",
    ]  # fmt: skip
    report = result.reports["cpu"]
    assert report.files == {name: len(content) for name, content in contents(out).items()}
    assert {rung.name: rung.status for rung in report.checks} == {
        "onnx checker": "passed", "opset and IR": "passed", "lint": "passed", "kernel table": "passed",
        "opens on CPU": "passed", "CPU numerics": "passed", "integer kernels": "passed",
        "Triton config": "passed",
    }  # fmt: skip
    onnx.checker.check_model(str(out / "model.onnx"), full_check=True)
    masks = np.load(out / "masks.npz", allow_pickle=False)
    assert sum(mask.size - mask.sum() for mask in masks.values()) == round(0.5 * sum(m.size for m in masks.values()))
    assert set(json.loads((out / "manifest.json").read_text())["files"]) == set(contents(out)) - {"manifest.json"}


def test_the_loaded_artefact_computes_what_the_input_did(model: Path, tmp_path: Path) -> None:
    joulec.optimize(model, tmp_path / "out")
    session = joulec.load(tmp_path / "out")
    assert session.get_session_options().intra_op_num_threads == 1
    np.testing.assert_allclose(session.run(None, X)[0], outputs(model), rtol=1e-4, atol=1e-5)


def test_nothing_is_written_without_out(model: Path, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    result = joulec.optimize(model, int8=False)
    assert set(tmp_path.iterdir()) == before
    assert (result.directories, result.reports["cpu"].nodes_after) == ({}, 7)
    assert result.modules["cpu"].node_count() == 7


def test_several_targets_get_a_directory_each(model: Path, tmp_path: Path) -> None:
    result = joulec.optimize(model, tmp_path / "out", target=["cpu", "cuda", "tensorrt"])
    assert list(result.directories) == ["cpu", "cuda", "tensorrt"]
    for name, provider in [("cpu", "CPU"), ("cuda", "CUDA"), ("tensorrt", "Tensorrt")]:
        session = json.loads((tmp_path / "out" / name / "session.json").read_text())
        assert session["provider"] == f"{provider}ExecutionProvider"
        np.testing.assert_allclose(outputs(tmp_path / "out" / name / "model.onnx"), outputs(model), rtol=1e-4, atol=1e-5)
    skipped = {rung.name: rung.status for rung in result.reports["cuda"].checks}
    assert skipped["real device"] == "skipped"


def test_ordered_sparsity_goes_by_inputs_where_there_are_data(model: Path, data: Path) -> None:
    with_data = joulec.optimize(model, data=data, sparsity=0.5, int8=False, max_drop=None).reports["cpu"]
    without = joulec.optimize(model, sparsity=0.5).reports["cpu"]
    ran = [[step.spelling for step in one.steps if "magnitude" in step.spelling] for one in (with_data, without)]
    assert ran == [["prune-magnitude{sparsity=0.5,score=wanda}"], ["prune-magnitude{sparsity=0.5}"]]


def test_an_artefact_is_priced_for_what_it_was_made_for(model: Path, tmp_path: Path) -> None:
    joulec.optimize(model, tmp_path / "out", target="tensorrt")
    priced = joulec.estimate(tmp_path / "out")
    assert priced.to_json() == joulec.estimate(tmp_path / "out", "tensorrt").to_json()
    assert priced.device != joulec.estimate(tmp_path / "out", "cpu").device == joulec.estimate(model).device


def test_the_signature_and_metadata_survive(model: Path, tmp_path: Path) -> None:
    proto = onnx.load(model)
    proto.doc_string, proto.producer_name = "about", "me"
    proto.metadata_props.add(key="labels", value="0,1,2")
    proto.graph.input[0].doc_string = "pixels"
    joulec.optimize(proto, tmp_path / "out")
    written = onnx.load(tmp_path / "out" / "model.onnx")
    assert (written.doc_string, written.producer_name) == ("about", "me")
    assert {prop.key: prop.value for prop in written.metadata_props}["labels"] == "0,1,2"
    assert written.graph.input[0] == proto.graph.input[0]
    assert written.graph.output[0] == proto.graph.output[0]


@pytest.mark.parametrize("kind", ["path", "text", "proto", "ir", "bytes"])
def test_a_model_may_be_a_file_or_live(model: Path, kind: str) -> None:
    live: Any = {
        "path": lambda: model, "text": lambda: str(model), "proto": lambda: onnx.load(model),
        "ir": lambda: ir.load(model), "bytes": model.read_bytes,
    }[kind]()  # fmt: skip
    simplified = joulec.simplify(live)
    assert len(simplified.graph.node) == 7
    np.testing.assert_allclose(outputs(simplified.SerializeToString()), outputs(model), rtol=1e-4, atol=1e-5)


def test_a_live_model_is_left_as_it_was(model: Path) -> None:
    proto = onnx.load(model)
    before = proto.SerializeToString(deterministic=True)
    joulec.optimize(proto)
    joulec.simplify(proto)
    assert proto.SerializeToString(deterministic=True) == before


# -- nothing lost, nothing half-written ------------------------------------------------------------------------------


def test_a_place_that_holds_something_else_is_refused_before_any_work(model: Path, tmp_path: Path) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("work was begun")

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    (tmp_path / "file").write_text("keep me")
    for place, said in [("mine", "did not write"), ("file", "is not a directory"), ("file/below", "is not a directory")]:
        with pytest.raises(InputError, match=said):
            joulec.optimize(model, tmp_path / place, progress=never)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep me"


def test_a_file_of_the_users_inside_an_artefact_is_never_lost(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    joulec.optimize(model, out)
    (out / "notes.txt").write_text("keep me")
    with pytest.raises(InputError, match=r"holds 'notes\.txt', which joulec did not write"):
        joulec.optimize(model, out, remeasure=True)
    assert (out / "notes.txt").read_text() == "keep me"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_without_permission_is_refused_before_any_work(model: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(InputError, match="no permission"):
        joulec.optimize(model, tmp_path / "locked" / "out")


def test_a_failed_build_leaves_the_old_artefact_and_no_litter(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    joulec.optimize(model, out, int8=False)
    before, around = contents(out), sorted(tmp_path.iterdir())
    with pytest.raises(BudgetError, match="fidelity drops by"):
        joulec.optimize(model, out, data=data, sparsity=0.95, max_drop=0.001)
    assert (contents(out), sorted(tmp_path.iterdir())) == (before, around)


def test_a_failed_check_writes_nothing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from joulec.backends import Rung
    from joulec.backends.cpu import CpuBackend

    monkeypatch.setattr(CpuBackend, "check", lambda *_: [Rung("opens on CPU", "failed", "it does not")])
    with pytest.raises(CheckError, match="opens on CPU: it does not; nothing was written to"):
        joulec.optimize(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- build step -----------------------------------------------------------------------------------------------------


def test_an_unchanged_build_is_up_to_date_and_touches_nothing(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    joulec.optimize(model, out, data=data)
    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    result = joulec.optimize(model, out, data=data)
    assert result.reports["cpu"].status == "up to date"
    assert {file.name: file.stat().st_mtime_ns for file in out.iterdir()} == before


@pytest.mark.parametrize("changed", ["model", "data", "option", "artefact", "manifest", "report", "decisions", "remeasure"])
def test_whatever_changed_is_built_again(changed: str, model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    joulec.optimize(model, out, data=data, int8=False)
    more: dict[str, Any] = {}
    match changed:
        case "model":
            cnn(model, width=8)
        case "data":
            np.savez(data, x=np.concatenate([feed["x"] for feed in feeds(12)]))
        case "option":
            more = {"threads": 2}
        case "artefact":
            (out / "session.json").write_text("{}")
        case "manifest":
            (out / "manifest.json").write_text("{")
        case "report":  # every other file is what the manifest says
            manifest = json.loads((out / "manifest.json").read_text())
            (out / "manifest.json").write_text(json.dumps({**manifest, "report": {"steps": 5}}))
        case "decisions":
            decisions = json.loads((out / "decisions.json").read_text())
            decisions["excluded"] = ["fuse-affine"]
            (tmp_path / "other.json").write_text(json.dumps(decisions))
            more = {"decisions": tmp_path / "other.json"}
        case "remeasure":
            more = {"remeasure": True}
    again = joulec.optimize(model, out, data=data, int8=False, **more)
    assert again.reports["cpu"].status == "written"
    assert artefact.read_json(out / "session.json")["provider"] == "CPUExecutionProvider"


@pytest.mark.parametrize("int8", [None, True])
@pytest.mark.parametrize("how", ["file", "folder", "cache"])
def test_a_rebuild_with_its_decisions_is_byte_identical_but_for_timings(
    how: str, int8: bool | None, model: Path, data: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    built = joulec.optimize(model, first, data=data, sparsity=0.3, int8=int8).reports["cpu"]
    given = {"file": first / "decisions.json", "folder": first, "cache": None}[how]
    again = joulec.optimize(model, second, data=data, sparsity=0.3, int8=int8, decisions=given).reports["cpu"]
    one, other = contents(first), contents(second)
    assert list(one) == list(other)
    differing = [name for name in one if one[name] != other[name]]
    assert set(differing) <= {"report.html", "manifest.json"}
    same = {"directory": None, "files": {}}
    assert dataclasses.replace(built, **same).without_timings() == dataclasses.replace(again, **same).without_timings()


def test_decisions_under_other_orders_are_refused(model: Path, tmp_path: Path) -> None:
    joulec.optimize(model, tmp_path / "out", sparsity=0.3)
    with pytest.raises(InputError, match=r"made with --sparsity 0\.3, this build has --no-int8; give the same"):
        joulec.optimize(model, int8=False, decisions=tmp_path / "out")


def test_a_damaged_cache_is_no_cache(model: Path, tmp_path: Path) -> None:
    joulec.optimize(model, tmp_path / "out")
    (cached,) = Path(os.environ["XDG_CACHE_HOME"], "joulec", "decisions").iterdir()
    cached.write_text("{")
    assert joulec.optimize(model, tmp_path / "other").reports["cpu"].status == "written"


def test_decisions_of_another_target_are_refused(model: Path, tmp_path: Path) -> None:
    joulec.optimize(model, tmp_path / "out", target="cuda")
    with pytest.raises(InputError, match="made for target 'cuda', not 'cpu'"):
        joulec.optimize(model, tmp_path / "cpu", decisions=tmp_path / "out" / "decisions.json")


# -- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"target": ()}, "no target given; one or more of cpu, cuda, tensorrt"),
        ({"target": "tpu"}, "tpu"),
        ({"shape": {"M": 3}}, "unknown name 'M'; the symbols are: N"),
        ({"passes": "bake"}, "bake"),
        ({"passes": "quantize", "int8": False}, "contradict"),
        ({"data": "random", "metric": "none.py:f"}, r"none\.py"),
        ({"data": "nowhere"}, "nowhere"),
        ({"decisions": "nowhere.json"}, "nowhere.json"),
        ({"custom_ops": ["nowhere.so"]}, "nowhere.so: no such file"),
        ({"device": "abacus"}, "abacus"),
        ({"seed": -1}, "seed must be an integer from 0 up, not -1"),
        ({"threads": -1}, "threads must be an integer from 0 up, not -1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_arguments_are_input_errors_of_one_line(model: Path, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        joulec.optimize(model, **arguments)
    assert "\n" not in str(caught.value)


def test_a_model_that_fails_on_the_users_data_is_their_error(tmp_path: Path) -> None:
    path = write(tmp_path / "r.onnx", "g (float[A,B] x) => (float[C,4] y) <int64[2] s = {-1, 4}> { y = Reshape(x, s) }")
    with pytest.raises(InputError, match="the model fails on this feed: Reshape 'reshape0'"):
        joulec.optimize(path, data=[{"x": np.ones((1, 3), np.float32)}])
    assert joulec.optimize(path, data=[{"x": np.ones((2, 4), np.float32)}]).reports["cpu"].latency is not None


def test_a_model_that_fails_on_made_up_inputs_is_compiled_and_that_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "r.onnx", "g (float[A,B] x) => (float[C,4] y) <int64[2] s = {-1, 4}> { i = Identity(x) y = Reshape(i, s) }")
    report = joulec.optimize(path, tmp_path / "out").reports["cpu"]
    assert (report.nodes_after, report.latency) == (1, None)
    assert any("the model fails on this feed: Reshape" in note for note in report.notes)
    assert any("not timed, not calibrated" in note for note in report.notes)
    assert joulec.optimize(path, shape={"A": 2, "B": 4}).reports["cpu"].latency is not None


def test_operators_of_an_unknown_domain_pass_through_and_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "f.onnx", "g (float[N,4] x) => (float[N,4] y) { i = Identity(x) f = com.acme.Foo(i) y = Relu(f) }")
    proto = onnx.load(path)
    proto.opset_import.append(onnx.helper.make_opsetid("com.acme", 1))
    report = joulec.optimize(proto, tmp_path / "out").reports["cpu"]
    assert [node.op_type for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node] == ["Foo", "Relu"]
    assert any("not verified: com.acme:Foo; --custom-ops" in note for note in report.notes)
    assert {rung.name: rung.status for rung in report.checks}["opens on CPU"] == "skipped"


# -- the other functions --------------------------------------------------------------------------------------------


def test_verify_says_how_far_outputs_are_apart(model: Path, tmp_path: Path) -> None:
    joulec.optimize(model, tmp_path / "out")
    same = joulec.verify(model, tmp_path / "out")
    assert same.equal and same.worst is not None and same.worst.value < 1e-5
    proto = onnx.load(model)
    bias = next(tensor for tensor in proto.graph.initializer if tensor.name == "b3")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(5, 9, np.float32), "b3"))
    assert not joulec.verify(model, proto).equal


def test_verify_refuses_models_with_other_inputs(model: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "o.onnx", "g (float[N] z) => (float[N] y) { y = Relu(z) }")
    with pytest.raises(InputError, match="the models take different inputs: x and z"):
        joulec.verify(model, other)


def test_measure_pairs_a_model_with_another(model: Path, tmp_path: Path) -> None:
    joulec.optimize(model, tmp_path / "out")
    paired = joulec.measure(tmp_path / "out", against=model, seconds=0.1)
    assert 0 < paired.low <= paired.ratio <= paired.high
    assert paired.rounds >= 90


def test_limits_hold_for_a_model_that_never_ends(tmp_path: Path) -> None:
    """From the command line a whole input model runs in a child; an endless one ends at the limit."""
    loop = write(
        tmp_path / "loop.onnx",
        """g (float[1] x) => (float[1] r) <int64 n = {4611686018427387904}, bool yes = {1}> {
            r = Loop(n, yes, x) <body = b (int64 i, bool c, float[1] s) => (bool d, float[1] t) { d = Identity(c) t = Relu(s) }>
        }""",
    )
    report = joulec.optimize(loop, tmp_path / "out", limits=Limits(4 << 30, 2.0)).reports["cpu"]
    assert any("took longer than 2 s (raise --time-limit)" in note for note in report.notes)
    assert report.latency is None


def test_simplify_replaces_a_file_only_when_everything_held(model: Path, tmp_path: Path) -> None:
    report = simplify_file(model, model)
    assert (report.nodes_before, report.nodes_after) == (9, 7)
    assert len(onnx.load(model).graph.node) == 7
    assert sorted(tmp_path.iterdir()) == [model]
    for place, said in [(tmp_path, "is a directory"), (tmp_path / "none" / "o.onnx", "its folder does not exist")]:
        with pytest.raises(InputError, match=said):
            simplify_file(model, place)


def test_a_large_model_keeps_its_weights_outside(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for where in ("joulec.api", "joulec.ir.module", "joulec.ir.runner"):
        monkeypatch.setattr(f"{where}.INLINE_LIMIT", 1000)
    out = tmp_path / "large"
    joulec.optimize(model, out, int8=False)
    assert (out / "model.onnx.data").stat().st_size > 1000
    np.testing.assert_allclose(joulec.load(out).run(None, X)[0], outputs(model), rtol=1e-4, atol=1e-5)
    joulec.optimize(out / "model.onnx", tmp_path / "again", int8=False)
    np.testing.assert_allclose(joulec.load(tmp_path / "again").run(None, X)[0], outputs(model), rtol=1e-4, atol=1e-5)


def test_the_cpu_artefact_declares_no_shapes_that_the_runtime_infers(model: Path, tmp_path: Path) -> None:
    """Declared, they make ONNX Runtime choose a slower kernel; of unknown operators nobody else knows them."""
    joulec.optimize(model, tmp_path / "out", int8=False)

    def declared(proto: onnx.ModelProto) -> set[str]:
        made = {name for node in proto.graph.node for name in node.output}
        return made & {info.name for info in proto.graph.value_info}

    assert declared(onnx.load(tmp_path / "out" / "model.onnx")) == set()
    assert declared(joulec.simplify(model)) != set()
    path = write(tmp_path / "f.onnx", "g (float[N,4] x) => (float[N,4] y) <float[N,4] f> { r = Relu(x) f = com.acme.Foo(r) y = Relu(f) }")
    joulec.optimize(path, tmp_path / "foreign")
    assert declared(onnx.load(tmp_path / "foreign" / "model.onnx")) == {"f"}


def test_simplify_names_no_sizes_of_intermediate_values(tmp_path: Path) -> None:
    """By their names ONNX Runtime would take shapes for equal, and choose a slower kernel."""
    path = write(tmp_path / "m.onnx", "g (float[N,4] x) => (float[N,4] y) { a = Abs(x) b = Exp(a) y = Neg(b) }")
    infos = joulec.simplify(path).graph.value_info
    dims = [info.type.tensor_type.shape.dim for info in infos]
    assert [[dim.dim_value for dim in shape] for shape in dims] == [[0, 4], [0, 4]]
    assert not any(dim.dim_param for shape in dims for dim in shape)


def test_an_artefact_for_another_provider_is_not_timed_on_the_cpu(model: Path, tmp_path: Path) -> None:
    joulec.optimize(model, tmp_path / "cuda", target="cuda")
    with pytest.raises(UnavailableError, match="made for CUDAExecutionProvider; joulec times on the CPU only"):
        joulec.measure(tmp_path / "cuda", against=model)


def test_keep_float_binds_what_is_ordered_and_is_said(model: Path, data: Path, tmp_path: Path) -> None:
    result = joulec.optimize(model, tmp_path / "out", data=data, int8=True, keep_float=["Gemm", "nothing*"])
    module = result.modules["cpu"]
    assert {n.op_type for n in module.graph if n.inputs[0] is not None} >= {"Gemm", "QuantizeLinear"}
    (gemm,) = [node for node in module.graph if node.op_type == "Gemm"]
    assert gemm.inputs[1] is not None and gemm.inputs[1].is_initializer(), "its weight is float"
    report = result.reports["cpu"]
    assert report.orders == ("--int8", "--keep-float Gemm", "--keep-float nothing*")
    assert any("keep-float=nothing* fits no operator" in step.notes for step in report.steps)


def test_an_empty_keep_float_is_refused(model: Path) -> None:
    with pytest.raises(InputError, match="--keep-float: write one pattern a time"):
        joulec.optimize(model, keep_float=["a;b"])
