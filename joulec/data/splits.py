"""Data apart: what a model is calibrated with is not what it is judged by."""

from __future__ import annotations

from joulec.ir.feeds import Feeds

SHARE = 4
"""Every how many-th feed is held back to judge by; taken through the whole stream, because data are often sorted."""

LEAST = 8
"""Feeds below which none is held back: calibration needs them more."""


def held_out(feeds: Feeds) -> tuple[Feeds, Feeds]:
    """Feeds to calibrate with and feeds to judge by: all of them twice where there are fewer than `LEAST`."""
    if len(feeds.head(LEAST)) < LEAST:
        return feeds, feeds
    said = feeds.description
    kept = feeds.part(lambda position: not _is_held(position), f"{said}; every {SHARE}th is held back to judge by")
    return kept, feeds.part(_is_held, f"every {SHARE}th of {said}")


def _is_held(position: int) -> bool:
    return position % SHARE == SHARE - 1
