"""What fine-tuning says of itself."""

from __future__ import annotations

from dataclasses import dataclass

from joulec.report.data import Data


@dataclass(frozen=True)
class Tuned(Data):
    """What `finetune` did.

    Attributes:
        metric: what was judged: `accuracy`, `binary_accuracy` or `loss`.
        judged_on: which samples judged it.
        original: loss and metric of the model that was given.
        pruned: of the same under its masks before any training; None without masks, and where they came gradually.
        tuned: of what came out.
        loss: what was trained for.
        epochs: runs over the data.
        best_epoch: whose weights were kept, from 1; 0 for those before training, which none beat.
        history: loss, metric and sparsity after each epoch; `val_` for what judged.
        sparsity: share of the masked weights that are gone; None without masks.
        weights: numbers in masked weights, and in the whole model.
        frozen: layers that kept their weights.
        seconds: that all of it took.
        notes: what there is to say beside that.
        files: what was written.
    """

    metric: str
    judged_on: str
    original: dict[str, float]
    pruned: dict[str, float] | None
    tuned: dict[str, float]
    loss: str
    epochs: int
    best_epoch: int
    history: dict[str, list[float]]
    sparsity: float | None
    weights: tuple[int, int]
    frozen: tuple[str, ...]
    seconds: float
    notes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
