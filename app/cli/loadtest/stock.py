"""The products of a run: created with enough stock at the start, checked against the confirmed orders at the end."""

from __future__ import annotations

__all__ = ["Stock"]

from collections.abc import Mapping
from time import perf_counter
from typing import Any

import aiohttp
import orjson
from yarl import URL

from app.cli.loadtest.errors import Failed, Unreachable
from app.cli.loadtest.order_sender import Stop

UNIT_PRICE = {"amount": 1250, "currency": "EUR"}
CHECK_INTERVAL_SECONDS = 0.02


class Stock:
    """Products that only the orders of this run contain."""

    def __init__(self, session: aiohttp.ClientSession, url: URL, run_id: str, *, products: int, on_hand: int) -> None:
        self._session = session
        self._url = url / "v1" / "inventory"
        self._on_hand = on_hand
        self.product_ids = tuple(f"load-{run_id}-{number:04d}" for number in range(products))

    async def create(self, *, patience_seconds: float, stop: Stop) -> None:
        """
        Create the products, each with its stock. Repeat a PUT that is answered with 429 or 503 after its Retry-After.

        Raises:
            Unreachable: The server does not answer, or has answered only 429 or 503 for *patience_seconds*.
            Failed: The server rejected a PUT.
        """
        until = perf_counter() + patience_seconds
        for product_id in self.product_ids:
            while not stop.is_set:
                try:
                    status, retry_after, text = await self._put(product_id)
                except (aiohttp.ClientError, TimeoutError) as error:
                    reason = str(error) or type(error).__name__
                    origin = self._url.origin()
                    raise Unreachable(
                        f"{origin} is out of reach ({reason}): start the server or correct --url"
                    ) from None
                if status == 200:
                    break
                if status not in (429, 503):
                    raise Failed(f"PUT {self._url.path}/{product_id} was answered with {status}: {text}")
                if perf_counter() + retry_after > until:
                    raise Unreachable(f"{self._url.origin()} is not ready: {status} {text}")
                await stop.sleep(retry_after)

    async def differences(self, sold: Mapping[str, int]) -> list[str]:
        """Return one line for each product whose stock does not match *sold*, the confirmed quantity by product id."""
        found = [await self._difference(product_id, sold.get(product_id, 0)) for product_id in self.product_ids]
        return [text for text in found if text is not None]

    async def _difference(self, product_id: str, sold: int) -> str | None:
        try:
            async with self._session.get(self._url / product_id) as response:
                if response.status != 200:
                    return f"{product_id}: the server answered {response.status}"
                product: Any = orjson.loads(await response.read())
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            return f"{product_id}: {error or type(error).__name__}"
        on_hand, reserved = product["on_hand"], product["reserved"]
        if on_hand == self._on_hand - sold and reserved == 0:
            return None
        return f"{product_id}: {sold} of {self._on_hand} confirmed, yet on_hand is {on_hand} and reserved {reserved}"

    async def _put(self, product_id: str) -> tuple[int, float, str]:
        body = orjson.dumps({"on_hand": self._on_hand, "unit_price": UNIT_PRICE, "name": "Load test"})
        headers = {"Content-Type": "application/json"}
        async with self._session.put(self._url / product_id, data=body, headers=headers) as response:
            wait = response.headers.get("Retry-After", "")
            return response.status, float(wait) if wait.isdigit() else 1.0, (await response.text())[:200]
