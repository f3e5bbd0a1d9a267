"""
Write who may do what at NATS, as it follows from the door plates: ``python deploy/nats/write_accounts.py``.

Each module has a user of its own, which may say what the module says, hear what it hears, and nothing else. Streams and
durables are made by a user of their own, too, which can neither say nor hear anything. A test compares the file with what
this would write, so that the rights cannot be forgotten when a plate changes.
"""

from __future__ import annotations

__all__ = ["FILE", "Rights", "accounts", "rights_of"]

from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from app.bootstrap import build_modules
from app.messaging.consumers import planned_topology
from bus.jetstream.admin.topology import ADVISORIES, DEAD_LETTERS, Topology, stream_name
from bus.replay_subjects import UNROUTABLE, module_of
from config.settings import Settings
from modules.registry import MODULES

FILE = Path(__file__).with_name("accounts.conf")

_API = "$JS.API"
_HEAD = """\
# Written by write_accounts.py; change the door plates, or that, and write it again.
#
# Passwords come from the environment. A value that begins with a letter is read as text: secrets.sh makes such.

accounts {
  FULFILMENT {
    jetstream: enabled
    users: [
"""
_TAIL = """\
    ]
  }
  SYS {}
}
system_account: SYS
"""


@frozen
class Rights:
    """What a user may publish and subscribe to; everything else is denied."""

    user: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def rights_of(module: str, topology: Topology) -> Rights:
    """
    Return what *module* needs for its part of *topology*, and for the patrol of its own stream.

    Who else hears a stream it may know: without that nobody can tell when an old version of an event may go.
    """
    own = stream_name(module)
    durables = sorted({(each.stream, each.name) for each in topology.consumers if _is_of(module, each.name)})
    heard = sorted({own, *(stream for stream, _ in durables)} - {ADVISORIES})
    strays = f"{module}{UNROUTABLE}"
    durables.append((own, strays))
    consumers = sorted({name for stream, name in durables if stream != ADVISORIES})
    return Rights(
        module,
        (
            f"{module}.>",
            *(f"dead.{consumer}.>" for consumer in consumers),
            *(f"{_API}.STREAM.INFO.{stream}" for stream in (*heard, ADVISORIES, DEAD_LETTERS)),
            *(f"{_API}.STREAM.MSG.GET.{stream}" for stream in heard),
            *(f"{_API}.CONSUMER.LIST.{stream}" for stream in heard),
            f"{_API}.CONSUMER.CREATE.{own}.{strays}",
            f"{_API}.CONSUMER.CREATE.{own}.{strays}.>",
            *(subject for stream, name in durables for subject in _hearing(stream, name)),
        ),
        (f"_INBOX_{module}.>",),
    )


def _hearing(stream: str, durable: str) -> Iterator[str]:
    yield f"{_API}.CONSUMER.INFO.{stream}.{durable}"
    yield f"{_API}.CONSUMER.MSG.NEXT.{stream}.{durable}"
    yield f"$JS.ACK.{stream}.{durable}.>"
    yield f"$JS.ACK.*.*.{stream}.{durable}.>"  # what servers will send once they know of domains and accounts


def _is_of(module: str, consumer: str) -> bool:
    return module_of(consumer) == module or consumer == f"patrol-{module}"


_PROVISIONER = Rights("provisioner", (f"{_API}.STREAM.>", f"{_API}.CONSUMER.>", f"{_API}.INFO"), ("_INBOX.>",))


def accounts() -> str:
    """Return the content of ``accounts.conf``."""
    topology = planned_topology(build_modules(Settings(known_modules=MODULES)))
    users = [*(rights_of(module, topology) for module in MODULES), _PROVISIONER]
    return _HEAD + "".join(map(_user, users)) + _TAIL


def _user(rights: Rights) -> str:
    def block(verb: str, subjects: tuple[str, ...]) -> str:
        lines = "".join(f'              "{subject}"\n' for subject in subjects)
        return f"          {verb}: {{\n            allow: [\n{lines}            ]\n          }}\n"

    return (
        f"      {{\n        user: {rights.user}\n        password: ${rights.user.upper()}_PASSWORD\n        permissions: {{\n"
        f"{block('publish', rights.publish)}{block('subscribe', rights.subscribe)}        }}\n      }}\n"
    )


if __name__ == "__main__":
    FILE.write_text(accounts(), encoding="utf-8")
