"""
Configurations of streams and consumers as the server has them, compared with the planned ones field by field.

The server's answers are read as they are: the client's own classes leave out fields that they do not know, and an unknown
field of a newer server can stop a consumer, just like a known one. So every field counts, but for those in `NOT_COMPARED`:
one that the plan does not name must have its default.
"""

from __future__ import annotations

__all__ = [
    "NOT_COMPARED",
    "ServerConfig",
    "differences",
    "read_consumer",
    "read_stream",
    "with_chosen_fields",
]

from collections.abc import Collection, Mapping
from dataclasses import fields
from enum import Enum
from typing import Any, TypeVar

from attrs import frozen
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, StreamConfig

from bus.jetstream.admin.configs import missing_subjects

NOT_COMPARED: Mapping[type, Collection[str]] = {
    StreamConfig: frozenset(
        ["name", "description", "metadata", "placement", "compression", "max_bytes", "allow_direct", "deny_delete", "deny_purge"]
    ),
    ConsumerConfig: frozenset(["name", "durable_name", "description", "metadata", "sample_freq", "pause_until"]),
}
"""
Fields that an operator may set at will: names and remarks, where and how a stream is stored and how much of the disk it
may use (a full stream refuses messages, and loses none), additional ways to read it, protection against deletion, and
samples of acknowledgements. ``pause_until`` stays after the pause; `ServerConfig.paused` is about the pause itself.
"""

ConfigT = TypeVar("ConfigT", StreamConfig, ConsumerConfig)

_DEFAULTS: Mapping[str, Any] = {
    "max_consumers": -1,
    "max_msgs": -1,
    "max_bytes": -1,
    "max_msgs_per_subject": -1,
    "max_msg_size": -1,
    "max_waiting": 512,
}
"""What the server sets where the request had nothing; in all other fields it is nothing, zero, false or the word ``default``."""

_FILTERS = ("filter_subject", "filter_subjects")
_DEFAULT_WORDS = ("default", "none")
_NAMES = frozenset({"deliver_subject", "deliver_group"})
"""Fields whose value is a name that an operator chooses, and that may be one of these words."""

_UNLIMITED = frozenset(name for name, value in _DEFAULTS.items() if value == -1) | {"max_deliver"}
_SECONDS = frozenset({"max_age", "duplicate_window", "ack_wait", "max_expires", "inactive_threshold", "idle_heartbeat"})
_NANOSECONDS = 1_000_000_000


@frozen
class ServerConfig:
    """A stream or a consumer on the server: its configuration, and all that the server reports about it."""

    config: Mapping[str, Any]
    info: Mapping[str, Any]

    @property
    def subjects(self) -> list[str]:
        """The subjects that a consumer delivers; an empty list means all of its stream."""
        single = self.config.get("filter_subject")
        return list(self.config.get("filter_subjects") or ([single] if single else []))

    @property
    def paused(self) -> str:
        """Until when a consumer is paused, as the server reports it; empty if it is not."""
        return str(self.config.get("pause_until") or "further notice") if self.info.get("paused") else ""


async def read_stream(js: JetStreamContext, name: str) -> ServerConfig:
    """Return the stream *name*; raises as ``stream_info`` does."""
    return _server_config(await js._api_request(f"{js._prefix}.STREAM.INFO.{name}", timeout=js._timeout))


async def read_consumer(js: JetStreamContext, stream: str, name: str) -> ServerConfig:
    """Return the consumer *name* on *stream*; raises as ``consumer_info`` does."""
    return _server_config(await js._api_request(f"{js._prefix}.CONSUMER.INFO.{stream}.{name}", timeout=js._timeout))


def differences(wanted: StreamConfig | ConsumerConfig, found: ServerConfig) -> list[str]:
    """
    Describe the fields in which *found* differs from *wanted*: ``max_deliver is 3, not 5``.

    Additional filter subjects are no difference: an older or newer version of the service that runs beside this one may
    need them.
    """
    planned, existing, at_will = wanted.as_dict(), dict(found.config), NOT_COMPARED[type(wanted)]
    lines = []
    for name in (*planned, *sorted(existing.keys() - planned.keys())):
        if name in at_will or name in _FILTERS:
            continue
        default = _DEFAULTS.get(name)
        want, has = (_plain(name, each.get(name, default)) for each in (planned, existing))
        if want is None:
            want = _plain(name, default)
        if want is None and has in _DEFAULT_WORDS and name not in _NAMES:
            continue
        if want != has:
            lines.append(f"{name} is {_text(name, has)}, not {_text(name, want)}")
    if isinstance(wanted, ConsumerConfig):
        lines += [f"filter_subjects lacks {subject}" for subject in missing_subjects(wanted, found.subjects)]
        if wanted.filter_subjects and not found.subjects:
            lines.append("filter_subjects is all of the stream")
    return lines


def with_chosen_fields(wanted: ConfigT, found: ServerConfig) -> ConfigT:
    """Return *wanted* for an update of *found*, which keeps what an operator may set at will; a pause ends."""
    existing = type(wanted).from_response(dict(found.config))
    kept = set(NOT_COMPARED[type(wanted)]) - {"pause_until"}
    return wanted.evolve(**{each.name: getattr(existing, each.name) for each in fields(wanted) if each.name in kept})


def _server_config(info: Mapping[str, Any]) -> ServerConfig:
    return ServerConfig(info["config"], info)


def _plain(name: str, value: Any) -> Any:
    """Return *value* in one form for all that means the same: no value, zero, false, empty, unlimited."""
    if isinstance(value, Enum):
        value = value.value
    if name in _UNLIMITED and isinstance(value, int) and value <= 0:
        return -1
    if isinstance(value, list):
        return sorted(value, key=str) or None
    return value or None


def _text(name: str, value: Any) -> str:
    if value is None:
        return "unset"
    if name in _SECONDS and isinstance(value, int):
        return f"{value / _NANOSECONDS:g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
