"""What every command prints the same way."""

from __future__ import annotations

import sys
from typing import Any


def epilog(*lines: str) -> str:
    """The end of a command's help, a paragraph a line."""
    return "\n\n".join(lines)


def print_json(found: Any) -> None:
    """One JSON document on stdout, and nothing else."""
    import json

    from joulec.report.data import plain

    sys.stdout.write(json.dumps(plain(found), indent=2, allow_nan=False) + "\n")
