"""Send a request byte by byte, without a client that would correct it."""

from __future__ import annotations

__all__ = ["read_response", "send_raw"]

import asyncio

from tests.web.conftest import Response, Web


async def send_raw(web: Web, request: bytes) -> Response:
    """Send the bytes of *request* unchanged; return the response."""
    reader, writer = await asyncio.open_connection("127.0.0.1", web.server.port)
    try:
        writer.write(request)
        await writer.drain()
        return await read_response(reader)
    finally:
        writer.close()
        await writer.wait_closed()


async def read_response(reader: asyncio.StreamReader) -> Response:
    """Return the next response on a connection."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in head[1:-2])
    body = await reader.readexactly(int(headers.get("Content-Length", 0)))
    return Response(int(head[0].split()[1]), headers, body)
