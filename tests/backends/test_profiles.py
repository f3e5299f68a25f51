"""Optimization profiles, and sizes that are fixed in an artefact."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from onnx import parser

from joulec.backends import BACKENDS
from joulec.backends.profiles import fixed_sizes, profile
from joulec.energy.bind import fix_in_place
from joulec.errors import InputError
from joulec.ir.module import Module
from joulec.shapespec import SizeRange, format_shapes, parse_shapes, span_of


def module(text: str = "g (float[batch,3,H,W] x, float[batch,4] u) => (float[batch,3,H,W] y) { y = Relu(x) }") -> Module:
    return Module(ir.from_proto(parser.parse_model(f'<ir_version: 9, opset_import: ["" : 19]> {text}')))


def test_a_range_is_three_sizes():
    (size,) = parse_shapes("batch=1:8:32").values()
    assert size == 8
    assert span_of(size) == (1, 8, 32)
    assert str(size) == "1:8:32"
    assert span_of(parse_shapes("batch=2:16")["batch"]) == (2, 16, 16)
    assert span_of(4) == (4, 4, 4)


def test_ranges_stand_inside_an_inputs_shape_and_are_spelled_again():
    spec = parse_shapes("x=1:8:32x3x224x224,n=1:2")
    assert isinstance(spec["x"][0], SizeRange)
    assert format_shapes(spec) == "x=1:8:32x3x224x224,n=1:2:2"


@pytest.mark.parametrize("text", ["b=8:1:32", "b=1:64:32", "b=1:2:3:4", "b=:3", "b=1:", "b=0:1:2"])
def test_ranges_that_are_none(text):
    with pytest.raises(InputError):
        parse_shapes(text)


def test_a_range_and_a_size_contradict_each_other():
    with pytest.raises(InputError, match="given twice"):
        parse_shapes("b=8,b=1:8:32")


def test_profiles_name_every_open_input():
    found = profile(module(), parse_shapes("batch=1:8:32,H=32,W=64"))
    assert found == {
        "trt_profile_min_shapes": "x:1x3x32x64,u:1x4",
        "trt_profile_opt_shapes": "x:8x3x32x64,u:8x4",
        "trt_profile_max_shapes": "x:32x3x32x64,u:32x4",
    }


def test_no_profile_where_a_dimension_is_not_given_or_all_are_fixed():
    assert profile(module(), parse_shapes("batch=1:8:32")) == {}
    fixed = module("g (float[2,3] x) => (float[2,3] y) { y = Relu(x) }")
    assert profile(fixed, {}) == {}


def test_no_profile_where_a_name_cannot_stand_in_the_option():
    odd = module("g (float[batch,3] x) => (float[batch,3] y) { y = Relu(x) }")
    odd.graph.inputs[0].name = "x:0"
    assert profile(odd, {"batch": SizeRange(1, 2, 3)}) == {}


def test_sizes_are_fixed_and_ranges_stay_open():
    found = module()
    sizes = fixed_sizes(found, parse_shapes("batch=1:8:32,H=32,W=64"))
    assert sizes == {"H": 32, "W": 64}
    fix_in_place(found, sizes)
    assert [str(dim) for dim in found.graph.inputs[0].shape] == ["batch", "3", "32", "64"]
    assert profile(found, parse_shapes("batch=1:8:32,H=32,W=64"))["trt_profile_max_shapes"] == "x:32x3x32x64,u:32x4"


def test_the_tensorrt_artefact_carries_its_profile():
    settings = BACKENDS["tensorrt"].settings_for(module(), 1, parse_shapes("batch=1:8:32,H=32,W=64"))
    assert settings.provider_options["trt_profile_opt_shapes"] == "x:8x3x32x64,u:8x4"
    assert settings.from_json(settings.to_json(), "x", BACKENDS["tensorrt"].provider_options) == settings
