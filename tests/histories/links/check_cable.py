"""Packets are lost on a cable in the directions that are asked for, and TCP goes on afterwards. Needs root: `tox -e night`."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.histories.links.cable import Cable

NUMBER = 255
LOST_SECONDS = 0.5
AGAIN_SECONDS = 30.0

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def cable() -> Iterator[Cable]:
    with Cable(NUMBER) as cable:
        yield cable


@pytest.fixture
def ends(cable: Cable) -> Iterator[Ends]:
    """A connection over the cable, at the end of the client and at that of the server."""
    with cable.listen() as listening, socket.create_connection(listening.getsockname(), AGAIN_SECONDS) as client:
        server, _ = listening.accept()
        with server:
            yield client, server


def arrives(sender: socket.socket, receiver: socket.socket, data: bytes, seconds: float) -> bool:
    """Send *data* and return whether it arrives within *seconds*."""
    sender.sendall(data)
    receiver.settimeout(seconds)
    try:
        return receiver.recv(len(data)) == data
    except TimeoutError:
        return False


@pytest.mark.parametrize("requests", [False, True])
@pytest.mark.parametrize("replies", [False, True])
def test_packets_are_lost_in_each_direction(cable: Cable, ends: Ends, requests: bool, replies: bool) -> None:
    client, server = ends
    assert arrives(client, server, b"1", AGAIN_SECONDS)
    assert arrives(server, client, b"2", AGAIN_SECONDS)
    cable.lose(requests=requests, replies=replies)
    assert arrives(client, server, b"3", LOST_SECONDS) is not requests
    assert arrives(server, client, b"4", LOST_SECONDS) is not replies
    cable.lose(requests=False, replies=False)
    for sender, receiver, is_lost, data in ((client, server, requests, b"3"), (server, client, replies, b"4")):
        if is_lost:
            receiver.settimeout(AGAIN_SECONDS)
            assert receiver.recv(1) == data, "the kernel sends it again"
        assert arrives(sender, receiver, b"5", AGAIN_SECONDS)


def test_a_connection_cannot_be_opened_while_packets_are_lost(cable: Cable) -> None:
    with cable.listen() as listening:
        cable.lose(requests=True, replies=False)
        with pytest.raises(TimeoutError):
            socket.create_connection(listening.getsockname(), LOST_SECONDS)
        cable.lose(requests=False, replies=False)
        socket.create_connection(listening.getsockname(), AGAIN_SECONDS).close()
