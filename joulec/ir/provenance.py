"""Where nodes come from: what the rewriter writes into their metadata, and how it is read back.

A node that a rewrite made stands for the nodes that the rewrite was about and for those it erased. A node that was
edited stands for itself and for what it swallowed: erased nodes that fed it, or whose place it took. A node that only
reads another value now is not stamped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module

PASS_KEY, RULE_KEY, SOURCES_KEY = "joulec.pass", "joulec.rule", "joulec.sources"
HISTORY_KEY = "joulec.history"
"""All rewrites that led to a node, oldest first, as `pass/rule`; written where there was more than the last one."""

MAX_SOURCES = 16
"""Source names kept per node; a node that swallowed more says how many."""

MAX_HISTORY = 16
"""Rewrites kept per node, the newest ones."""


@dataclass
class Lineage:
    """What one rewrite did to nodes, for stamping them when it ends.

    Attributes:
        about: the nodes that the rewrite was about.
        created, edited: nodes it made and changed.
        erased: nodes it took away.
    """

    about: Sequence[ir.Node]
    created: list[ir.Node] = field(default_factory=list)
    edited: dict[ir.Node, None] = field(default_factory=dict)
    erased: dict[ir.Node, None] = field(default_factory=dict)
    _near: dict[ir.Node, list[ir.Node]] = field(default_factory=dict)

    def took(self, node: ir.Node, other: ir.Node | None) -> None:
        """`node` no longer reads what `other` made, or took its place: if `other` is erased, `node` swallowed it."""
        if other is not None and other is not node:
            self._near.setdefault(node, []).append(other)

    def erase(self, node: ir.Node) -> None:
        """`node` is about to go; what fed it may have gone into it before."""
        self.erased[node] = None
        for value in node.inputs:
            self.took(node, None if value is None else value.producer())

    def stamp(self, pass_name: str, rule: str) -> None:
        """Write down where the nodes that are left come from."""
        behind, made = [*self.about, *self.erased], set(self.created)
        for node in self.created:
            if node.graph is not None:
                _write(node, behind, pass_name, rule)
        for node in self.edited:
            if node.graph is not None and node not in made:
                _write(node, [node, *self._swallowed(node)], pass_name, rule)

    def _swallowed(self, node: ir.Node) -> list[ir.Node]:
        found: dict[ir.Node, None] = {}
        pending = list(self._near.get(node, ()))
        while pending:
            other = pending.pop(0)
            if other in self.erased and other not in found:
                found[other] = None
                pending += self._near.get(other, ())
        return list(found)


def _write(node: ir.Node, behind: Iterable[ir.Node], pass_name: str, rule: str) -> None:
    known = list(dict.fromkeys(behind))
    telling = [one for one in known if not walk.is_onnx(one, "Constant")] or known
    sources = list(dict.fromkeys(name for one in telling for name in sources_of(one)))
    history = dict.fromkeys(entry for one in telling for entry in _history(one))
    entry = f"{pass_name}/{rule}"
    history.pop(entry, None)
    if len(sources) > MAX_SOURCES:
        sources[MAX_SOURCES:] = [f"+{len(sources) - MAX_SOURCES} more"]
    node.metadata_props[PASS_KEY], node.metadata_props[RULE_KEY] = pass_name, rule
    node.metadata_props[SOURCES_KEY] = json.dumps(sources, ensure_ascii=False)
    node.metadata_props.pop(HISTORY_KEY, None)
    if history:
        entries = [*history, entry][-MAX_HISTORY:]
        node.metadata_props[HISTORY_KEY] = json.dumps(entries, ensure_ascii=False)


def sources_of(node: ir.Node) -> list[str]:
    """The names of the source model's nodes that `node` stands for: itself, or those it was made from."""
    return _names(node, SOURCES_KEY) or [node.name or node.op_type]


def history_of(node: ir.Node) -> list[tuple[str, str]]:
    """(pass, rule) of every rewrite that led to `node`, oldest first; empty for a node of the source model."""
    pairs = (entry.partition("/") for entry in _history(node))
    return [(name, rule) for name, _, rule in pairs]


def without_provenance(module: Module) -> Module:
    """A copy of `module` that forgets where its nodes come from: what is stamped then starts from its own nodes."""
    copy = module.clone()
    for node in walk.nodes(copy.model):
        for key in (PASS_KEY, RULE_KEY, SOURCES_KEY, HISTORY_KEY):
            node.metadata_props.pop(key, None)
    return copy


def _history(node: ir.Node) -> list[str]:
    last = node.metadata_props.get(PASS_KEY)
    if last is None:
        return []
    return _names(node, HISTORY_KEY) or [f"{last}/{node.metadata_props.get(RULE_KEY, '')}"]


def _names(node: ir.Node, key: str) -> list[str]:
    """A list of names in a node's metadata; files are not trusted, so anything else is none."""
    recorded = node.metadata_props.get(key)
    if recorded is None:
        return []
    try:
        names = json.loads(recorded)
    except (ValueError, RecursionError):
        return []
    return [str(name) for name in names[: MAX_SOURCES + 1]] if isinstance(names, list) else []
