"""Layers: what the source model called the place that a node comes from."""

from __future__ import annotations

import json

import onnx
import onnx_ir as ir

from joulec.ir.layers import TORCH_SCOPES, layers
from joulec.ir.module import Module
from joulec.ir.provenance import SOURCES_KEY


def module(*metadata: dict[str, str]) -> Module:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N] x) => (float[N] z) { y = Relu(x)  z = Exp(y) }'
    )
    for index, (node, extra) in enumerate(zip(proto.graph.node, metadata, strict=True)):
        node.name = f"node{index}"
        for key, value in extra.items():
            node.metadata_props.add(key=key, value=value)
    return Module(ir.from_proto(proto))


def test_names_that_tell_their_layer_need_no_entry():
    plain = module({}, {})
    assert layers(plain, plain) == {}


def test_what_pytorch_says_of_modules_is_the_path():
    scopes = {TORCH_SCOPES: "['', 'encoder', 'encoder.layer.0', 'relu']"}
    source = module(scopes, {TORCH_SCOPES: "['', 'exp']"})
    assert layers(source, source) == {"node0": "encoder/layer/0/node0"}


def test_rewritten_nodes_take_the_layer_of_the_first_node_they_were_made_from():
    source = module({TORCH_SCOPES: "['', 'head', 'relu']"}, {})
    made = module({SOURCES_KEY: json.dumps(["node1", "node0"])}, {SOURCES_KEY: json.dumps(["node0"])})
    assert layers(made, source) == {"node0": "node1", "node1": "head/node0"}


def test_metadata_that_is_no_list_of_names_is_none():
    for odd in ("[", "1", "[1, 2, 3]", "__import__('os')", "[" * 5000, "'" + "x" * (1 << 17) + "'"):
        one = module({TORCH_SCOPES: odd}, {})
        assert layers(one, one) == {}
