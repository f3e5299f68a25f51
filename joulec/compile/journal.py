"""What a search has measured so far, kept by content: a build that was cut off goes on where it stopped."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from joulec.backends.artefact import read_json
from joulec.backends.base import write_json
from joulec.errors import InputError


class Journal:
    """Findings by name, written to a file one by one.

    Args:
        path: where they are kept, or None to keep none. A file that is damaged, or about another module, counts as
            empty; one that cannot be written costs the next build time, and nothing else.
        subject: digest of the module that they are about.
    """

    def __init__(self, path: Path | None, subject: str) -> None:
        self._path, self._subject = path, subject
        self._found: dict[str, Any] = _read(path, subject) if path is not None else {}

    def recall(self, what: str, *names: str) -> dict[str, Any] | None:
        """What was found earlier, where it holds these names and nothing but numbers."""
        found = self._found.get(what)
        if not isinstance(found, Mapping) or set(found) != set(names):
            return None
        return dict(found) if all(isinstance(one, int | float | None) for one in found.values()) else None

    def note(self, what: str, **found: float | None) -> None:
        """Keep a finding: numbers by name."""
        self._found[what] = found
        if self._path is None:
            return
        staging = self._path.with_suffix(f".{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(staging, {"subject": self._subject, "found": self._found})
            staging.rename(self._path)
        except OSError:
            self._path = None

    def close(self) -> None:
        """Forget everything: the choices are made, and recorded elsewhere."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _read(path: Path, subject: str) -> dict[str, Any]:
    try:
        data = read_json(path)
    except InputError:
        return {}
    known = isinstance(data, Mapping) and data.get("subject") == subject and isinstance(data.get("found"), Mapping)
    return dict(data["found"]) if known else {}
