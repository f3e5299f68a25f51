"""SavedModel directories: inspected first, then lowered by their serving signature."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

from joulec.errors import InputError
from joulec.ir.lower.tensorflow import lower_concrete, tensorflow
from joulec.ir.module import Module
from joulec.ir.shapes import first_line

SIGNATURE = "serving_default"

CODE = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc", "NumpyFunc"})
FILES = frozenset(
    (
        "ReadFile WriteFile MatchingFiles WholeFileReader WholeFileReaderV2 TextLineReader TextLineReaderV2 "
        "TFRecordReader TFRecordReaderV2 FixedLengthRecordReader FixedLengthRecordReaderV2 TextLineDataset "
        "TFRecordDataset FixedLengthRecordDataset FixedLengthRecordDatasetV2 Save SaveSlices Restore RestoreSlice "
        "LoadDataset SaveDataset DebugIdentityV2 DumpTensor LookupTableExport InitializeTableFromTextFile "
        "InitializeTableFromTextFileV2 ImmutableConst LoadAndRemapMatrix GenerateVocabRemapping CreateSummaryDbWriter "
        "FileSystemSetConfiguration CalibrationStatisticsSaver"
    ).split()
)
NETWORK = frozenset(("TryRpc DataServiceDataset DataServiceDatasetV2 BigtableClient RemoteCall").split())
SAVER = frozenset({"SaveV2", "RestoreV2", "MergeV2Checkpoints", "ShardedFilename"})
"""Written into every SavedModel, in functions of this purpose only."""


_FILE_NAME = re.compile(
    r"Reader|Dataset|SummaryWriter|SummaryFileWriter|^Write\w*Summary|Checkpoint|^Debug\w|Restore|Save(?:V2)?$"
)
"""Families of operators that open what their arguments name: tables, logs, caches, mapped memory."""

_SAVER_NAME = re.compile(r"__inference__traced_(save|restore)_\d+")


def from_directory(path: Path, folder: Path, trust_code: bool = False) -> tuple[Module, Any]:
    """Lower the serving signature.

    Args:
        path: the SavedModel.
        folder: where to write one without an optimizer's state, if need be.
        trust_code: allow operators that touch files, network or Python.

    Raises:
        InputError: links that lead outside, operators that touch files, network or Python, or no signature.
    """
    _refuse_links(path)
    tf = tensorflow()
    proto = _read(path)
    if not trust_code:
        _refuse_operators(proto, path)
    source = _without_training_state(proto, path, folder)
    try:
        loaded = tf.saved_model.load(str(source))
    except Exception as error:
        raise InputError(f"{path}: TensorFlow cannot load it: {first_line(error)}") from error
    if SIGNATURE not in loaded.signatures:
        known = ", ".join(sorted(loaded.signatures)) or "none"
        raise InputError(f"{path}: no signature '{SIGNATURE}' (it has: {known}); save the model with one")
    module, run = lower_concrete(loaded.signatures[SIGNATURE], "saved-model")

    def keep_alive(feed: Any) -> Any:
        return run(feed) if loaded is not None else {}  # the functions die with what was loaded

    return module, keep_alive


def _refuse_links(path: Path) -> None:
    root = path.resolve()
    for folder, names, files in os.walk(path, followlinks=False):
        for name in [*names, *files]:
            file = Path(folder, name)
            if not Path(os.path.realpath(file)).is_relative_to(root):
                raise InputError(f"{file}: leads outside the SavedModel; refused")
            try:
                mode = file.stat().st_mode
            except OSError as error:
                raise InputError(f"{file}: {error.strerror or error}") from error
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise InputError(f"{file}: not a regular file; refused")


def _read(path: Path) -> Any:
    from tensorflow.core.protobuf import saved_model_pb2

    proto = saved_model_pb2.SavedModel()
    try:
        proto.ParseFromString((path / "saved_model.pb").read_bytes())
    except Exception as error:
        raise InputError(f"{path}: saved_model.pb is damaged ({first_line(error)})") from error
    return proto


def _without_training_state(proto: Any, path: Path, folder: Path) -> Path:
    """The SavedModel, or a copy that has no slots of an optimizer and borrows all else.

    Slots (momentum and the like) are revived through the optimizer's class. Keras 2 wrote it, TensorFlow no longer
    knows it, and the whole model fails to load for the sake of what no signature reads.
    """
    owners = [node for meta in proto.meta_graphs for node in meta.object_graph_def.nodes if node.slot_variables]
    if not owners:
        return path
    for node in owners:
        del node.slot_variables[:]
    copy = folder / "saved_model"
    copy.mkdir()
    for part in path.iterdir():
        if part.name != "saved_model.pb":
            (copy / part.name).symlink_to(part.resolve())
    (copy / "saved_model.pb").write_bytes(proto.SerializeToString())
    return copy


def _refuse_operators(proto: Any, path: Path) -> None:
    for meta in proto.meta_graphs:
        graph = meta.graph_def
        for asset in meta.asset_file_def:
            if Path(asset.filename).is_absolute() or ".." in Path(asset.filename).parts:
                raise InputError(f"{path}: asset '{asset.filename}' lies outside the SavedModel; refused")
        savers = {f.signature.name for f in graph.library.function if _SAVER_NAME.fullmatch(f.signature.name)}
        for function in graph.library.function:
            saver = function.signature.name in savers
            for node in function.node_def:
                _refuse(node, path, saver)
                if not saver:
                    _refuse_saver_call(node, savers, path)
        for node in graph.node:
            _refuse(node, path, saver=True)


def _refuse_saver_call(node: Any, savers: set[str], path: Path) -> None:
    """The functions that read and write checkpoints are for TensorFlow alone to call: a name proves nothing."""
    called = {function.name for value in node.attr.values() for function in (value.func, *value.list.func)}
    if node.op in savers or called & savers:
        raise InputError(f"{path}: operator '{node.name}' ({node.op}) reads or writes files; --trust-code allows it")


def _refuse(node: Any, path: Path, saver: bool) -> None:
    what = reaches_outside(node.op, saver)
    if what is None and node.op == "PrintV2" and not _is_console(bytes(node.attr["output_stream"].s)):
        what = "writes to a file"
    if what is not None:
        raise InputError(f"{path}: operator '{node.name}' ({node.op}) {what}; --trust-code allows it")


def _is_console(stream: bytes) -> bool:
    return not stream.startswith(b"file:")


def reaches_outside(operator: str, saver: bool = False) -> str | None:
    """What a TensorFlow operator does beyond computing, or None.

    Args:
        operator: its type.
        saver: allow what reads and writes checkpoints.
    """
    if operator in CODE:
        return "runs Python code"
    if operator in NETWORK or operator.startswith("Rpc"):
        return "uses the network"
    if operator in SAVER:
        return None if saver else "reads or writes files"
    if operator in FILES or _FILE_NAME.search(operator):
        return "reads or writes files"
    return None
