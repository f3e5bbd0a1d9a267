"""NATS users: each module has the permissions for its own work and for nothing else."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import ModuleType

import nats
import nats.errors
import pytest
from attrs import define
from nats.aio.client import Client

from app.bootstrap import build_modules
from app.clock import SystemClock
from app.messaging.consumers import planned_topology
from bus.jetstream.admin.provisioning import apply
from bus.jetstream.admin.topology import ADVISORIES, DEAD_LETTERS, stream_name
from bus.jetstream.recovery.exhausted_deliveries import ExhaustedDeliveries
from bus.port import DeadLetter
from bus.subjects import original_subject
from config.settings import Settings
from modules.registry import MODULES, load_module
from tests.architecture.tree import ROOT
from tests.nats import NatsServer

ACCOUNTS = ROOT / "deploy/nats/accounts.conf"

DENIAL_SECONDS = 2.0

TOPOLOGY = planned_topology(build_modules(Settings(known_modules=MODULES)))


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_accounts", ROOT / "deploy/nats/write_accounts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A server with accounts.conf, and the streams and durables of the program."""
    patch = pytest.MonkeyPatch()
    for user in (*MODULES, "provisioner"):
        patch.setenv(f"{user.upper()}_PASSWORD", f"p-{user}")
    folder = tmp_path_factory.mktemp("nats")
    (folder / "accounts.conf").write_bytes(ACCOUNTS.read_bytes())
    with NatsServer(folder, config='include "accounts.conf"') as started:
        patch.undo()
        asyncio.run(provision(started))
        yield started


async def provision(server: NatsServer) -> None:
    client = await nats.connect(server.url, user="provisioner", password="p-provisioner")
    changes = await apply(client.jetstream(), TOPOLOGY, replicas=1)
    assert [change.line for change in changes if change.is_refused] == []
    await client.close()


@define
class User:
    """A connection of one NATS user, and the permission errors it received."""

    module: str
    client: Client
    denied: list[str]

    async def may_publish(self, subject: str) -> bool:
        """Publish on *subject*; return True unless the server denies it."""
        await self.client.publish(subject, b"{}")
        return not await self._is_denied(f'publish to "{subject}"')

    async def may_subscribe(self, subject: str) -> bool:
        """Subscribe to *subject*; return True unless the server denies it."""
        await self.client.subscribe(subject)
        return not await self._is_denied(f'subscription to "{subject}"')

    async def _is_denied(self, attempt: str) -> bool:
        """Wait for a permission error: the server sends it before the next pong, but the client reports it later."""
        await self.client.flush(5)
        until = asyncio.get_running_loop().time() + DENIAL_SECONDS
        while not any(attempt.lower() in text.lower() for text in self.denied):
            if asyncio.get_running_loop().time() > until:
                return False
            await asyncio.sleep(0.001)
        return True


class DeadLetterList:
    """A dead-letter store in memory."""

    def __init__(self) -> None:
        self.stored: list[DeadLetter] = []

    async def add(self, dead_letter: DeadLetter) -> None:
        self.stored.append(dead_letter)


ConnectAs = Callable[[str], Awaitable[User]]


@pytest.fixture
async def connect_as(server: NatsServer) -> AsyncIterator[ConnectAs]:
    clients: list[Client] = []

    async def connect(module: str) -> User:
        denied: list[str] = []

        async def note(error: Exception) -> None:
            denied.append(str(error))

        client = await nats.connect(
            server.url, user=module, password=f"p-{module}", inbox_prefix=f"_INBOX_{module}", error_cb=note
        )
        clients.append(client)
        return User(module, client, denied)

    yield connect
    for client in clients:
        await client.close()


def subjects_of(module: str) -> list[str]:
    """Return subjects that only *module* may use: its events, dead letters, durables and inbox."""
    durables = [each for each in TOPOLOGY.consumers if each.name.startswith((module, f"patrol-{module}"))]
    assert durables
    consumed = [subject for each in TOPOLOGY.consumers for subject in each.subjects if subject.startswith(f"{module}.")]
    events = (subject for subject in consumed if original_subject(subject) == subject)
    event = next(events, f"{module}.unconsumed.v1")
    return [
        event,
        f"{event}.express",
        f"{module}.replay.{module}.{event}",
        f"dead.{module}.{event}",
        f"_INBOX_{module}.abc",
        *(f"$JS.API.CONSUMER.MSG.NEXT.{each.stream}.{each.name}" for each in durables),
        *(f"$JS.API.CONSUMER.INFO.{each.stream}.{each.name}" for each in durables),
        *(f"$JS.ACK.{each.stream}.{each.name}.1.1.1.1.0" for each in durables),
    ]


STREAMS = [stream.name for stream in TOPOLOGY.streams]
FORBIDDEN_FOR_ALL = [
    *(
        f"$JS.API.STREAM.{verb}.{stream}"
        for verb in ("CREATE", "UPDATE", "DELETE", "PURGE", "MSG.DELETE")
        for stream in STREAMS
    ),
    *(f"$JS.API.CONSUMER.DELETE.{each.stream}.{each.name}" for each in TOPOLOGY.consumers),
    *(f"$JS.API.CONSUMER.CREATE.{each.stream}.{each.name}" for each in TOPOLOGY.consumers),
    *(f"$JS.API.CONSUMER.DURABLE.CREATE.{each.stream}.{each.name}" for each in TOPOLOGY.consumers),
    f"$JS.API.STREAM.MSG.GET.{DEAD_LETTERS}",
    f"$JS.API.STREAM.MSG.GET.{ADVISORIES}",
    "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.ORDERS.orders",
    "$SYS.REQ.SERVER.PING",
    "unknown.subject.v1",
]


