"""The settings of the connection to a collector."""

from __future__ import annotations

__all__ = ["CollectorSettings"]

from typing import Any

import attrs
from attrs import frozen


@frozen
class CollectorSettings:
    """The members of `config.settings.Settings` that telemetry reads; it does not import the settings of all other parts."""

    bus: str
    modules: tuple[str, ...]
    known_modules: tuple[str, ...]
    otel_exporter_otlp_endpoint: str | None
    otel_exporter_otlp_traces_endpoint: str | None
    otel_exporter_otlp_metrics_endpoint: str | None
    otel_sdk_disabled: bool
    otel_traces_sampler: str
    otel_traces_sampler_arg: float

    @classmethod
    def of(cls, settings: Any) -> CollectorSettings:
        """Return those members of *settings*."""
        return cls(*(getattr(settings, member.name) for member in attrs.fields(cls)))
