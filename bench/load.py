"""
Place orders over a number of connections for some seconds: with wrk, or with a client of this file where wrk is missing.

The client is a process of its own, as wrk is: ``python -m bench.load URL CONNECTIONS SECONDS`` prints one JSON object.
Every system is driven by the same client with the same bodies; each connection sends its next order when the answer to the
one before has arrived.
"""

from __future__ import annotations

__all__ = ["CLIENTS", "PRODUCTS", "LoadResult", "default_client", "drive", "main", "send"]

import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

from attrs import frozen

CLIENTS = ("wrk", "python")
PRODUCTS = tuple(f"SKU-{number}" for number in range(10))

_SCRIPT = Path(__file__).with_name("load.lua")


@frozen
class LoadResult:
    """What a client has seen."""

    accepted: int
    """Requests with an answer of success."""
    failed: int
    p50_ms: float
    p99_ms: float


def default_client() -> str:
    """Return wrk where it is installed, otherwise the client of this file."""
    return "wrk" if shutil.which("wrk") else "python"


def drive(url: str, connections: int, seconds: int, client: str) -> LoadResult:
    """
    Place orders at *url* for *seconds*.

    Raises:
        RuntimeError: The client has failed.
    """
    command = (
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(_SCRIPT), url]
        if client == "wrk"
        else [sys.executable, "-m", "bench.load", url, str(connections), str(seconds)]
    )
    done = subprocess.run(command, cwd=_SCRIPT.parents[1], capture_output=True, text=True, check=False, timeout=seconds + 120)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise RuntimeError(f"the client has failed: {done.stdout[-1000:]}{done.stderr[-1000:]}")
    return LoadResult(**json.loads(lines[-1]))


async def _send_one_by_one(host: str, port: int, until: float, numbers: count[int], latencies: list[float]) -> int:
    """Place one order after the other over one connection, at least one; return how many were refused."""
    reader, writer = await asyncio.open_connection(host, port)
    failed = 0
    try:
        is_first = True
        while is_first or time.monotonic() < until:
            is_first = False
            product = PRODUCTS[next(numbers) % len(PRODUCTS)]
            body = b'{"customer_id":"c-1","items":[{"product_id":"%s","quantity":1}]}' % product.encode()
            writer.write(
                b"POST /v1/orders HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                % (host.encode(), len(body), body)
            )
            began = time.monotonic()
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(_length(head))
            latencies.append(time.monotonic() - began)
            failed += head[9:10] != b"2"
    finally:
        writer.close()
    return failed


def _length(head: bytes) -> int:
    """Return the length of the body that follows the *head* of an answer, which has a Content-Length."""
    for line in head.lower().split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"content-length":
            return int(value)
    raise ValueError(f"an answer without a length: {head!r}")


async def send(url: str, connections: int, seconds: float) -> LoadResult:
    """Place orders at *url* for *seconds*: what the client of this file does."""
    address = urlsplit(url)
    assert address.hostname is not None
    assert address.port is not None
    latencies: list[float] = []
    numbers, until = count(1), time.monotonic() + seconds
    senders = (_send_one_by_one(address.hostname, address.port, until, numbers, latencies) for _ in range(connections))
    failed = sum(await asyncio.gather(*senders))
    latencies.sort()
    p50, p99 = (round(latencies[int(len(latencies) * share)] * 1e3, 3) for share in (0.5, 0.99))
    return LoadResult(len(latencies) - failed, failed, p50, p99)


def main(arguments: Sequence[str]) -> None:
    """Run the client of this file with *arguments*: URL, connections, seconds."""
    url, connections, seconds = arguments
    result = asyncio.run(send(url, int(connections), float(seconds)))
    print(json.dumps({name: getattr(result, name) for name in ("accepted", "failed", "p50_ms", "p99_ms")}))


if __name__ == "__main__":
    main(sys.argv[1:])