def test_the_accounts_match_the_module_descriptors(writer: ModuleType) -> None:
    """accounts.conf is the output of write_accounts.py; run it after a change of a descriptor."""
    assert ACCOUNTS.read_text(encoding="utf-8") == writer.accounts()


@pytest.mark.parametrize("module", MODULES)
async def test_a_module_cannot_publish_subjects_of_another_module(module: str, connect_as: ConnectAs) -> None:
    """It cannot fetch or acknowledge its messages, publish its dead letters, or write to its inbox either."""
    user = await connect_as(module)
    foreign = [subject for other in MODULES if other != module for subject in subjects_of(other)]
    assert len(foreign) > 40
    allowed = [subject for subject in foreign if await user.may_publish(subject)]
    assert allowed == []


@pytest.mark.parametrize("module", MODULES)
async def test_a_module_can_subscribe_to_its_inbox_only(module: str, connect_as: ConnectAs) -> None:
    """It cannot subscribe to events, its own included, or to wildcards: it receives events through its durables only."""
    user = await connect_as(module)
    subjects = [
        subject for each in MODULES for subject in subjects_of(each) if not subject.startswith(f"_INBOX_{module}.")
    ]
    subjects += [">", "*.>", f"{module}.>", "dead.>", "$JS.>", "$SYS.>", "_INBOX.>", "*.*", "*.created.v1"]
    allowed = [subject for subject in subjects if await user.may_subscribe(subject)]
    assert allowed == []


@pytest.mark.parametrize("module", MODULES)
async def test_a_module_cannot_change_streams_or_durables(module: str, connect_as: ConnectAs) -> None:
    """Only the provisioner may do that."""
    user = await connect_as(module)
    allowed = [subject for subject in FORBIDDEN_FOR_ALL if await user.may_publish(subject)]
    assert allowed == []


@pytest.mark.parametrize("module", MODULES)
async def test_a_module_can_do_all_of_its_own_work(module: str, connect_as: ConnectAs) -> None:
    """Publish, consume, acknowledge, read stream and consumer information, and publish dead letters."""
    user = await connect_as(module)
    js = user.client.jetstream(timeout=5)
    own = [each for each in TOPOLOGY.consumers if each.name.partition("-")[0] == module]
    for each in own:
        producer = await connect_as(stream_name(each.stream).lower())
        await producer.client.jetstream(timeout=5).publish(each.subjects[0], b"{}")
        assert (await js.consumer_info(each.stream, each.name)).name == each.name
        subscription = await js.pull_subscribe_bind(each.name, stream=each.stream)
        (message,) = await subscription.fetch(1, timeout=5)
        await message.ack_sync(timeout=5)
        assert (await js.get_msg(each.stream, message.metadata.sequence.stream)).data == b"{}"
        assert (await js.stream_info(each.stream, subjects_filter=">")).config.name == each.stream
        assert each.name in {found.name for found in await js.consumers_info(each.stream)}
        await js.publish(f"dead.{each.name}.{each.subjects[0]}", b"{}")
    assert len(own) >= (4 if load_module(module).consumes else 0)
    assert user.denied == []


@pytest.mark.parametrize("module", MODULES)
async def test_a_module_can_recover_unroutable_messages_and_exhausted_deliveries(
    module: str, connect_as: ConnectAs
) -> None:
    """It finds unroutable messages in its stream, twice, and may read the advisories of exhausted deliveries."""
    user = await connect_as(module)
    js = user.client.jetstream(timeout=5)
    dead_letters = DeadLetterList()
    known = {subject for each in TOPOLOGY.consumers for subject in each.subjects} | {f"{module}.known.v1"}
    recovery = ExhaustedDeliveries(
        lambda: js, module, TOPOLOGY.consumers, known, dead_letters, SystemClock(), poll_seconds=0.1
    )
    for subject in (f"{module}.nonsense.v1", f"{module}.rubbish.v1"):
        await js.publish(subject, b"{}")
        await recovery.step()
    assert [dead_letter.message.subject for dead_letter in dead_letters.stored] == [
        f"{module}.nonsense.v1",
        f"{module}.rubbish.v1",
    ]
    for dead_letter in dead_letters.stored:
        await js.publish(f"dead.{dead_letter.consumer}.{dead_letter.message.subject}", b"{}")
    assert user.denied == []


async def test_the_provisioner_can_neither_publish_nor_consume_events(
    connect_as: ConnectAs, server: NatsServer
) -> None:
    """It only creates streams and durables."""
    user = await connect_as("orders")
    denied: list[str] = []

    async def note(error: Exception) -> None:
        denied.append(str(error))

    client = await nats.connect(server.url, user="provisioner", password="p-provisioner", error_cb=note)
    provisioner = User("provisioner", client, denied)
    try:
        for subject in ("orders.created.v1", "dead.orders.orders.created.v1", "$JS.ACK.ORDERS.orders.1.1.1.1.0"):
            assert not await provisioner.may_publish(subject), subject
        for subject in ("orders.>", ">", "_INBOX_orders.>"):
            assert not await provisioner.may_subscribe(subject), subject
    finally:
        await client.close()
    assert user.denied == []


@pytest.mark.parametrize(("name", "password"), [("orders", "p-payments"), ("admin", "p-admin"), (None, None)])
async def test_a_connection_without_the_right_password_is_rejected(
    server: NatsServer, name: str | None, password: str | None
) -> None:
    """There is no default user."""

    async def ignore(error: Exception) -> None:
        """Do nothing: connect raises the error as well."""

    client = Client()
    with pytest.raises(nats.errors.Error, match=r"(?i)authorization|no servers"):
        await client.connect(server.url, user=name, password=password, allow_reconnect=False, error_cb=ignore)
    await client.close()
