"""A budget of rewrites: a pass can be stopped behind its k-th rewrite, which is how the one that is wrong is found."""

from __future__ import annotations

from dataclasses import dataclass


class Spent(Exception):
    """The budget is used up: the rewrite is left out, and the graph stays as it is. Rules never see a reason to
    catch it; the rewriter ends the `rewriting` block with it before anything has changed."""


@dataclass
class Allowance:
    """How many rewrites all rewriters of one module may make together, and how many they made.

    It hangs on the module, so that a pass with several rewriters and rounds counts on without knowing of it. Passes
    go through a graph in a fixed order, so the first k rewrites are the same ones under every limit from k up.

    Attributes:
        limit: the number of rewrites allowed, None for any.
        used: the number made; one that failed half-way counts.
        rule, node: the last one made.
    """

    limit: int | None = None
    used: int = 0
    rule: str = ""
    node: str = ""

    def take(self, rule: str, node: str) -> None:
        """Count one rewrite that is about to change the graph.

        Raises:
            Spent: none is left.
        """
        if self.limit is not None and self.used >= self.limit:
            raise Spent
        self.used, self.rule, self.node = self.used + 1, rule, node
