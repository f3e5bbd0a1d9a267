"""What needs the attention of an operator: one table, from which the alerts, the panels and the check in the process follow."""

from __future__ import annotations

__all__ = ["CONDITIONS", "Attention", "AttentionWatch", "Condition", "Severity"]

from app.telemetry.attention.condition import Condition, Severity
from app.telemetry.attention.conditions import CONDITIONS
from app.telemetry.attention.watch import Attention, AttentionWatch
