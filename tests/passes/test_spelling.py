"""The textual form of a pipeline: reads, prints, round-trips, and says what is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulec.errors import InputError
from joulec.ir.module import Module
from joulec.passes.base import Context, Pass, PassResult
from joulec.passes.spelling import options_of, parse, spell


@dataclass(frozen=True)
class TryThings(Pass):
    """Has an option of every type."""

    share: float | None = None
    count: int = 3
    loud: bool = False
    scope: Literal["global", "tensor"] = "global"
    names: tuple[str, ...] = ()

    def run(self, module: Module, context: Context) -> PassResult:
        return PassResult()


KNOWN = {"try-things": TryThings}

passes = st.builds(
    TryThings,
    share=st.none() | st.floats(allow_nan=False),
    count=st.integers(),
    loud=st.booleans(),
    scope=st.sampled_from(["global", "tensor"]),
    names=st.lists(st.text(st.characters(exclude_categories=["C"], exclude_characters=";"), min_size=1)).map(tuple),
)


@given(st.lists(passes))
def test_round_trip(pipeline: list[Pass]) -> None:
    assert parse(spell(pipeline), KNOWN) == pipeline


def test_defaults_are_left_out() -> None:
    assert spell([TryThings(share=0.5)]) == "try-things{share=0.5}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("try-thing", "did you mean 'try-things'?"),
        ("try-things{sharp=1}", "it has: share, count, loud, scope, names"),
        ("try-things{count=many}", "must be a int, not 'many'"),
        ("try-things{loud=yes}", "must be true or false"),
        ("try-things{scope=all}", "must be one of global, tensor"),
        ("try-things{share=0.5", "cannot read"),
        ("!", "cannot read"),
    ],
)
def test_errors_say_what_exists(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said.replace("?", r"\?")):
        parse(text, KNOWN)


def test_help_lists_every_option() -> None:
    assert [row[0] for row in options_of(TryThings)] == ["share", "count", "loud", "scope", "names"]
