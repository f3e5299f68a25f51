"""Observers that ship with the pipeline. Progress for a terminal lives in joulec.report."""

from __future__ import annotations

from pathlib import Path

from joulec.errors import InputError
from joulec.ir.module import Module
from joulec.passes.pipeline import Observer, Step


class Dump(Observer):
    """Writes the module after every pass that changed it: `01-fold-constants.onnx`, `02-...`, across all pipelines.

    Args:
        folder: made if it does not exist; files in it are overwritten.

    Raises:
        InputError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be made: {error.strerror}") from error

    def after_pass(self, index: int, total: int, step: Step, module: Module) -> None:
        if step.status != "applied":
            return
        self._count += 1
        name = step.spelling.partition("{")[0]
        module.save(self._folder / f"{self._count:02d}-{name}.onnx")
