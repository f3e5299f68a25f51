"""raise-patterns: normalizations as torch, TensorFlow and others spell them, and what stays."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from fusion_kit import build, fuse, numbers, ops, unchanged

from joulec.ir.module import Module
from joulec.passes.raise_patterns import RaisePatterns

X = "(float[N,4,5] x) => (float[N,4,5] y)"
F = {
    "two": np.array(2.0, np.float32), "tiny": np.array(1e-5, np.float32), "half": np.array(0.5, np.float32), "one": np.array(1.0, np.float32),
    "mhalf": np.array(-0.5, np.float32), "g": numbers(5), "b": numbers(5, seed=1), "g3": numbers(1, 1, 5), "b3": numbers(1, 1, 5, seed=2),
    "g4": numbers(4, 1), "b4": numbers(1, 4, 1, seed=3), "g45": numbers(4, 5), "gw": numbers(1, 1, 1, 5), "gm": numbers(1, 4, 1, seed=5),
    "last": np.array([-1]), "middle": np.array([1]), "space": np.array([2, 3]), "gc": numbers(4, 1, 1, seed=6), "bc": numbers(1, 4, 1, 1, seed=7),
}  # fmt: skip

MOMENTS = "m = ReduceMean(x, last) d = Sub(x, m) s = Mul(d, d) v = ReduceMean(s, last) e = Add(v, tiny) r = Sqrt(e) "
INVERSE = MOMENTS + "i = Reciprocal(r) "
TF = INVERSE + "k = Mul(i, g3) n = Neg(m) a = Mul(x, k) c = Mul(n, k) f = Add(c, b3) y = Add(a, f)"
RMS = "s = Mul(x, x) v = ReduceMean(s, last) e = Add(v, tiny) r = Sqrt(e) "


def module(body: str, opset: int = 18, head: str = X) -> Module:
    used = set(re.findall(r"\w+", body))
    return build(f"{head} {{ {body} }}", opset, **{name: array for name, array in F.items() if name in used})


def raised(body: str, opset: int = 18, head: str = X) -> list[str]:
    made = module(body, opset, head)
    fuse(made, RaisePatterns())
    assert ops(made) == [op for op in ops(made) if op != "Reciprocal"]
    again = ops(made)
    RaisePatterns().run(made, None)  # type: ignore[arg-type]  # it has come to rest
    assert ops(made) == again
    return again


@pytest.mark.parametrize(
    "body",
    [
        TF,
        TF.replace("f = Add(c, b3)", "f = Add(b3, c)").replace("Add(a, f)", "Add(f, a)"),
        TF.replace("c = Mul(n, k) f = Add(c, b3)", "c = Mul(k, m) f = Sub(b3, c)").replace("n = Neg(m) ", ""),
        TF.replace("c = Mul(n, k) f = Add(c, b3)", "w = Mul(m, k) c = Neg(w) f = Add(c, b3)").replace("n = Neg(m) ", ""),
        INVERSE + "n = Neg(m) a = Mul(x, i) c = Mul(n, i) y = Add(a, c)",
        INVERSE + "y = Mul(d, i)",
        INVERSE + "q = Mul(i, d) w = Mul(q, g) y = Add(w, b)",
        INVERSE + "k = Mul(g3, i) q = Mul(d, k) y = Add(b3, q)",
        MOMENTS + "i = Div(one, r) y = Mul(d, i)",
        MOMENTS + "i = Div(g, r) q = Mul(d, i) y = Add(q, b)",
        MOMENTS.replace("r = Sqrt(e)", "r = Pow(e, half)") + "y = Div(d, r)",
        MOMENTS.replace("r = Sqrt(e)", "i = Pow(e, mhalf)") + "q = Mul(d, i) y = Mul(q, g)",
        MOMENTS + "q = Div(d, r) y = Add(q, b)",
        MOMENTS + "q = Div(d, r) w = Mul(q, g3) y = Add(w, b)",
    ],
)
def test_layer_normalizations(body: str) -> None:
    assert raised(body) == ["LayerNormalization"]
    assert raised(body.replace("ReduceMean(x, last)", "ReduceMean<axes = [-1]>(x)").replace("ReduceMean(s, last)", "ReduceMean<axes = [2]>(s)"), 17) == ["LayerNormalization"]


def test_before_its_opset_it_is_spelled_as_runtimes_fuse_it() -> None:
    old = TF.replace("ReduceMean(x, last)", "ReduceMean<axes = [-1]>(x)").replace("ReduceMean(s, last)", "ReduceMean<axes = [2]>(s)")
    made = module(old, 13)
    fuse(made, RaisePatterns())
    assert ops(made) == ["ReduceMean", "Sub", "Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul", "Add"]
    assert unchanged(made, RaisePatterns()) == {"LayerNormalization needs opset 17, the model has 13"}


IMAGE = "(float[N,4,3,6] x) => (float[N,4,3,6] y)"


@pytest.mark.parametrize(
    "body",
    [
        MOMENTS.replace("last", "space") + "y = Div(d, r)",
        MOMENTS.replace("last", "space") + "q = Div(d, r) w = Mul(q, gc) y = Add(w, bc)",
        TF.replace("last", "space").replace("g3", "gc").replace("b3", "bc"),
    ],
)
def test_instance_normalizations(body: str) -> None:
    assert raised(body, head=IMAGE) == ["InstanceNormalization"]


def test_between_layer_and_instance_the_scale_decides() -> None:
    head = "(float[N,4,5] x) => (float[N,4,5] y)"
    assert raised(MOMENTS + "q = Div(d, r) w = Mul(q, g4) y = Add(w, b4)", head=head) == ["InstanceNormalization"]
    assert raised(TF.replace("g3", "g4").replace("b3", "b4"), head=head) == ["InstanceNormalization"]
    assert raised(MOMENTS + "q = Div(d, r) w = Mul(q, g) y = Add(w, b)", head=head) == ["LayerNormalization"]


def test_over_other_axes_what_is_centred_is_used() -> None:
    body = TF.replace("last", "middle").replace("g3", "gm").replace("b3", "b4")
    assert raised(body) == ["ReduceMean", "Sub", "Mul", "ReduceMean", "Add", "Sqrt", "Div", "Mul", "Add"]
    body = INVERSE.replace("last", "middle") + "n = Neg(m) a = Mul(x, i) c = Mul(n, i) y = Add(a, c)"
    assert raised(body) == ["ReduceMean", "Sub", "Mul", "ReduceMean", "Add", "Sqrt", "Div"]


@pytest.mark.parametrize(
    "body",
    [
        RMS + "q = Div(x, r) y = Mul(q, g)",
        RMS + "i = Reciprocal(r) q = Mul(x, i) y = Mul(g, q)",
        RMS + "i = Reciprocal(r) k = Mul(i, g) y = Mul(x, k)",
        RMS.replace("Mul(x, x)", "Pow(x, two)") + "y = Div(x, r)",
        RMS.replace("r = Sqrt(e)", "i = Pow(e, mhalf)") + "y = Mul(x, i)",
    ],
)
def test_root_mean_squares(body: str) -> None:
    assert raised(body, 23) == ["RMSNormalization"]
    left = raised(body, 18)
    assert left[:5] == ["Pow", "ReduceMean", "Add", "Sqrt", "Div"]
    assert left[5:] in ([], ["Mul"])


def test_a_shift_behind_a_root_mean_square_stays_behind_it() -> None:
    assert raised(RMS + "q = Div(x, r) w = Mul(q, g) y = Add(w, b)", 23) == ["RMSNormalization", "Add"]


def test_half_precision_layer_normalization() -> None:
    arrays = {name: F[name].astype(np.float16) for name in ("tiny", "g", "b")}
    body = MOMENTS + "q = Div(d, r) w = Mul(q, g) y = Add(w, b)"
    made = build(f"(float16[2,4,5] x) => (float16[2,4,5] y) {{ {body} }}", 18, last=F["last"], **arrays)
    fuse(made, RaisePatterns())
    assert ops(made) == ["LayerNormalization"]


OTHER_AXES = "it normalizes over axes that are not the last ones"


@pytest.mark.parametrize(
    ("body", "reasons"),
    [
        (TF.replace("g3", "g45"), {"its scale or shift is not one number for each normalized element"}),
        (TF.replace("b3", "b4"), {"its scale or shift is not one number for each normalized element"}),
        (INVERSE + "k = Mul(i, g45) y = Mul(d, k)", {"its scale or shift is not one number for each normalized element"}),
        (TF.replace("y = Add(a, f)", "z = Add(a, f) y = Add(z, d)"), {"Sub inside it is used elsewhere too"}),
        (TF.replace("y = Add(a, f)", "z = Add(a, f) y = Add(z, k)"), {"Mul inside it is used elsewhere too"}),
        (TF.replace("Mul(n, k)", "Mul(n, i)"), set()),
        (TF.replace("Add(c, b3)", "Sub(c, b3)"), set()),
        (TF.replace("n = Neg(m)", "n = Neg(v)"), set()),
        (MOMENTS.replace("last", "middle") + "y = Div(d, r)", {OTHER_AXES}),
        (RMS.replace("last", "middle") + "y = Div(x, r)", {OTHER_AXES}),
        (MOMENTS.replace("Sqrt(e)", "Sqrt(v)") + "y = Div(d, r)", set()),
        (MOMENTS + "y = Div(x, r)", set()),
        (MOMENTS.replace("ReduceMean(s, last)", "ReduceMean(d, last)") + "y = Div(d, r)", set()),
    ],
)
def test_near_misses_stay(body: str, reasons: set[str]) -> None:
    assert unchanged(module(body), RaisePatterns()) == reasons


def test_an_overridable_or_pruned_scale_stays_where_it_is() -> None:
    made = module(TF)
    made.masks["g3"] = np.ones((1, 1, 5), bool)
    assert unchanged(made, RaisePatterns()) == {"its scale or shift is not one number for each normalized element"}
    fed = module(TF.replace("g3", "w"), head="(float[N,4,5] x, float[1,1,5] w) => (float[N,4,5] y)")
    fuse(fed, RaisePatterns())
    assert "LayerNormalization" not in ops(fed)


def test_sizes_that_are_not_known_stay() -> None:
    assert unchanged(module(MOMENTS + "y = Div(d, r)", head="(float[N,M] x) => (float[N,M] y)"), RaisePatterns()) == {
        "the sizes that it normalizes over are not known"
    }


def test_the_spelling_is_fused_by_the_runtime(tmp_path: Path) -> None:
    """What `_respell` writes is one kernel in ONNX Runtime's own graph."""
    made = module(RMS + "i = Reciprocal(r) k = Mul(i, g) y = Mul(x, k)")
    fuse(made, RaisePatterns())
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "fused.onnx"), 4
    onnxruntime.InferenceSession(made.to_proto().SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node]
    assert kinds == ["SimplifiedLayerNormalization"]
