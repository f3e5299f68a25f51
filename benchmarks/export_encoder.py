"""Export a six-layer encoder in the manner of BERT, seeded, with PyTorch; `benchmarks/simplify.py` runs it in a child.

    python benchmarks/export_encoder.py dynamo|torchscript OUT.onnx

Batch and sequence length stay symbolic. The two exporters write quite different graphs of the same module.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import nn

WIDTH, HEADS, LAYERS, WORDS, LONGEST = 256, 4, 6, 2000, 512


class Attention(nn.Module):
    """Scaled dot products over heads, with an added mask."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, words, width) to (batch, heads, words, size)."""
        return x.view(x.size(0), x.size(1), HEADS, WIDTH // HEADS).transpose(1, 2)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        query, key, value = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(WIDTH // HEADS) + mask
        context = torch.matmul(torch.softmax(scores, dim=-1), value).transpose(1, 2).contiguous()
        return self.out(context.view(x.size(0), x.size(1), -1))


class Layer(nn.Module):
    """Attention and a GELU between two products, each with its residual and its normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.first, self.last = Attention(), nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.first(x + self.attention(x, mask))
        return self.last(x + self.down(nn.functional.gelu(self.up(x))))


class Encoder(nn.Module):
    """Embeddings of words, places and types, then the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.types = (nn.Embedding(count, WIDTH) for count in (WORDS, LONGEST, 2))
        self.norm = nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, ids: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        places = self.places(torch.arange(ids.size(1), device=ids.device)[None])
        x = self.norm(self.words(ids) + places + self.types(torch.zeros_like(ids)))
        mask = (1.0 - seen[:, None, None, :].float()) * torch.finfo(torch.float32).min
        for layer in self.layers:
            x = layer(x, mask)
        return x


def main(how: str, out: str) -> None:
    torch.manual_seed(0)
    model = Encoder().eval()
    example = torch.randint(0, WORDS, (2, 16)), torch.ones(2, 16, dtype=torch.int64)
    names: dict[str, Any] = {"input_names": ["ids", "seen"], "output_names": ["y"], "external_data": False}
    if how == "dynamo":
        sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("words", max=LONGEST)}
        torch.onnx.export(model, example, out, dynamo=True, dynamic_shapes={"ids": sizes, "seen": sizes}, **names)
        return
    axes = {name: {0: "batch", 1: "words"} for name in ("ids", "seen", "y")}
    torch.onnx.export(model, example, out, dynamo=False, opset_version=17, dynamic_axes=axes, **names)


if __name__ == "__main__":
    main(*sys.argv[1:])
