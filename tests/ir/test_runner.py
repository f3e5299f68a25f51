"""Runners: the same answers and the same errors here and in a child with limits."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from joulec.errors import InputError
from joulec.ir import child as child_module
from joulec.ir.child import ChildRunner
from joulec.ir.module import Module
from joulec.ir.runner import LocalRunner, Runner
from joulec.ir.sandbox import Limits
from joulec.ir.session import SessionOptions, reason

Parse = Callable[..., Module]

ADD = "agraph (float[N] x) => (float[N] y) { h = Relu(x) \n y = Add(h, h) }"
RESHAPE = 'agraph (float[N] x) => (float[2,2] y) <int64[2] s = {2, 2}> { y = Reshape(x, s) }'
FOREIGN = 'agraph (float[N] x) => (float[N] y) { y = com.acme.Foo(x) }'
X = np.array([-1.0, 2.0], np.float32)


@pytest.fixture(params=["local", "child"])
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    with LocalRunner() if request.param == "local" else ChildRunner(Limits(4 << 30, 60.0)) as made:
        yield made


def test_outputs_come_by_name_in_order_extra_ones_last(runner: Runner, parse: Parse) -> None:
    outputs = runner.run(runner.load(parse(ADD), extra_outputs=["h"]), {"x": X})
    assert list(outputs) == ["y", "h"]
    np.testing.assert_array_equal(outputs["y"], [0, 4])
    np.testing.assert_array_equal(outputs["h"], [0, 2])


def test_times_are_rounds_by_handles(runner: Runner, parse: Parse) -> None:
    handles = [runner.load(parse(ADD)) for _ in range(3)]
    seconds = runner.time(handles, {"x": X}, rounds=4)
    assert seconds.shape == (4, 3)
    assert (seconds > 0).all()


def test_a_feed_that_does_not_fit_is_an_input_error_and_the_runner_goes_on(runner: Runner, parse: Parse) -> None:
    handle = runner.load(parse(RESHAPE))
    wrong = {"x": np.ones(3, np.float32)}
    with pytest.raises(InputError, match=r"the model fails on this feed: Reshape '.*': "):
        runner.run(handle, wrong)
    with pytest.raises(InputError, match=r"the model fails on this feed: Reshape"):
        runner.time([handle], wrong, rounds=1)
    assert runner.run(handle, {"x": np.ones(4, np.float32)})["y"].shape == (2, 2)


def test_a_model_that_does_not_load_is_an_input_error(runner: Runner, parse: Parse) -> None:
    module = parse(ADD)
    module.graph.node(1).op_type = "NoSuchOperator"
    with pytest.raises(InputError, match=r"ONNX Runtime cannot load the model: .*NoSuchOperator"):
        runner.load(module)


def test_a_library_that_is_none_is_named(runner: Runner, parse: Parse, tmp_path: object) -> None:
    options = SessionOptions(custom_ops=(tmp_path / "acme.so",))  # type: ignore[operator]
    with pytest.raises(InputError, match=r"acme\.so: not a library of custom operators"):
        runner.load(parse(ADD), options=options)


def test_kernels_are_those_onnx_runtime_fuses(runner: Runner, parse: Parse) -> None:
    conv = (
        "agraph (float[1,1,4,4] x) => (float[1,1,4,4] y) <float[1,1,1,1] w = {2.0}>"
        "{ c = Conv(x, w) \n y = Relu(c) }"
    )
    assert runner.kernels(parse(conv)) == {"FusedConv": 1}


def test_a_profile_names_the_kernels_and_their_seconds(runner: Runner, parse: Parse) -> None:
    graph = "agraph (float[64,64] x) => (float[64,64] y) { h = MatMul(x, x) \n y = MatMul(h, x) }"
    module = parse(graph)
    for index, node in enumerate(module.graph):
        node.name = f"product{index}"
    found = runner.profile(module, {"x": np.ones((64, 64), np.float32)}, rounds=3)
    assert len(found) == 2 and all(name.startswith("product") for name in found), found
    assert all(0 < seconds < 1 for seconds in found.values())


def test_an_unloaded_session_is_gone(runner: Runner, parse: Parse) -> None:
    handle = runner.load(parse(ADD))
    runner.unload(handle)
    with pytest.raises((InputError, KeyError)):
        runner.run(handle, {"x": X})


def test_every_kind_of_value_crosses_the_pipe(parse: Parse) -> None:
    graph = """agraph (float16[N] h, bool[N] b, int64[N] i, string[N] s) => (seq(float16[N]) q, bool[N] c, int64[0] e, string[N] t)
        <int64[1] zero = {0}> {
        q = SequenceConstruct(h, h)
        c = Not(b)
        e = Slice(i, zero, zero)
        t = Identity(s)
    }"""
    feed = {
        "h": np.array([1, 2], np.float16), "b": np.array([True, False]), "i": np.array([3, 4]),
        "s": np.array(["ü", "<b>"], object),
    }  # fmt: skip
    with LocalRunner() as here, ChildRunner(Limits()) as there:
        expected, actual = (one.run(one.load(parse(graph)), feed) for one in (here, there))
    assert list(actual) == ["q", "c", "e", "t"]
    assert [part.dtype for part in actual["q"]] == [np.float16] * 2
    for name in ("c", "e", "t"):
        np.testing.assert_array_equal(actual[name], expected[name])
        assert actual[name].dtype == expected[name].dtype


LOOP = """agraph (int64 n) => (float r) {
    yes = Constant <value = bool {1}> ()
    z = Constant <value = float {0.0}> ()
    r = Loop(n, yes, z) <body = b (int64 i, bool c, float s) => (bool d, float t) {
        one = Constant <value = float {1.0}> ()
        d = Identity(c)
        t = Add(s, one)
    }>
}"""


def test_endless_work_ends_at_the_time_limit_and_the_next_request_works(parse: Parse) -> None:
    with ChildRunner(Limits(None, 1.5)) as runner:
        handle = runner.load(parse(LOOP))
        with pytest.raises(InputError, match=r"longer than 1\.5 s \(raise --time-limit\)"):
            runner.run(handle, {"n": np.array(1 << 60)})
        assert runner.run(runner.load(parse(ADD)), {"x": X})["y"][1] == 4


def test_memory_is_limited(parse: Parse) -> None:
    graph = "agraph (int64[1] n) => (float[N] y) { y = ConstantOfShape(n) }"
    with ChildRunner(Limits(2 << 30, 60.0)) as runner:
        handle = runner.load(parse(graph))
        with pytest.raises(InputError, match=r"bad_alloc|Failed to allocate|memory"):
            runner.run(handle, {"n": np.array([4 << 30])})


def test_a_child_that_dies_is_told_by_its_own_signal(parse: Parse) -> None:
    with ChildRunner(Limits()) as runner:
        handle = runner.load(parse(ADD))
        assert runner._child is not None
        runner._child.send_signal(signal.SIGSEGV)
        with pytest.raises(InputError, match=r"died \(signal 11\); if it ran out of memory, raise --memory-limit"):
            runner.run(handle, {"x": X})


def test_a_child_that_answers_nonsense_is_stopped(parse: Parse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "GRACE_SECONDS", 0.1)
    with ChildRunner(Limits()) as runner:
        real = subprocess.Popen(["sh", "-c", "yes"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        runner._child = real
        with pytest.raises(InputError, match="died"):
            runner.run(1, {"x": X})
        assert real.poll() is not None


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("[ONNXRuntimeError] : 1 : FAIL : Load model failed", "Load model failed"),
        (
            "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Non-zero status code returned while running If node. "
            "Name:'if' Status Message: Non-zero status code returned while running Pad node. Name:'p' Status Message: bad",
            "Pad 'p': bad",
        ),
        ("Load model from /x/model.onnx failed:Fatal error: acme:Foo(-1) is not known", "Fatal error: acme:Foo(-1) is not known"),
        ("/onnxruntime_src/a/b.h:84 ns::Helper::Helper(const A&, bool) n != 0 was false", "n != 0 was false"),
        ("Got invalid dimensions for input: x\n index: 0 Got: 3 Expected: 4", "Got invalid dimensions for input: x index: 0 Got: 3 Expected: 4"),
    ],
)  # fmt: skip
def test_the_reason_is_the_innermost_node(said: str, wanted: str) -> None:
    assert reason(RuntimeError(said)) == wanted
