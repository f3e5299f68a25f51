"""Share of the sentences of test.npz whose nearest neighbour by cosine, among all others, has the same label."""

from pathlib import Path

import numpy as np

with np.load(Path(__file__).with_name("test.npz"), allow_pickle=False) as file:
    DATA = {name: file[name] for name in file.files}
LABELS, BATCH = DATA.pop("y"), 16


def accuracy(infer):
    made = []
    for start in range(0, len(LABELS), BATCH):
        made.append(infer({name: array[start : start + BATCH] for name, array in DATA.items()})["embedding"])
    vectors = np.concatenate(made)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    near = vectors @ vectors.T
    np.fill_diagonal(near, -1)
    return float((LABELS[near.argmax(axis=1)] == LABELS).mean())
