"""Secrets of a running server appear in nothing that it writes, answers or shows, at the most talkative log level."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from aiohttp import ClientSession, TCPConnector

from app.gateways.stripe.http_session import StripeSession
from bus.jetstream.servers import Servers, credentials
from tests.process.server import Server, run

KEY, SHOP_KEY = "operator-key-0123456789", "shop-key-9876543210abc"
SECRETS = {
    "STRIPE_API_KEY": "sk_test_hunter2hunter2hunter2",
    "STRIPE_WEBHOOK_SECRET": "whsec_swordfish0123456789",
    "NATS_PASSWORD": "Nats-correct-horse-battery",
    "DATABASE_URL": "postgresql://fulfilment:Pg-staple-0123456789@127.0.0.1:9/none",
}
TEXTS = (KEY, SHOP_KEY, *(text for name, text in SECRETS.items() if name != "DATABASE_URL"), "Pg-staple-0123456789")


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.touch(0o600)
    file.write_text(f"boss:operator:{KEY}\nweb:shop:{SHOP_KEY}:c-1\n")
    return file


@pytest.fixture
def server(tmp_path: Path, keys: Path) -> Iterator[Server]:
    secrets = {name: SECRETS[name] for name in ("STRIPE_API_KEY", "STRIPE_WEBHOOK_SECRET")}
    started = Server(
        tmp_path, AUTH="keys", API_KEYS_FILE=str(keys), PAYMENT_GATEWAY="stripe", STRIPE_API_BASE="http://127.0.0.1:9",
        LOG_LEVEL="DEBUG", LOG_FILE="app.log", SHUTDOWN_GRACE_S="2", **secrets,
    )  # fmt: skip
    yield started.start()
    started.end()


@pytest.mark.slow
async def test_no_secret_is_logged_answered_or_shown(server: Server) -> None:
    """After orders, refusals, streams with tokens, webhooks with a wrong signature, and a payment provider that is away."""
    texts: list[str] = []
    token = ""
    async with ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session:

        async def send(method: str, path: str, body: object = None, **headers: str) -> object:
            async with session.request(method, server.url_of(path), json=body, headers=headers) as response:
                texts.extend((await response.text(), str(response.headers)))
                return await response.json() if "json" in response.content_type else None

        price = {"on_hand": 5, "unit_price": {"amount": 100, "currency": "EUR"}}
        await send("PUT", "/v1/inventory/p", price)
        order = {"customer_id": "c-1", "items": [{"product_id": "p", "quantity": 1}], "payment_method": "pm_card_visa"}
        await send("POST", "/v1/orders", order)
        await send("GET", "/v1/orders", Authorization=f"Bearer {KEY}x")
        await send("GET", "/v1/orders", Authorization=KEY)
        await send("GET", f"/v1/orders?q={SHOP_KEY}", Authorization=f"Bearer {SHOP_KEY}")
        await send("POST", "/v1/payments/webhooks/stripe", {"id": "evt_1"}, **{"Stripe-Signature": "t=1,v1=00"})
        issued = await send("POST", "/v1/stream-tokens")
        assert isinstance(issued, dict)
        token = issued["token"]
        texts.clear()
        await send("GET", f"/v1/orders/none/stream?token={token}", Authorization="")
        for path in ("/metrics", "/health", "/readyz", "/openapi.json", "/asyncapi.json", "/v1/audit", "/v1/dead-letters", "/v1/system", "/docs"):
            await send("GET", path)
    await asyncio.to_thread(server.wait_for_line, lambda line: "gateway call failed" in line)
    files = [Path(f"/proc/{server.pid}/cmdline"), server.folder / "app.log"]
    texts += [*server.lines, server.stderr, *(file.read_text(encoding="utf-8") for file in files)]
    assert len(server.lines) > 10
    for text in (*TEXTS, token):
        assert [line for line in texts if text in line] == []


@pytest.mark.slow
def test_no_command_and_no_error_shows_a_secret(tmp_path: Path, keys: Path) -> None:
    """Help, a dependency that is out of reach, and a setting that is refused."""
    settings = {"API_KEYS_FILE": str(keys), "AUTH": "keys", "LOG_LEVEL": "DEBUG", **SECRETS}
    for command, more in (
        (("serve", "--help"), {}),
        (("migrate",), {}),
        (("serve",), {}),
        (("serve",), {"HTTP_PORT": "none", "STRIPE_API_BASE": "none"}),
        (("serve",), {"DATABASE_URL": SECRETS["DATABASE_URL"].replace("postgresql", "oracle")}),
        (("topology", "--check"), {"BUS": "nats", "NATS_URL": "nats://127.0.0.1:9", "NATS_USER": "orders"}),
    ):
        done = run(tmp_path, *command, **(settings | more))
        assert done.stdout + done.stderr
        assert not any(text in done.stdout + done.stderr for text in TEXTS), (command, done.stdout, done.stderr)


async def test_outgoing_connections_verify_the_other_side_with_tls_1_2_or_newer(tmp_path: Path) -> None:
    """To NATS, with an authority of its own, and to the payment provider."""
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    to_nats = credentials(Servers(urls=("tls://localhost",), tls_ca=str(tmp_path / "ca.pem")))["tls"]
    provider = StripeSession(calls_max=1)
    connector = provider._open_session().connector
    assert isinstance(connector, TCPConnector)
    for context in (to_nats, connector._ssl):
        assert isinstance(context, ssl.SSLContext)
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    await provider.close()
