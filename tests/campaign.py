"""How long property tests search: a fixed few examples as a rule, any number in a campaign.

JOULEC_EXAMPLES=5000 pytest tests/test_typed_property.py
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

EXAMPLES = int(os.environ.get("JOULEC_EXAMPLES", "0"))
"""Examples of a campaign, or 0: then every run draws the same ones."""


def campaign(examples: int) -> settings:
    """`examples` that are the same every time, or as many random ones as the environment asks for."""
    return settings(
        max_examples=EXAMPLES or examples, deadline=None, derandomize=not EXAMPLES, database=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )  # fmt: skip
