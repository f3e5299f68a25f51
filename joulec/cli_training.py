"""`joulec finetune`: a Keras model trained on, its masks kept. Registered, with its examples, in joulec.cli."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from joulec import cli_options as options
from joulec.cli_output import print_json
from joulec.errors import InputError

_DATA, _PRUNING, _TRAINING, _LEARNS = "Data and judging", "Pruning", "Training", "What learns"


def _option(panel: str, *names: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **more)


Data = Annotated[
    str | None,
    _option(
        _DATA, "--data", metavar="DATA",
        help="An .npz with the inputs by name and y, or FILE.py:FUNCTION returning a tf.data.Dataset of (x, y).",
    ),
]  # fmt: skip
Validation = Annotated[
    str | None,
    _option(_DATA, "--validation", metavar="DATA", help="What judges, in the same form. Default: see --holdout."),
]
Holdout = Annotated[
    float | None,
    _option(_DATA, "--holdout", metavar="SHARE", help="Share of the arrays drawn to judge by. Default: 0.1."),
]
Loss = Annotated[
    str | None,
    _option(_DATA, "--loss", metavar="NAME", help="A loss of Keras. Default: read off the output and y."),
]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="OUT.keras", help="The file to write.", show_default=False)
]
Masks = Annotated[
    str | None,
    _option(
        _PRUNING, "--masks", metavar="PATH",
        help="An artefact's directory or its masks_source.npz: what they drop stays exactly zero.",
    ),
]  # fmt: skip
Sparsity = Annotated[
    float | None,
    _option(_PRUNING, "--sparsity", metavar="S", help="Prune this share of the kernels by magnitude, while training."),
]
Gradual = Annotated[
    bool | None,
    _option(
        _PRUNING, "--gradual/--at-once",
        help="Let weights go along the schedule of Zhu & Gupta 2017. Default: gradual with --sparsity only.",
    ),
]  # fmt: skip
PruneUntil = Annotated[
    float | None,
    _option(
        _PRUNING, "--prune-until", metavar="SHARE",
        help="Share of the steps after which a schedule has pruned all; the rest recovers. Default: 0.6.",
    ),
]  # fmt: skip
Teacher = Annotated[
    str | None,
    _option(_TRAINING, "--teacher", metavar="MODEL", help="The unpruned model: its outputs are learned too."),
]
TeacherWeight = Annotated[
    float | None,
    _option(_TRAINING, "--teacher-weight", metavar="W", help="Share of the teacher in the loss. Default: 0.5."),
]
Temperature = Annotated[
    float | None,
    _option(_TRAINING, "--temperature", metavar="T", help="How soft the teacher's classes are. Default: 3."),
]
Epochs = Annotated[
    int | None, _option(_TRAINING, "--epochs", metavar="N", help="Runs over the data, at most. Default: 20.")
]
Batch = Annotated[int | None, _option(_TRAINING, "--batch", metavar="N", help="Samples per batch. Default: 32.")]
Rate = Annotated[
    float | None,
    _option(_TRAINING, "--learning-rate", metavar="R", help="At the start; falls to 0 along a cosine. Default: 0.001."),
]
Optimizer = Annotated[
    str | None, _option(_TRAINING, "--optimizer", metavar="NAME", help="adamw, adam or sgd. Default: adamw.")
]
WeightDecay = Annotated[
    float | None,
    _option(_TRAINING, "--weight-decay", metavar="D", help="Decoupled decay of the kernels, as in AdamW. Default: 0."),
]
L2 = Annotated[
    float | None,
    _option(_TRAINING, "--l2", metavar="L", help="Sum of squares of the kernels in the loss, times this. Default: 0."),
]
Accumulate = Annotated[
    int | None, _option(_TRAINING, "--accumulate", metavar="N", help="Batches averaged into one step. Default: 1.")
]
Precision = Annotated[
    str | None,
    _option(
        _TRAINING, "--precision", metavar="POLICY",
        help="float32, mixed_float16 or mixed_bfloat16, in training only. Default: float32.",
    ),
]  # fmt: skip
Dropout = Annotated[
    float | None,
    _option(_TRAINING, "--dropout", metavar="RATE", help="Rate of the Dropout layers in training. Default: their own."),
]
Patience = Annotated[
    int | None,
    _option(
        _TRAINING, "--patience", metavar="N",
        help="Stop after N epochs without gain; 0 never. The best weights are kept. Default: 5.",
    ),
]  # fmt: skip
MaxDrop = Annotated[
    str | None,
    _option(
        _TRAINING, "--max-drop", metavar="DROP",
        help="Budget in points of accuracy against MODEL: 0.01 or 1%; exit 3 and nothing written where it is missed.",
    ),
]  # fmt: skip
Logs = Annotated[
    Path | None, _option(_TRAINING, "--tensorboard", metavar="DIR", help="Write logs for TensorBoard there.")
]
NewHead = Annotated[
    int | None,
    _option(
        _LEARNS, "--new-head", metavar="N", help="Replace the last Dense layer by one of N units; it alone learns."
    ),
]
Backbone = Annotated[
    bool | None,
    _option(
        _LEARNS, "--freeze-backbone/--train-backbone",
        help="Whether all layers but the last keep their weights. Default: with --new-head they do.",
    ),
]  # fmt: skip
Freeze = Annotated[
    list[str] | None,
    _option(
        _LEARNS, "--freeze", metavar="PATTERN", help="Layers that keep their weights, * and ? allowed; repeatable."
    ),
]


def finetune(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A .keras or .h5 file.")],
    out: Out = None,
    data: Data = None,
    validation: Validation = None,
    holdout: Holdout = None,
    loss: Loss = None,
    masks: Masks = None,
    sparsity: Sparsity = None,
    gradual: Gradual = None,
    prune_until: PruneUntil = None,
    teacher: Teacher = None,
    teacher_weight: TeacherWeight = None,
    temperature: Temperature = None,
    epochs: Epochs = None,
    batch: Batch = None,
    learning_rate: Rate = None,
    optimizer: Optimizer = None,
    weight_decay: WeightDecay = None,
    l2: L2 = None,
    accumulate: Accumulate = None,
    precision: Precision = None,
    dropout: Dropout = None,
    patience: Patience = None,
    max_drop: MaxDrop = None,
    tensorboard: Logs = None,
    new_head: NewHead = None,
    freeze_backbone: Backbone = None,
    freeze: Freeze = None,
    seed: options.Seed = None,
    json: options.Json = False,
    trust_code: options.TrustCode = False,
    memory_limit: options.MemoryLimit = None,
    time_limit: options.TimeLimit = None,
) -> None:
    """Train a Keras model on, so that it recovers from pruning; what its masks dropped stays exactly zero.

    Keeps the weights of the best epoch, and those from before training where none was better.
    """
    from dataclasses import fields, replace

    from joulec.report import terminal, training_tables
    from joulec.report.progress import Watcher
    from joulec.training.finetuning import finetune as tune
    from joulec.training.recipe import Recipe

    if out is None or data is None:
        raise InputError(f"no {'output: write -o OUT.keras' if out is None else 'data: write --data DATA'}")
    limits = options.limits(memory_limit, time_limit)
    given = {**ctx.params, "max_drop": None if max_drop is None else options.drop(max_drop)}
    recipe = {field.name: given[field.name] for field in fields(Recipe) if given.get(field.name) is not None}
    with Watcher(quiet=json) as watch:
        done = tune(
            model, data, masks=masks, validation=validation, teacher=teacher, out=out, logs=tensorboard,
            trust_code=trust_code, progress=watch,
            limits=limits if time_limit is not None else replace(limits, seconds=None), **recipe,
        )  # fmt: skip
    if json:
        print_json(done.report.to_json())
    else:
        training_tables.tuned(terminal.console(), done.report.to_json(), out)
