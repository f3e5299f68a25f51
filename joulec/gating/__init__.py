"""`joulec gate`: whether an artefact costs more than a lock file says, and the diff that a reviewer needs."""

from joulec.gating.checks import Check, OpDiff, Slack
from joulec.gating.comparing import Gate, gate

__all__ = ["Check", "Gate", "OpDiff", "Slack", "gate"]
