"""
The order saga as a DBOS workflow behind FastAPI: the way of DBOS's own tutorial for a fault-tolerant checkout.

POST starts the workflow in the background and returns its id; DBOS has then committed the workflow's input. The workflow
runs database transactions of a datasource, whose results DBOS records in the same transaction, and one step that charges.

Environment: ``APPLICATION_DATABASE_URL``, ``SYSTEM_DATABASE_URL``.
"""

from __future__ import annotations

__all__ = ["main"]

import os
import socket
import sqlite3
import sys
from typing import Annotated, Any

if sqlite3.sqlite_version_info < (3, 42):  # older than DBOS's tables need
    import pysqlite3

    sys.modules["sqlite3"] = pysqlite3

import sqlalchemy as sa
import uvicorn
from dbos import DBOS, DBOSConfig, SQLAlchemyDatasource
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

metadata = sa.MetaData()
orders = sa.Table(
    "orders",
    metadata,
    sa.Column("order_id", sa.String(64), primary_key=True),
    sa.Column("customer_id", sa.String(64), nullable=False),
    sa.Column("product_id", sa.String(64), nullable=False),
    sa.Column("quantity", sa.Integer, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("reference", sa.String(64)),
)
products = sa.Table(
    "products",
    metadata,
    sa.Column("product_id", sa.String(64), primary_key=True),
    sa.Column("on_hand", sa.BigInteger, nullable=False),
    sa.Column("price", sa.BigInteger, nullable=False),
)

app = FastAPI()
config: DBOSConfig = {
    "name": "saga",
    "system_database_url": os.environ["SYSTEM_DATABASE_URL"],
    "console_log_level": "WARNING",
}
DBOS(config=config)
datasource = SQLAlchemyDatasource.create(os.environ["APPLICATION_DATABASE_URL"])
# Every update is one statement with its condition, so the strictest isolation, which is the default, would only cause
# retries. SQLite has no other.
is_sqlite = datasource.engine.dialect.name == "sqlite"
in_transaction = datasource.transaction if is_sqlite else datasource.transaction(isolation_level="READ COMMITTED")


class Item(BaseModel):
    product_id: Annotated[str, Field(min_length=1, max_length=64)]
    quantity: Annotated[int, Field(gt=0, le=1000)]


class NewOrder(BaseModel):
    customer_id: Annotated[str, Field(min_length=1, max_length=64)]
    items: Annotated[list[Item], Field(min_length=1, max_length=1)]


@in_transaction
def create_order(order_id: str, customer_id: str, product_id: str, quantity: int) -> None:
    values = {"order_id": order_id, "customer_id": customer_id, "product_id": product_id, "quantity": quantity}
    datasource.sql_session().execute(orders.insert().values(**values, status="processing"))


@in_transaction
def reserve_stock(product_id: str, quantity: int) -> int | None:
    """Take the stock; return the price, or None if there is not enough."""
    found = datasource.sql_session().execute(
        products.update()
        .where(products.c.product_id == product_id, products.c.on_hand >= quantity)
        .values(on_hand=products.c.on_hand - quantity)
        .returning(products.c.price)
    )
    return found.scalar_one_or_none()


@in_transaction
def put_stock_back(product_id: str, quantity: int) -> None:
    change = products.update().where(products.c.product_id == product_id).values(on_hand=products.c.on_hand + quantity)
    datasource.sql_session().execute(change)


@in_transaction
def finish_order(order_id: str, status: str, reference: str | None) -> None:
    change = orders.update().where(orders.c.order_id == order_id).values(status=status, reference=reference)
    datasource.sql_session().execute(change)


@DBOS.step(retries_allowed=True)
def charge(order_id: str, amount: int) -> str | None:
    """Charge *amount* at a simulated provider, which answers at once; return its reference, None if it declines."""
    return f"sim_{order_id}" if amount < 1_000_000 else None


@DBOS.workflow()
def checkout(customer_id: str, product_id: str, quantity: int) -> None:
    order_id = DBOS.workflow_id
    assert order_id is not None
    create_order(order_id, customer_id, product_id, quantity)
    price = reserve_stock(product_id, quantity)
    if price is None:
        finish_order(order_id, "cancelled", None)
        return
    reference = charge(order_id, price * quantity)
    if reference is None:
        put_stock_back(product_id, quantity)
        finish_order(order_id, "cancelled", None)
        return
    finish_order(order_id, "confirmed", reference)


@app.post("/v1/orders", status_code=202)
def place_order(order: NewOrder) -> dict[str, str]:
    item = order.items[0]
    handle = DBOS.start_workflow(checkout, order.customer_id, item.product_id, item.quantity)
    return {"order_id": handle.workflow_id, "status": "processing"}


@app.get("/v1/orders/{order_id}")
def read_order(order_id: str) -> dict[str, Any]:
    with datasource.engine.connect() as connection:
        row = connection.execute(orders.select().where(orders.c.order_id == order_id)).mappings().first()
    if row is None:
        if DBOS.get_workflow_status(order_id) is None:
            raise HTTPException(404)
        return {"order_id": order_id, "status": "processing"}  # accepted, and the workflow has not begun
    return dict(row)


def main() -> None:
    """Create the tables and the stock, and serve."""
    metadata.create_all(datasource.engine)
    stock = [{"product_id": f"SKU-{number}", "on_hand": 1_000_000_000, "price": 100} for number in range(10)]
    with datasource.engine.begin() as connection:
        connection.execute(products.insert(), stock)
    DBOS.launch()
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    print(f"ready at http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    server.run(sockets=[listener])


if __name__ == "__main__":
    main()
