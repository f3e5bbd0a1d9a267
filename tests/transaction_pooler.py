"""
A connection pooler in transaction mode, as PgBouncer has it: enough of one for a program to find out.

It greets each client by itself, with a session number that no server has, and gives it a connection to the server for
the length of a transaction: the one that was returned last, or a new one.
"""

from __future__ import annotations

__all__ = ["TransactionPooler"]

import socket
import struct
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_PORT = 5432


class TransactionPooler:
    """Listens on a socket in *folder* and forwards to the server whose socket is in *server_folder*."""

    def __init__(self, folder: Path, server_folder: Path) -> None:
        self._server = str(server_folder / f".s.PGSQL.{_PORT}")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / f".s.PGSQL.{_PORT}"))
        self._listener.listen(16)
        self._idle: list[_Stream] = []
        self._streams: list[_Stream] = []
        self._lock = threading.Lock()
        self._accepting = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        for stream in self._streams:
            stream.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(self._stream(client),), daemon=True).start()

    def _stream(self, connection: socket.socket) -> _Stream:
        stream = _Stream(connection)
        self._streams.append(stream)
        return stream

    def _serve(self, client: _Stream) -> None:
        startup = client.read_startup()
        while struct.unpack("!I", startup[4:8])[0] != 196608:  # a request for TLS or GSS
            client.write(b"N")
            startup = client.read_startup()
        server = self._take(startup)
        self._give(server)
        client.write(server.greeting + struct.pack("!cIII", b"K", 12, 1_000_000_007, 1) + b"Z\0\0\0\x05I")
        held: _Stream | None = None
        try:
            while True:
                message = client.read_message()
                if message[:1] == b"X":
                    return
                held = held or self._take(startup)
                held.write(message)
                if message[:1] not in (b"Q", b"S"):
                    continue
                while True:
                    answer = held.read_message()
                    client.write(answer)
                    if answer[:1] == b"Z":
                        break
                if answer[5:6] == b"I":
                    self._give(held)
                    held = None
        except (OSError, EOFError):
            return

    def _take(self, startup: bytes) -> _Stream:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self._server)
        server = self._stream(connection)
        server.write(startup)
        while (message := server.read_message())[:1] != b"Z":
            if message[:1] != b"K":
                server.greeting += message
        return server

    def _give(self, server: _Stream) -> None:
        with self._lock:
            self._idle.append(server)


class _Stream:
    """Reads and writes whole messages of the protocol."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.greeting = b""

    def close(self) -> None:
        self._connection.close()

    def write(self, data: bytes) -> None:
        self._connection.sendall(data)

    def read_startup(self) -> bytes:
        head = self._read(4)
        return head + self._read(struct.unpack("!I", head)[0] - 4)

    def read_message(self) -> bytes:
        head = self._read(5)
        return head + self._read(struct.unpack("!I", head[1:])[0] - 4)

    def _read(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            part = self._connection.recv(count - len(found))
            if not part:
                raise EOFError
            found += part
        return found
