"""upgrade-opset: adapters keep the numbers under ONNX Runtime, the tables miss no change, refusals change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import onnx
import onnx.defs
import onnx_ir as ir
import pytest

from joulec.ir.module import Module
from joulec.ir.runner import LocalRunner
from joulec.ir.verify import Verifier
from joulec.passes.base import Context, PassResult
from joulec.passes.opset_adapters import ADAPTERS, COMPATIBLE, NEWEST, OLDEST
from joulec.passes.target import Target
from joulec.passes.upgrade_opset import UpgradeOpset

TARGET = Target("cpu", "CPUExecutionProvider", 19, 9, None, "generic-server-cpu")
Parse = Callable[..., Module]


def upgrade(module: Module, to: int | None = None) -> PassResult:
    verifier = Verifier(module)
    result = UpgradeOpset(to=to).run(module, Context(target=TARGET))
    verifier.verify(module)
    return result


def outputs(module: Module, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    feed = {}
    for value in module.inputs():
        assert value.shape is not None and value.dtype is not None
        dims = [dim if isinstance(dim, int) else 3 for dim in value.shape]
        feed[value.name or ""] = random.normal(size=dims).astype(value.dtype.numpy())
    with LocalRunner() as runner:
        return runner.run(runner.load(module), feed)


def ops(module: Module) -> list[str]:
    return [node.op_type for node in module.graph if node.op_type != "Constant"]


X = "agraph (float[2,4,6,6] x) => (float[a,b,c,d] y)"
CASES = {
    "upsample-7-nearest": (7, X, "y = Upsample<mode=\"nearest\", scales=[1.0,1.0,2.0,3.0]>(x)"),
    "upsample-7-linear": (7, X, "y = Upsample<mode=\"linear\", scales=[1.0,1.0,2.0,1.5]>(x)"),
    "upsample-9": (9, X, "s = Constant<value=float[4] {1.0,1.0,2.5,2.0}>() y = Upsample(x, s)"),
    "resize-10-grow": (10, X, "s = Constant<value=float[4] {1.0,1.0,1.7,2.0}>() y = Resize(x, s)"),
    "resize-10-shrink": (10, X, "s = Constant<value=float[4] {1.0,1.0,0.4,0.5}>() y = Resize(x, s)"),
    "resize-10-linear": (
        10, X, "s = Constant<value=float[4] {1.0,1.0,0.5,1.5}>() y = Resize<mode=\"linear\">(x, s)"
    ),
    "slice-1": (9, X, "y = Slice<axes=[2,3], starts=[1,-4], ends=[5,9999]>(x)"),
    "slice-1-no-axes": (9, X, "y = Slice<starts=[0,1], ends=[2,3]>(x)"),
    "dropout-7": (7, X, "y = Dropout<ratio=0.5>(x)"),
    "topk-1": (9, X, "y, i = TopK<k=2, axis=1>(x)"),
    "clip-6": (10, X, "y = Clip<min=-0.5, max=0.25>(x)"),
    "clip-6-one-side": (10, X, "y = Clip<min=0.1>(x)"),
    "pad-2": (10, X, "y = Pad<pads=[0,0,1,2,0,0,0,1], value=2.5>(x)"),
    "pad-2-reflect": (10, X, "y = Pad<mode=\"reflect\", pads=[0,0,1,2,0,0,0,1]>(x)"),
    "scatter-9": (
        9, X, "i = Constant<value=int64[1,1,1,1] {2}>() u = Constant<value=float[1,1,1,1] {9.0}>() "
        "y = Scatter<axis=2>(x, i, u)",
    ),
    "softmax-1-flattens": (11, X, "y = Softmax(x)"),
    "softmax-11-last": (11, X, "y = Softmax<axis=3>(x)"),
    "softmax-11-minus-one": (11, X, "y = Softmax<axis=-1>(x)"),
    "logsoftmax-1": (10, X, "y = LogSoftmax<axis=2>(x)"),
    "hardmax-1": (10, X, "t = Hardmax<axis=1>(x) y = Neg(t)"),
    "squeeze-1": (11, "agraph (float[2,1,3,1] x) => (float[2,3] y)", "y = Squeeze<axes=[1,3]>(x)"),
    "squeeze-1-all": (11, "agraph (float[2,1,3,1] x) => (float[2,3] y)", "y = Squeeze(x)"),
    "unsqueeze-1": (11, "agraph (float[2,3] x) => (float[2,1,3,1] y)", "y = Unsqueeze<axes=[1,3]>(x)"),
    "split-2": (11, X, "a1, b1 = Split<axis=1, split=[1,3]>(x) y = Neg(b1)"),
    "split-2-even": (11, X, "a1, b1 = Split<axis=1>(x) y = Neg(b1)"),
    "reduce-sum-1": (11, X, "y = ReduceSum<axes=[1,2]>(x)"),
    "reduce-sum-all": (11, X, "y = ReduceSum(x)"),
    "average-pool-ceil": (11, X, "y = AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x)"),
    "average-pool-pad": (
        11, X, "y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], count_include_pad=1>(x)"
    ),
    "max-pool": (8, X, "y = MaxPool<kernel_shape=[3,2], strides=[2,2]>(x)"),
    "gather-negative": (11, X, "i = Constant<value=int64[2] {-1,0}>() y = Gather<axis=1>(x, i)"),
    "grid-sample": (
        16, "agraph (float[2,4,6,6] x, float[2,3,3,2] g) => (float[a,b,c,d] y)", "y = GridSample(x, g)"
    ),
    "grid-sample-cubic": (
        16, "agraph (float[2,4,6,6] x, float[2,3,3,2] g) => (float[a,b,c,d] y)",
        "y = GridSample<mode=\"bicubic\">(x, g)",
    ),
    "dft": (17, "agraph (float[2,8,1] x) => (float[a,b,c] y)", "y = DFT<axis=1>(x)"),
    "roi-align": (
        10, X, "r = Constant<value=float[1,4] {0.3,0.2,4.1,5.0}>() i = Constant<value=int64[1] {1}>() "
        "y = RoiAlign<output_height=3, output_width=3, sampling_ratio=2>(x, r, i)",
    ),
    "batch-norm-7": (
        7, X, "s = Constant<value=float[4] {1.0,2.0,3.0,4.0}>() y = BatchNormalization<spatial=1>(x, s, s, s, s)"
    ),
    **{
        f"{name}": (13, "agraph (float[2,4,6,6] x) => (float[a,b,c,d] y)", f"p = Abs(x) y = {name}<axes=[1,3]>(p)")
        for name, version in ADAPTERS if version == 18 and name.startswith("Reduce")
    },
}  # fmt: skip


@pytest.mark.parametrize("to", [19, 21])
@pytest.mark.parametrize("case", CASES)
def test_adapter_keeps_the_numbers(case: str, to: int, parse: Parse) -> None:
    opset, head, body = CASES[case]
    module = parse(f"{head} {{ {body} }}", opset)
    before = outputs(module)
    result = upgrade(module, to)
    assert result.notes == (f"opset {opset} became {to}",)
    assert module.opset == to
    onnx.checker.check_model(module.to_proto(), full_check=True)
    for name, expected in before.items():
        np.testing.assert_allclose(outputs(module)[name], expected, rtol=1e-6, atol=1e-6)


def test_group_norm_repeats_scale_and_bias(parse: Parse) -> None:
    module = parse(
        "agraph (float[2,4,6] x) => (float[2,4,6] y) { s = Constant<value=float[2] {1.0,2.0}>() "
        "b = Constant<value=float[2] {0.5,-1.0}>() y = GroupNormalization<num_groups=2>(x, s, b) }",
        18,
    )
    before = outputs(module)
    upgrade(module, 21)
    np.testing.assert_allclose(outputs(module)["y"], before["y"], rtol=1e-5, atol=1e-6)
    assert module.model.ir_version >= 10


def test_flattening_softmax_of_unknown_shape_holding_zeros(parse: Parse) -> None:
    module = parse("agraph (float[a,b,c] x) => (float[a,b,c] y) { y = Softmax<axis=1>(x) }", 11)
    upgrade(module)
    assert ops(module) == ["Flatten", "Shape", "Softmax", "Reshape"]
    with LocalRunner() as runner:
        handle = runner.load(module)
        assert runner.run(handle, {"x": np.zeros((2, 0, 3), np.float32)})["y"].shape == (2, 0, 3)
        given = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
        flat = np.exp(given.reshape(2, 6) - given.reshape(2, 6).max(1, keepdims=True))
        expected = (flat / flat.sum(1, keepdims=True)).reshape(2, 3, 2)
        np.testing.assert_allclose(runner.run(handle, {"x": given})["y"], expected, rtol=1e-5)


REFUSED = {
    "spatial": (7, "y = BatchNormalization<spatial=0>(x, x, x, x, x)", "spatial=0"),
    "computed-scales": (
        10, "s = Constant<value=float[4] {1.0,1.0,2.0,2.0}>() t = Neg(s) y = Resize(x, t)", "scales are computed"
    ),
    "mixed-scales": (
        10, "s = Constant<value=float[4] {1.0,1.0,0.5,2.0}>() y = Resize(x, s)", "grows one dimension and shrinks"
    ),
    "average-pool": (
        11, "y = AveragePool<kernel_shape=[2,2], ceil_mode=1, count_include_pad=1>(x)", "changed its divisor"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_follow_keeps_the_whole_model(case: str, parse: Parse) -> None:
    opset, body, reason = REFUSED[case]
    module = parse(f"{X} {{ {body} }}", opset)
    before = module.to_proto().SerializeToString(deterministic=True)
    result = UpgradeOpset().run(module, Context(target=TARGET))
    assert not result.changed
    assert reason in result.refusals[0].reason
    assert result.notes[0].startswith(f"opset stays {opset}: ")
    stripped = onnx.ModelProto.FromString(before)
    now = module.to_proto()
    assert [node.SerializeToString() for node in now.graph.node] == [n.SerializeToString() for n in stripped.graph.node]
    assert now.opset_import[0].version == opset


def test_never_lowered(parse: Parse) -> None:
    module = parse("agraph (float[4] x) => (float[4] y) { y = Relu(x) }", 21)
    result = upgrade(module)
    assert result.notes == ("the model has opset 21, which is not lowered to 19",)
    assert module.opset == 21


def test_already_there_and_out_of_range(parse: Parse) -> None:
    assert upgrade(parse("agraph (float[4] x) => (float[4] y) { y = Relu(x) }", 19)).notes == (
        "the model has opset 19 already",
    )
    note = upgrade(parse("agraph (float[4] x) => (float[4] y) { y = Relu(x) }", 6)).notes[0]
    assert note == "from opset 6 to 19: only 7 to 24 are known"


def test_subgraphs_and_functions_follow(parse: Parse) -> None:
    module = parse(
        """agraph (bool c, float[2,1] x) => (float[a] y) {
            t = If (c) <then_branch = tb () => (float[2] u) { u = Squeeze<axes=[1]>(x) },
                        else_branch = eb () => (float[2] v) { v = Squeeze<axes=[1]>(x) }>
            y = own.f(t)
        }""",
        11,
        '<domain: "own", opset_import: ["" : 11]> f (p) => (q) { r = Unsqueeze<axes=[0]>(p) q = Softmax<axis=0>(r) }',
    )
    module.model.opset_imports["own"] = 1
    result = upgrade(module)
    assert module.opset == 19
    assert [f.opset_imports[""] for f in module.model.functions.values()] == [19]
    assert {r.rule for r in result.rewrites} == {"to-13", "opset"}
    onnx.checker.check_model(module.to_proto())


def _form(schema: onnx.defs.OpSchema) -> tuple[object, ...]:
    inputs = tuple((one.name, str(one.option)) for one in schema.inputs)
    outputs_ = tuple((one.name, str(one.option)) for one in schema.outputs)
    attributes = tuple(
        sorted((name, str(a.type), a.required, str(a.default_value)) for name, a in schema.attributes.items())
    )
    return inputs, outputs_, attributes, schema.deprecated


def _changes() -> Iterator[tuple[str, int]]:
    versions: dict[str, list[onnx.defs.OpSchema]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.since_version <= NEWEST:
            versions.setdefault(schema.name, []).append(schema)
    for name, found in sorted(versions.items()):
        chain = sorted(found, key=lambda schema: schema.since_version)
        for old, new in pairwise(chain):
            if new.since_version > OLDEST and _form(old) != _form(new):
                yield name, new.since_version


def test_the_tables_miss_no_change_of_form() -> None:
    missing = [change for change in _changes() if change not in ADAPTERS and change not in COMPATIBLE]
    assert missing == []
    assert not set(ADAPTERS) & set(COMPATIBLE)


def test_attribute_of_a_function_is_refused(parse: Parse) -> None:
    module = parse(
        "agraph (float[2,1] x) => (float[a] y) { y = own.f<ax=[1]>(x) }",
        11,
        '<domain: "own", opset_import: ["" : 11]> f <ax> (p) => (q) { q = Squeeze<axes: ints = @ax>(p) }',
    )
    module.model.opset_imports["own"] = 1
    result = UpgradeOpset().run(module, Context(target=TARGET))
    assert "enclosing function's" in result.refusals[0].reason
    assert module.opset == 11


def test_provenance_names_the_adapted_node() -> None:
    node = onnx.helper.make_node("Clip", ["x"], ["y"], name="clip", min=0.0)
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph([node], "g", [info("x", 1, [3])], [info("y", 1, [3])])
    module = Module(ir.from_proto(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 9)])))
    upgrade(module)
    (kept,) = module.graph
    assert kept.metadata_props["joulec.rule"] == "to-11"
    assert kept.name == "clip"
