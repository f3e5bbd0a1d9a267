"""Store an exported order in the databases of this machine."""

from __future__ import annotations

__all__ = ["ImportFailed", "Imported", "import_order"]

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen
from sqlalchemy import Connection

from app.storage.module_store import ModuleStore
from app.web.operations.explain.explanation import FORMAT
from modules.inventory.state import Product, Reservation, ReservationStatus

if TYPE_CHECKING:
    from app.bootstrap import Parts

Json = Mapping[str, Any]


class ImportFailed(Exception):
    """The order cannot be stored; the text is one line."""


@frozen
class Imported:
    """What was stored: False for *is_new* if all of it was there, and equal."""

    order_id: str
    is_new: bool
    transactions: int
    """Of the history."""


async def import_order(parts: Parts, exported: Json) -> Imported:
    """
    Store the states and the history of the order in *exported*, a body of ``GET /v1/orders/{id}/export``.

    The order does nothing here: its timers and the events that were on their way stay where it comes from. Stock that it
    holds is added to the products, so that it is held here, too.

    Raises:
        ImportFailed: The file is none, or the order is here and differs.
        StorageUnavailable: A database is out of reach.
    """
    if exported.get("format") != FORMAT or not isinstance(exported.get("states"), dict) or not isinstance(exported.get("order_id"), str):
        raise ImportFailed(f"this is no export of an order in the format {FORMAT}")
    order_id: str = exported["order_id"]
    stores = parts.storage.stores
    wanted = {(name, kind): document for name, kinds in exported["states"].items() for kind, document in kinds.items()}
    states = {(name, kind): _state(stores, name, kind, document) for (name, kind), document in wanted.items()}
    if any(getattr(state, "order_id", None) != order_id for state in states.values()):
        raise ImportFailed("the states in the file are those of another order")
    present = {name: await store.database.read(partial(_present, store, order_id)) for name, store in stores.items()}
    if any(present.values()):
        if {(name, kind): state for name, kinds in present.items() for kind, state in kinds.items()} == states:
            return Imported(order_id, False, 0)
        raise ImportFailed(f"the order {order_id} is here, and differs from the one in the file")
    databases = {id(store.database): store.database for store in stores.values()}
    transactions = exported.get("history", []) if len(databases) == 1 else []
    for database in databases.values():
        own = {name: store for name, store in stores.items() if store.database is database}
        await database.write(partial(_store, own, states, transactions))
    return Imported(order_id, True, len(transactions))


def _state(stores: Mapping[str, ModuleStore], name: str, kind: str, document: Json) -> Any:
    for cls, mapper in stores[name].mappers.items() if name in stores else ():
        if cls.__name__ == kind:
            try:
                return mapper.from_document(document)
            except ValueError as error:
                raise ImportFailed(f"the file is damaged: {error}") from None
    raise ImportFailed(f"the file has a {kind} of {name}, which this process does not run or does not know")


def _present(store: ModuleStore, order_id: str, connection: Connection) -> dict[str, Any]:
    found = {}
    for cls, mapper in store.mappers.items():
        if mapper.key_name == "order_id":
            state = (mapper.load(connection, (order_id,)) or store.archive.load(connection, cls, (order_id,))).get(order_id)
            if state is not None:
                found[cls.__name__] = state
    return found


def _store(
    stores: Mapping[str, ModuleStore], states: Mapping[tuple[str, str], Any], transactions: list[Json], connection: Connection
) -> None:
    for (name, _), state in states.items():
        if name in stores:
            stores[name].mappers[type(state)].save(connection, [state], [state.order_id])
            if isinstance(state, Reservation) and state.status is ReservationStatus.HELD:
                _hold(stores[name], state, next((each for each in states.values() if hasattr(each, "unit_prices")), None), connection)
    for transaction in transactions:
        is_next = True
        for name, entries in transaction["modules"].items():
            stores[name].append_history(connection, transaction["at"], entries, is_next=is_next)
            is_next = False


def _hold(store: ModuleStore, reservation: Reservation, order: Any, connection: Connection) -> None:
    """Add what *reservation* holds to the products, with the prices of *order* where a product is new."""
    mapper = store.mappers[Product]
    found = mapper.load(connection, [line.product_id for line in reservation.lines])
    prices = {} if order is None or order.unit_prices is None else {
        line.product_id: price for line, price in zip(order.items, order.unit_prices, strict=True)
    }  # fmt: skip
    for line in reservation.lines:
        product = found.get(line.product_id) or Product(
            product_id=line.product_id, name=None, on_hand=0, reserved=0, unit_price_amount=prices.get(line.product_id, 0),
            currency=(order.currency if order is not None else None) or "EUR",
        )  # fmt: skip
        changed = evolve(product, on_hand=product.on_hand + line.quantity, reserved=product.reserved + line.quantity)
        mapper.save(connection, [changed], () if line.product_id in found else [line.product_id])
