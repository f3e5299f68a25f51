"""The networks that `benchmarks/energy` times: published architectures with random weights.

Time depends on shapes, not on what the weights say, so nothing is trained. `width` is the share of channels (of inner
or hidden units) that is kept: below 1 it is the network with channels removed.
"""

from __future__ import annotations

import numpy as np
import onnx
from layers import Net
from onnx import TensorProto


def scaled(channels: int, width: float) -> int:
    """Channels left when `width` of them are kept, a multiple of 8."""
    return max(8, int(channels * width + 4) // 8 * 8)


# -- convolutions -----------------------------------------------------------------------------------------------------


def resnet18(batch: int, width: float = 1.0) -> onnx.ModelProto:
    """He et al. 2016, 224 x 224."""
    net = Net("resnet18")
    net.channels[net.input("x", batch, 3, 224, 224)] = 3
    x = net.pool(net.conv("x", scaled(64, width), 7, 2))
    for stage, channels in enumerate((64, 128, 256, 512)):
        for block in range(2):
            out, stride = scaled(channels, width), 2 if stage and not block else 1
            inner = net.conv(net.conv(x, out, 3, stride), out, 3, act="")
            x = net.add(inner, net.conv(x, out, 1, stride, act="") if stride == 2 else x, "Relu")
    return net.model(net.classify(x))


def resnet50(batch: int, width: float = 1.0) -> onnx.ModelProto:
    """He et al. 2016 (bottleneck blocks), 160 x 160."""
    net = Net("resnet50")
    net.channels[net.input("x", batch, 3, 160, 160)] = 3
    x = net.pool(net.conv("x", scaled(64, width), 7, 2))
    for stage, (channels, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            inner, out = scaled(channels, width), 4 * scaled(channels, width)
            stride = 2 if stage and not block else 1
            y = net.conv(net.conv(net.conv(x, inner, 1), inner, 3, stride), out, 1, act="")
            x = net.add(y, net.conv(x, out, 1, stride, act="") if not block else x, "Relu")
    return net.model(net.classify(x))


def squeezenet(batch: int, width: float = 1.0) -> onnx.ModelProto:
    """Iandola et al. 2016, version 1.1, 224 x 224."""
    net = Net("squeezenet")
    net.channels[net.input("x", batch, 3, 224, 224)] = 3
    x = net.pool(net.conv("x", scaled(64, width), 3, 2, norm=False))
    for index, (squeeze, expand) in enumerate(
        ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
    ):
        s, e = scaled(squeeze, width), scaled(expand, width)
        y = net.conv(x, s, 1, norm=False)
        x = net.op("Concat", net.conv(y, e, 1, norm=False), net.conv(y, e, 3, norm=False), axis=1)
        net.channels[x] = 2 * e
        x = net.pool(x) if index in (1, 3) else x
    return net.model(net.op("Flatten", net.op("GlobalAveragePool", net.conv(x, 1000, 1, norm=False))))


def unet(batch: int, width: float = 1.0) -> onnx.ModelProto:
    """Ronneberger et al. 2015 at half depth and a quarter of the width, 128 x 128: resize and concatenate."""
    net = Net("unet")
    net.channels[net.input("x", batch, 3, 128, 128)] = 3
    x, skips = "x", []
    for channels in (16, 32, 64):
        x = net.conv(net.conv(x, scaled(channels, width)), scaled(channels, width))
        skips.append(x)
        x = net.pool(x, 2)
    x = net.conv(net.conv(x, scaled(128, width)), scaled(128, width))
    for channels, skip in zip((64, 32, 16), reversed(skips), strict=True):
        scales = net.constant(np.array([1, 1, 2, 2], np.float32))
        up = net.op("Resize", x, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")
        total = net.channels[x] + net.channels[skip]
        joined = net.op("Concat", up, skip, axis=1)
        net.channels[joined] = total
        x = net.conv(net.conv(joined, scaled(channels, width)), scaled(channels, width))
    return net.model(net.conv(x, 2, 1, act="Sigmoid", norm=False))


# -- depthwise convolutions -------------------------------------------------------------------------------------------


def mobilenet_v2(batch: int, width: float = 1.0) -> onnx.ModelProto:
    """Sandler et al. 2018, 224 x 224."""
    net = Net("mobilenet_v2")
    net.channels[net.input("x", batch, 3, 224, 224)] = 3
    x = net.conv("x", scaled(32, width), 3, 2, act="Relu6")
    for expand, channels, repeats, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for index in range(repeats):
            step, out = stride if index == 0 else 1, scaled(channels, width)
            hidden = net.channels[x] * expand
            y = net.conv(x, hidden, 1, act="Relu6") if expand > 1 else x
            y = net.conv(net.conv(y, hidden, 3, step, hidden, "Relu6"), out, 1, act="")
            x = net.add(y, x) if step == 1 and net.channels[x] == out else y
    return net.model(net.classify(net.conv(x, scaled(1280, width), 1, act="Relu6")))


_V3 = (
    (3, 16, 16, True, "Relu", 2), (3, 72, 24, False, "Relu", 2), (3, 88, 24, False, "Relu", 1),
    (5, 96, 40, True, "HardSwish", 2), (5, 240, 40, True, "HardSwish", 1), (5, 240, 40, True, "HardSwish", 1),
    (5, 120, 48, True, "HardSwish", 1), (5, 144, 48, True, "HardSwish", 1), (5, 288, 96, True, "HardSwish", 2),
    (5, 576, 96, True, "HardSwish", 1), (5, 576, 96, True, "HardSwish", 1),
)  # fmt: skip


def mobilenet_v3(batch: int, width: float = 1.0) -> onnx.ModelProto:
    """Howard et al. 2019, small, 224 x 224: squeeze-and-excitation and hard swish."""
    net = Net("mobilenet_v3")
    net.channels[net.input("x", batch, 3, 224, 224)] = 3
    x = net.conv("x", scaled(16, width), 3, 2, act="HardSwish")
    for kernel, expand, channels, excite, act, stride in _V3:
        hidden, out = scaled(expand, width), scaled(channels, width)
        y = net.conv(net.conv(x, hidden, 1, act=act), hidden, kernel, stride, hidden, act)
        y = net.squeeze_excite(y, scaled(hidden / 4, 1.0), "HardSigmoid") if excite else y
        y = net.conv(y, out, 1, act="")
        x = net.add(y, x) if stride == 1 and net.channels[x] == out else y
    return net.model(net.classify(net.conv(x, scaled(576, width), 1, act="HardSwish")))


def efficientnet(batch: int, width: float = 1.0) -> onnx.ModelProto:
    """Tan and Le 2019, B0, 224 x 224: swish and squeeze-and-excitation."""
    net = Net("efficientnet")
    net.channels[net.input("x", batch, 3, 224, 224)] = 3
    x = net.conv("x", scaled(32, width), 3, 2, act="Swish")
    for expand, channels, repeats, stride, kernel in (
        (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    ):  # fmt: skip
        for index in range(repeats):
            step, out, given = stride if index == 0 else 1, scaled(channels, width), net.channels[x]
            y = net.conv(x, given * expand, 1, act="Swish") if expand > 1 else x
            y = net.conv(y, given * expand, kernel, step, given * expand, "Swish")
            y = net.conv(net.squeeze_excite(y, max(given // 4, 4), act="Swish"), out, 1, act="")
            x = net.add(y, x) if step == 1 and given == out else y
    return net.model(net.classify(net.conv(x, scaled(1280, width), 1, act="Swish")))


def shufflenet_v2(batch: int, width: float = 1.0) -> onnx.ModelProto:
    """Ma et al. 2018, 1.0x, 224 x 224: split, concatenate, shuffle channels."""
    net = Net("shufflenet_v2")
    net.channels[net.input("x", batch, 3, 224, 224)] = 3
    x, side = net.pool(net.conv("x", 24, 3, 2)), 56
    for channels, repeats in ((116, 4), (232, 8), (464, 4)):
        half = scaled(channels, width) // 2
        for index in range(repeats):
            stride = 2 if index == 0 else 1
            side //= stride
            if stride == 2:
                left, right = net.conv(net.conv(x, net.channels[x], 3, 2, net.channels[x], ""), half, 1), x
            else:
                left, right = net.ops("Split", x, net.ints(half, half), outputs=2, axis=1)
                net.channels[left] = net.channels[right] = half
            right = net.conv(net.conv(net.conv(right, half, 1), half, 3, stride, half, ""), half, 1)
            x = net.op("Concat", left, right, axis=1)
            apart = net.op("Reshape", x, net.ints(batch, 2, half, side, side))
            shuffled = net.op("Transpose", apart, perm=[0, 2, 1, 3, 4])
            x = net.op("Reshape", shuffled, net.ints(batch, 2 * half, side, side))
            net.channels[x] = 2 * half
    return net.model(net.classify(net.conv(x, scaled(1024, width), 1)))


def convnext(batch: int, width: float = 1.0) -> onnx.ModelProto:
    """Liu et al. 2022, atto, 160 x 160: depthwise 7 x 7, then layer norm, matrix products and gelu, channels last."""
    net = Net("convnext")
    net.channels[net.input("x", batch, 3, 160, 160)] = 3
    x = net.conv("x", scaled(40, width), 4, 4, act="", norm=False)
    for stage, (channels, blocks) in enumerate(((40, 2), (80, 2), (160, 6), (320, 2))):
        wide = scaled(channels, width)
        x = net.conv(x, wide, 2, 2, act="", norm=False) if stage else x
        for _ in range(blocks):
            y = net.op("Transpose", net.conv(x, wide, 7, 1, wide, "", norm=False), perm=[0, 2, 3, 1])
            hidden = net.linear(net.layer_norm(y, wide), wide, 4 * wide, "Gelu", rank=4)
            y = net.op("Transpose", net.linear(hidden, 4 * wide, wide, rank=4), perm=[0, 3, 1, 2])
            net.channels[y] = wide
            x = net.add(x, y)
    return net.model(net.classify(x))


# -- transformers -----------------------------------------------------------------------------------------------------


def _encoder(name: str, batch: int, layers: int, width: int, heads: int, inner: int, tokens: int) -> onnx.ModelProto:
    """Devlin et al. 2019: embeddings with a mask, layers normalized behind."""
    net = Net(name)
    net.input("ids", batch, tokens, dtype=TensorProto.INT64)
    net.input("mask", batch, tokens, dtype=TensorProto.INT64)
    words = net.op("Gather", net.normal(8000, width, scale=0.02), "ids")
    x = net.layer_norm(net.op("Add", words, net.normal(1, tokens, width, scale=0.02)), width)
    kept = net.op("Cast", net.op("Unsqueeze", "mask", net.ints(1, 2)), to=TensorProto.FLOAT)
    mask = net.op("Mul", net.op("Sub", net.scalar(1.0), kept), net.scalar(-10000.0))
    for _ in range(layers):
        x = net.block(x, width, heads, inner, mask)
    first = net.op("Gather", x, net.constant(np.int64(0)), axis=1)
    return net.model(net.linear(net.linear(first, width, width, "Tanh"), width, 2))


def bert_mini(batch: int, width: float = 1.0) -> onnx.ModelProto:
    """Turc et al. 2019: 4 layers of 256, 128 tokens; `width` keeps that share of the inner units."""
    return _encoder("bert_mini", batch, 4, 256, 4, scaled(1024, width), 128)


def minilm(batch: int, width: float = 1.0) -> onnx.ModelProto:
    """Wang et al. 2020: 6 layers of 384, 64 tokens."""
    return _encoder("minilm", batch, 6, 384, 12, scaled(1536, width), 64)


def vit_tiny(batch: int, width: float = 1.0) -> onnx.ModelProto:
    """Touvron et al. 2021 (DeiT-Ti) with 6 of its 12 layers: 197 tokens of 192."""
    net = Net("vit_tiny")
    net.channels[net.input("x", batch, 3, 224, 224)] = 3
    weight, bias = net.normal(192, 3, 16, 16), net.normal(192, scale=0.1)
    patches = net.op("Conv", "x", weight, bias, strides=[16, 16], kernel_shape=[16, 16])
    x = net.op("Transpose", net.op("Reshape", patches, net.ints(batch, 192, 196)), perm=[0, 2, 1])
    first = net.op("Expand", net.normal(1, 1, 192, scale=0.02), net.ints(batch, 1, 192))
    x = net.op("Add", net.op("Concat", first, x, axis=1), net.normal(1, 197, 192, scale=0.02))
    for _ in range(6):
        x = net.block(x, 192, 3, scaled(768, width), pre=True)
    first = net.op("Gather", net.layer_norm(x, 192), net.constant(np.int64(0)), axis=1)
    return net.model(net.linear(first, 192, 1000))


def gpt_step(batch: int, width: float = 1.0) -> onnx.ModelProto:
    """Radford et al. 2019, 4 layers of 512: one token behind 127, keys and values cached."""
    net, wide, heads = Net("gpt_step"), 512, 8
    net.input("ids", batch, 1, dtype=TensorProto.INT64)
    x = net.op("Gather", net.normal(8000, wide, scale=0.02), "ids")
    for layer in range(4):
        size = wide // heads
        past = net.input(f"k{layer}", batch, heads, size, 127), net.input(f"v{layer}", batch, heads, 127, size)
        x = net.block(x, wide, heads, scaled(2048, width), pre=True, past=past)
    return net.model(net.linear(net.layer_norm(x, wide), wide, 8000, rank=3))


# -- recurrent --------------------------------------------------------------------------------------------------------


def lstm_speech(batch: int, width: float = 1.0) -> onnx.ModelProto:
    """Two LSTMs of 320 over 50 frames of 80 mel bands, then a softmax over characters (Graves et al. 2013)."""
    net, hidden = Net("lstm_speech"), scaled(320, width)
    x = net.op("Transpose", net.input("x", batch, 50, 80), perm=[1, 0, 2])
    x = net.recurrent("LSTM", net.recurrent("LSTM", x, 80, hidden), hidden, hidden)
    scores = net.linear(net.op("Transpose", x, perm=[1, 0, 2]), hidden, 64, rank=3)
    return net.model(net.op("Softmax", scores, axis=-1))


def gru_keywords(batch: int, width: float = 1.0) -> onnx.ModelProto:
    """A convolution over the spectrogram, then two GRUs of 128 (Arik et al. 2017)."""
    net, hidden = Net("gru_keywords"), scaled(128, width)
    net.channels[net.input("x", batch, 1, 98, 40)] = 1
    y = net.conv("x", 32, 5, 2)
    steps = net.op("Transpose", y, perm=[2, 0, 1, 3])
    x = net.op("Reshape", steps, net.ints(49, batch, 640))
    x = net.recurrent("GRU", net.recurrent("GRU", x, 640, hidden), hidden, hidden)
    last = net.op("Gather", x, net.constant(np.int64(-1)), axis=0)
    return net.model(net.linear(last, hidden, 12))


def bilstm_tagger(batch: int, width: float = 1.0) -> onnx.ModelProto:
    """Word embeddings, a bidirectional LSTM of 2 x 128, tags (Lample et al. 2016), 40 words."""
    net, hidden = Net("bilstm_tagger"), scaled(128, width)
    words = net.op("Gather", net.normal(8000, 100, scale=0.1), net.input("ids", batch, 40, dtype=TensorProto.INT64))
    x = net.recurrent("LSTM", net.op("Transpose", words, perm=[1, 0, 2]), 100, hidden, 2)
    return net.model(net.linear(x, 2 * hidden, 20, rank=3))


# -- sequences without recurrence -------------------------------------------------------------------------------------


def tcn(batch: int, width: float = 1.0) -> onnx.ModelProto:
    """Bai et al. 2018: dilated convolutions along time, 256 steps."""
    net = Net("tcn")
    x, given = net.input("x", batch, 40, 256), 40
    for level in range(5):
        wide, dilation, y = scaled(64, width), 2**level, x
        for _ in range(2):
            inner = given if y == x else wide
            padded = net.op("Pad", y, net.ints(0, 0, 2 * dilation, 0, 0, 0))
            y = net.op("Conv", padded, net.normal(wide, inner, 3), net.normal(wide, scale=0.1), dilations=[dilation])
            y = net.op("Relu", y)
        skip = x if given == wide else net.op("Conv", x, net.normal(wide, given, 1), net.normal(wide, scale=0.1))
        x, given = net.op("Relu", net.op("Add", y, skip)), wide
    return net.model(net.linear(net.op("ReduceMean", x, axes=[2], keepdims=0), given, 10))


def recommender(batch: int, width: float = 1.0) -> onnx.ModelProto:
    """Naumov et al. 2019 (DLRM): eight embeddings, their products, two multilayer perceptrons."""
    net, size = Net("recommender"), 64
    net.input("ids", batch, 8, dtype=TensorProto.INT64)
    inner = net.linear(net.input("x", batch, 13), 13, scaled(512, width), "Relu")
    x = net.linear(inner, scaled(512, width), size, "Relu")
    tables = [
        net.op("Gather", net.normal(5000, size, scale=0.1), net.op("Gather", "ids", net.constant(np.int64(i)), axis=1))
        for i in range(8)
    ]
    rows = net.op("Concat", *(net.op("Unsqueeze", one, net.ints(1)) for one in [x, *tables]), axis=1)
    products = net.op("MatMul", rows, net.op("Transpose", rows, perm=[0, 2, 1]))
    y = net.op("Concat", x, net.op("Reshape", products, net.ints(batch, 81)), axis=1)
    hidden = net.linear(net.linear(y, size + 81, scaled(1024, width), "Relu"), scaled(1024, width), 512, "Relu")
    return net.model(net.op("Sigmoid", net.linear(hidden, 512, 1)))
