"""
The order saga as three FastStream services on NATS JetStream, each with a PostgreSQL database of its own.

FastStream itself has no outbox and no inbox. The outbox is faststream-outbox, in the way of its documentation: the event
is written in the transaction of the change, and a subscriber of that table relays it to NATS. No package offers an inbox
for NATS; it is a table of message ids here, written in the same transaction, as its documentation asks of consumers.

Argument: orders, inventory or payments. Environment: ``DATABASE_URL``, ``NATS_URL``.
"""

from __future__ import annotations

__all__ = ["main"]

import asyncio
import os
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import sqlalchemy as sa
import uvicorn
from fastapi import FastAPI, HTTPException
from faststream.nats import JStream, NatsBroker, NatsMessage, PullSub
from faststream_outbox import OutboxBroker, make_outbox_table
from nats.js.api import DeliverPolicy
from pydantic import BaseModel, Field
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

MODULE = sys.argv[1]

metadata = sa.MetaData()
outbox_table = make_outbox_table(metadata, table_name="outbox")
inbox = sa.Table("inbox", metadata, sa.Column("event_id", sa.String(64), primary_key=True))
orders = sa.Table(
    "orders",
    metadata,
    sa.Column("order_id", sa.String(64), primary_key=True),
    sa.Column("customer_id", sa.String(64), nullable=False),
    sa.Column("product_id", sa.String(64), nullable=False),
    sa.Column("quantity", sa.Integer, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
)
products = sa.Table(
    "products",
    metadata,
    sa.Column("product_id", sa.String(64), primary_key=True),
    sa.Column("on_hand", sa.BigInteger, nullable=False),
    sa.Column("price", sa.BigInteger, nullable=False),
)
payments = sa.Table(
    "payments",
    metadata,
    sa.Column("order_id", sa.String(64), primary_key=True),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("reference", sa.String(64), nullable=False),
)

engine = create_async_engine(os.environ["DATABASE_URL"], pool_size=20, max_overflow=5)
sessions = async_sessionmaker(engine, expire_on_commit=False)
broker = NatsBroker(os.environ["NATS_URL"], logger=None)
outbox = OutboxBroker(engine, outbox_table=outbox_table, logger=None)
STREAM = JStream(name="SAGA", subjects=["saga.>"])


def relayed(subject: str) -> None:
    """Let a subscriber of the outbox publish the rows for *subject*; its batches are those that its documentation tunes."""

    @broker.publisher(subject, stream=STREAM)
    @outbox.subscriber(
        subject, max_workers=8, fetch_batch_size=100, min_fetch_interval=0.01, terminal_flush_batch_size=100
    )
    async def relay(body: dict[str, Any]) -> dict[str, Any]:
        return body


def consumes(subject: str, handle: Callable[[dict[str, Any], AsyncSession], Awaitable[None]]) -> None:
    """Let *handle* process each event of *subject* once, in a transaction with the inbox row."""

    @broker.subscriber(
        subject, stream=STREAM, durable=f"{MODULE}-{subject.rpartition('.')[2]}", deliver_policy=DeliverPolicy.ALL,
        pull_sub=PullSub(batch_size=100, timeout=1.0), max_workers=16,
    )  # fmt: skip
    async def consume(body: dict[str, Any], message: NatsMessage) -> None:
        async with sessions() as session, session.begin():
            event_id = f"{subject}.{body['order_id']}"
            row = insert(inbox).values(event_id=event_id).on_conflict_do_nothing().returning(inbox.c.event_id)
            if (await session.execute(row)).first() is not None:
                await handle(body, session)


async def emit(subject: str, body: dict[str, Any], session: AsyncSession) -> None:
    await outbox.publish(body, queue=subject, session=session)


# orders


class Item(BaseModel):
    product_id: Annotated[str, Field(min_length=1, max_length=64)]
    quantity: Annotated[int, Field(gt=0, le=1000)]


class NewOrder(BaseModel):
    customer_id: Annotated[str, Field(min_length=1, max_length=64)]
    items: Annotated[list[Item], Field(min_length=1, max_length=1)]


async def place_order(order: NewOrder) -> dict[str, str]:
    order_id = str(uuid.uuid4())
    values = {"order_id": order_id, "customer_id": order.customer_id, **order.items[0].model_dump()}
    async with sessions() as session, session.begin():
        await session.execute(orders.insert().values(**values, status="processing"))
        await emit("saga.order-created", values, session)
    return {"order_id": order_id, "status": "processing"}


async def read_order(order_id: str) -> dict[str, Any]:
    async with sessions() as session:
        row = (await session.execute(orders.select().where(orders.c.order_id == order_id))).mappings().first()
    if row is None:
        raise HTTPException(404)
    return dict(row)


async def confirm_order(body: dict[str, Any], session: AsyncSession) -> None:
    found = orders.c.order_id == body["order_id"]
    await session.execute(orders.update().where(found, orders.c.status == "processing").values(status="confirmed"))


async def cancel_order(body: dict[str, Any], session: AsyncSession) -> None:
    await session.execute(orders.update().where(orders.c.order_id == body["order_id"]).values(status="cancelled"))


# inventory


async def reserve_stock(body: dict[str, Any], session: AsyncSession) -> None:
    found = await session.execute(
        products.update()
        .where(products.c.product_id == body["product_id"], products.c.on_hand >= body["quantity"])
        .values(on_hand=products.c.on_hand - body["quantity"])
        .returning(products.c.price)
    )
    price = found.scalar_one_or_none()
    if price is None:
        await emit("saga.stock-rejected", {"order_id": body["order_id"]}, session)
    else:
        await emit("saga.stock-reserved", {"order_id": body["order_id"], "amount": price * body["quantity"]}, session)


# payments


async def charge(body: dict[str, Any], session: AsyncSession) -> None:
    """Charge at a simulated provider, which answers at once."""
    reference = f"sim_{body['order_id']}"
    await session.execute(payments.insert().values(**body, reference=reference))
    await emit("saga.payment-captured", {"order_id": body["order_id"], "reference": reference}, session)


async def put_stock() -> None:
    stock = [{"product_id": f"SKU-{number}", "on_hand": 1_000_000_000, "price": 100} for number in range(10)]
    async with engine.begin() as connection:
        await connection.execute(products.insert(), stock)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    if MODULE == "inventory":
        await put_stock()
    await broker.start()
    await outbox.start()
    yield
    await outbox.stop()
    await broker.stop()
    await engine.dispose()


app = FastAPI(lifespan=lifespan)
match MODULE:
    case "orders":
        app.post("/v1/orders", status_code=202)(place_order)
        app.get("/v1/orders/{order_id}")(read_order)
        relayed("saga.order-created")
        consumes("saga.payment-captured", confirm_order)
        consumes("saga.stock-rejected", cancel_order)
    case "inventory":
        relayed("saga.stock-reserved")
        relayed("saga.stock-rejected")
        consumes("saga.order-created", reserve_stock)
    case "payments":
        relayed("saga.payment-captured")
        consumes("saga.stock-reserved", charge)


async def main() -> None:
    """Serve, and print the address once the service is connected."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    if server.started:
        print(f"ready at http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    await serving


if __name__ == "__main__":
    asyncio.run(main())
