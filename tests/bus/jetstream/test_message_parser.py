"""`MessageParser` understands what nats-py's parser understands, wherever the network cuts the bytes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

from bus.jetstream.message_parser import MessageParser

DIRECT = (1, 3)
"""The subscriptions that have a handler."""

BLOCK = b"NATS/1.0\r\nce-id: e-1\r\n\r\n"


class Recorder:
    """A client that notes what a parser finds."""

    def __init__(self) -> None:
        self.found: list[Any] = []

    def handler(self, id: int) -> Any:
        return lambda subject, reply, head, body: self.found.append((id, subject, reply, head, body))

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        self.found.append((sid, subject.decode(), reply.decode(), headers or b"", data))

    async def _process_err(self, text: str) -> None:
        self.found.append(text)

    async def _process_ping(self) -> None:
        self.found.append("ping")

    async def _process_pong(self) -> None:
        self.found.append("pong")

    async def _process_info(self, info: Any) -> None:
        self.found.append(info)

    async def _error_cb(self, error: Exception) -> None:
        self.found.append(error)


def frame(id: int, reply: str, block: bytes, body: bytes) -> bytes:
    """Return a message as the server sends it."""
    words = ["HMSG" if block else "MSG", "orders.created.v1", str(id), *([reply] if reply else [])]
    words += [str(len(block))] if block else []
    return " ".join([*words, str(len(block) + len(body))]).encode() + b"\r\n" + block + body + b"\r\n"


FRAMES = st.one_of(
    st.builds(
        frame,
        st.sampled_from([1, 2, 3, 40]),
        st.sampled_from(["", "$JS.ACK.ORDERS.inventory.1.2.3.4.5"]),
        st.sampled_from([b"", BLOCK, b"NATS/1.0 503\r\n\r\n"]),
        st.one_of(st.binary(max_size=60), st.sampled_from([b"", b"MSG a 1 3\r\nabc\r\n", b"x" * 5_000])),
    ),
    st.sampled_from([b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b"-ERR 'Slow Consumer'\r\n", b'INFO {"version": "2.15.1"}\r\n']),
)


async def parse(parser: Parser, chunks: list[bytes]) -> None:
    for chunk in chunks:
        await parser.parse(chunk)


@given(st.lists(FRAMES, max_size=12), st.data())
def test_every_cut_of_the_bytes_gives_the_same_messages_in_the_same_order(frames: list[bytes], data: st.DataObject) -> None:
    """Messages with a handler, messages without one, and everything else that a server sends."""
    whole = b"".join(frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    chunks = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    expected, found = Recorder(), Recorder()
    asyncio.run(parse(Parser(expected), [whole]))
    asyncio.run(parse(MessageParser(found, {id: found.handler(id) for id in DIRECT}), chunks))
    assert found.found == expected.found


@pytest.mark.parametrize("line", [b"MSG a b c\r\n", b"HMSG a 1 9 3\r\n", b"NONSENSE\r\n", b"MSG\r\n", b"MSG a 1 2 3 4 5\r\n"])
async def test_what_no_server_sends_is_a_protocol_error(line: bytes) -> None:
    """The client then connects again."""
    parser = MessageParser(Recorder(), {})
    with pytest.raises(ProtocolError):
        await parser.parse(line + b"x" * 20 + b"\r\n")


async def test_a_handler_that_fails_does_not_keep_the_others_from_their_messages() -> None:
    """The error goes to the error callback of the client."""
    client = Recorder()

    def fail(*message: Any) -> None:
        raise ValueError("a bug")

    parser = MessageParser(client, {1: fail, 3: client.handler(3)})
    await parser.parse(frame(1, "", b"", b"first") + frame(3, "", b"", b"second"))
    error, second = client.found
    assert isinstance(error, ValueError)
    assert second[-1] == b"second"


async def test_a_new_connection_begins_without_the_rest_of_the_old_one() -> None:
    """Also when the old one ends in the middle of what has arrived together."""
    client = Recorder()
    parser = MessageParser(client, {1: client.handler(1)})
    await parser.parse(frame(1, "", b"", b"half")[:-4])
    parser.reset()
    await parser.parse(frame(1, "", b"", b"whole"))

    async def lose_connection(text: str) -> None:
        parser.reset()

    client._process_err = lose_connection  # type: ignore[method-assign]
    await parser.parse(b"-ERR 'Stale Connection'\r\n" + frame(1, "", b"", b"lost"))
    await parser.parse(frame(1, "", b"", b"next"))
    assert [body for *_, body in client.found] == [b"whole", b"next"]
