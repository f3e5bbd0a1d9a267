"""Messages between the process of the modules and a worker arrive whole, in order, whatever the parts they travel in."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.web.workers.channel import Channel
from tests.examples import examples

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(), lambda inner: st.lists(inner, max_size=4), max_leaves=10
)


async def connected() -> tuple[Channel, socket.socket, list[Any], asyncio.Event]:
    """Return a channel, the other end of its socket, what it receives, and an event for its end."""
    received: list[Any] = []
    closed = asyncio.Event()
    channel = Channel(received.append, closed.set)
    own, other = socket.socketpair()
    other.setblocking(False)
    await asyncio.get_running_loop().create_connection(lambda: channel, sock=own)
    return channel, other, received, closed


async def test_messages_of_one_turn_share_one_write() -> None:
    """They arrive in their order, and so do those of later turns."""
    channel, other, _, _ = await connected()
    with other:
        loop = asyncio.get_running_loop()
        channel.send(["a", 1])
        channel.send(["b", {"c": "ü"}])
        data = await loop.sock_recv(other, 65536)
        assert data == len(data[4:]).to_bytes(4, "big") + '[["a",1],["b",{"c":"ü"}]]'.encode()
        channel.send(["d"])
        assert (await loop.sock_recv(other, 65536))[4:] == b'[["d"]]'
        channel.close()
        assert await loop.sock_recv(other, 1) == b""


@given(st.lists(st.lists(JSON, min_size=1, max_size=3), max_size=6), st.lists(st.integers(1, 40), max_size=20))
@settings(max_examples=examples(100), deadline=None)
def test_any_division_into_parts_gives_the_same_messages(messages: list[Any], sizes: list[int]) -> None:
    """A read may end anywhere, in the length too."""

    async def check() -> None:
        sent, other, _, _ = await connected()
        received: list[Any] = []
        receiver = Channel(received.append, lambda: None)
        with other:
            for message in messages:
                sent.send(message)
                sent.flush()  # a group of its own
            sent.close()
            data = b""
            while part := await asyncio.get_running_loop().sock_recv(other, 65536):
                data += part
        for size in [*sizes, len(data) + 1]:
            receiver.data_received(data[:size])
            data = data[size:]
        assert received == messages

    asyncio.run(check())


async def test_the_end_of_the_other_side_is_reported_once() -> None:
    """What is sent afterwards is dropped; closing after it reports nothing more."""
    channel, other, received, closed = await connected()
    other.close()
    async with asyncio.timeout(30):
        await closed.wait()
    assert not channel.is_open
    closed.clear()
    channel.send(["late"])
    channel.close()
    await asyncio.sleep(0)
    assert not closed.is_set()
    assert received == []


async def test_a_channel_that_closes_itself_sends_what_waits_and_reports_nothing() -> None:
    """The last messages of a worker are its metrics."""
    channel, other, _, closed = await connected()
    with other:
        channel.send(["last"])
        channel.close()
        loop = asyncio.get_running_loop()
        assert (await loop.sock_recv(other, 65536))[4:] == b'[["last"]]'
        assert await loop.sock_recv(other, 1) == b""
    assert not closed.is_set()


@pytest.mark.parametrize("size", [0, 1, 70_000, 3_000_000])
async def test_large_messages_arrive_whole(size: int) -> None:
    """A body has up to 1 MiB, and several may share a write."""
    channel, other, received, _ = await connected()
    arrived = asyncio.Event()

    def receive(message: Any) -> None:
        received.append(message)
        arrived.set()

    receiver = Channel(receive, lambda: None)
    await asyncio.get_running_loop().create_connection(lambda: receiver, sock=other)
    channel.send(["x" * size])
    async with asyncio.timeout(30):
        await arrived.wait()
    assert received == [["x" * size]]
    channel.close()
    receiver.close()
