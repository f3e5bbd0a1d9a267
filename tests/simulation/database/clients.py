"""What the contract suite of a shared database needs: clients, each as a process of the program is one, statement by statement."""

from __future__ import annotations

__all__ = ["NOW", "Client", "Stand", "Waiting", "committed", "given"]

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, Protocol, TypeVar

from sqlalchemy import Connection, RootTransaction

from app.messaging.event_registry import all_modules
from app.storage.module_store import ModuleStore
from app.storage.sql.database import Database
from app.storage.sql.dialect import Failure
from app.storage.state_rows import to_db_timestamp
from app.storage.tables import DUE_NOW, InboxEntry, OutboxMessage, shared_message_tables
from modules.inventory.state import Product, Reservation, ReservationStatus

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Work = Callable[[Connection], T]

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Waiting(Protocol, Generic[T_co]):
    """A statement that has been begun."""

    def is_waiting(self) -> bool:
        """Return whether it waits for a lock."""

    def result(self) -> T_co:
        """Return its result; raise its error."""


class Client(ABC):
    """
    A connection of a process of its own to *database*, in the words of the program; its transaction begins with the first statement.

    Each statement raises what the program gets from SQLAlchemy or the driver.
    """

    def __init__(self, database: Database) -> None:
        self.dialect = database.dialect
        self.engine = database.engine
        self.store = ModuleStore(next(each for each in all_modules() if each.name == "inventory"), database)
        self._transaction: RootTransaction | None = None
        self.connection: Connection = self.call(self.engine.connect)

    # What a database under test decides

    @abstractmethod
    def call(self, work: Callable[[], T]) -> T:
        """Return the result of *work*, which waits for nothing that another client has to do."""

    @abstractmethod
    def start(self, work: Work[T]) -> Waiting[T]:
        """Begin *work*, one statement; return once it waits for a lock, or is over."""

    @abstractmethod
    def cut(self) -> None:
        """Let the server close the connection, of which the process learns at its next statement."""

    @abstractmethod
    def halt(self) -> None:
        """Do nothing, in the midst of a transaction, for longer than the server permits it."""

    @abstractmethod
    def fail_to_serialize(self, connection: Connection) -> None:
        """Get the error of a transaction that must be repeated, although it waits for nothing."""

    # Transactions

    def do(self, work: Work[T]) -> T:
        """Return the result of *work*, one statement, which waits for no other client."""
        return self.call(lambda: self.execute(work))

    def execute(self, work: Work[T]) -> T:
        """Run *work* here; begin a transaction before it if there is none."""
        if self._transaction is None:
            self._transaction = self.connection.begin()
        return work(self.connection)

    def commit(self) -> None:
        """Commit the transaction."""
        transaction, self._transaction = self._transaction, None
        assert transaction is not None
        self.call(transaction.commit)

    def roll_back(self) -> None:
        """Roll the transaction back, as the program does after an error."""
        transaction, self._transaction = self._transaction, None
        assert transaction is not None
        self.call(transaction.rollback)

    def close(self) -> None:
        """End the connection."""
        self.call(self.connection.close)

    # Errors

    def recovery(self, error: BaseException) -> tuple[Failure | None, bool]:
        """Return how the program recovers from *error*, and whether it is a conflict of two inserts."""
        return self.dialect.classify(error), self.dialect.is_conflict(error)

    def is_disconnected(self) -> bool:
        """Return whether the program takes the connection for broken."""
        return self.dialect.is_disconnected(self.connection)

    # Statements

    def insert(self, *ids: str) -> Work[None]:
        """Return what stores new products with a stock of 0, in the order of *ids* on every database."""

        def work(connection: Connection) -> None:
            for id in ids:
                self._save(connection, [_product(id, 0)], (id,))

        return work

    def insert_together(self, *ids: str) -> Work[None]:
        """Return what stores new products, as one batch does."""
        return lambda connection: self._save(connection, [_product(id, 0) for id in ids], ids)

    def write(self, id: str, on_hand: int) -> Work[None]:
        """Return what overwrites a product."""
        return lambda connection: self._save(connection, [_product(id, on_hand)], ())

    def _save(self, connection: Connection, products: Sequence[Product], new: Collection[str]) -> None:
        states: Mapping[type, Mapping[str, Any]] = {Product: {each.product_id: each for each in products}}
        self.store.save(connection, states=states, new_keys={Product: new}, inbox_entries=(), cancelled_timers=(), outgoing=())

    def lock(self, *ids: str) -> Work[dict[str, int]]:
        """Return what locks products and returns their stock."""
        return lambda connection: _stock(self.store.load(connection, {Product: ids})[Product])

    def lock_with_reservation(self, id: str, *order_ids: str) -> Work[None]:
        """Return what locks a product and reservations, and names the product first."""
        keys: Mapping[type, Collection[str]] = {Product: [id], Reservation: order_ids}

        def work(connection: Connection) -> None:
            self.store.load(connection, keys)

        return work

    def reserve(self, order_id: str) -> Work[None]:
        """Return what stores a reservation."""
        states: Mapping[type, Mapping[str, Any]] = {Reservation: {order_id: Reservation(order_id=order_id, status=ReservationStatus.HELD)}}
        return lambda connection: self.store.save(connection, states=states, inbox_entries=(), cancelled_timers=(), outgoing=())

    def look(self, *ids: str) -> Work[dict[str, int]]:
        """Return what reads the stock of products without a lock."""
        return lambda connection: _stock(self.store.mappers[Product].load(connection, ids))

    def delete(self, *ids: str) -> Work[None]:
        """Return what deletes products."""
        return lambda connection: self.store.mappers[Product].delete(connection, ids)

    def add_to_inbox(self, *ids: str, at: datetime = NOW) -> Work[None]:
        """Return what puts *ids*, which begin with no time, into the inbox in this order."""
        entries = [InboxEntry(id, to_db_timestamp(at), 1, None, None) for id in ids]
        return lambda connection: self.store._insert_inbox.execute(connection, entries)

    def receive(self, *ids: str) -> Work[None]:
        """Return what puts *ids* into the inbox, as one batch does."""
        entries = [InboxEntry(id, to_db_timestamp(NOW), 1, None, None) for id in ids]
        return lambda connection: self.store.save(connection, states={}, inbox_entries=entries, cancelled_timers=(), outgoing=())

    def remove_from_inbox(self, id: str) -> Work[None]:
        """Return what removes an id from the inbox."""
        table = shared_message_tables(self.store.module.name)[0]

        def work(connection: Connection) -> None:
            connection.execute(table.delete().where(table.c.id == id))

        return work

    def in_inbox(self, *ids: str) -> Work[list[str]]:
        """Return which of *ids* are in the inbox."""
        return lambda connection: sorted(self.store.find_processed(connection, ids))

    def send(self, id: str, timer: str | None = None, body: bytes = b"{}") -> Work[None]:
        """Return what puts a message into the outbox, due now, or a timer that is due."""
        at = to_db_timestamp(NOW)
        row = OutboxMessage(id, id, "inventory.reserved.v1", "k", body, timer, "c", "c", "t", at, DUE_NOW if timer is None else at)
        return lambda connection: self.store.save(connection, states={}, inbox_entries=(), cancelled_timers=(), outgoing=[row])

    def cancel(self, timer: str) -> Work[None]:
        """Return what cancels a timer."""
        return lambda connection: self.store.save(connection, states={}, inbox_entries=(), cancelled_timers=[timer], outgoing=())

    def end_timers(self, connection: Connection) -> list[str]:
        """End the timers that are due, and return the ids of all due messages that are published now."""
        return sorted(row.id for row in self.store.end_timers(connection, self._due(connection), NOW))

    def due(self, connection: Connection) -> list[tuple[str, bytes]]:
        """Return the ids and bodies of all messages that are not sent."""
        return sorted((row.id, row.body) for row in self._due(connection))

    def _due(self, connection: Connection) -> list[OutboxMessage]:
        return self.store.fetch_due(connection, NOW, 10, timedelta(0))

    def purge(self, connection: Connection) -> int:
        """Delete what is kept no longer; return how many rows."""
        return self.store.purge(connection, NOW)

    def mark_sent(self, *ids: str) -> Work[None]:
        """Return what marks messages as sent."""
        return lambda connection: self.store.mark_sent(connection, ids, NOW)

    def number(self, connection: Connection) -> int:
        """Add a row to the history; return its number."""
        self.store.append_history(connection, to_db_timestamp(NOW), [], is_next=True)
        found: int = connection.exec_driver_sql("SELECT max(number) FROM inventory_history").scalar_one()
        return found

    def lead(self, connection: Connection) -> bool:
        """Take or keep the lead."""
        return self.store.acquire_leadership(connection, True)

    def give_up(self, connection: Connection) -> bool:
        """Give the lead up."""
        return self.store.acquire_leadership(connection, False)


class Stand(Protocol):
    """A database with empty tables of every module."""

    def client(self) -> Client:
        """Return a new client."""


def _product(id: str, on_hand: int) -> Product:
    return Product(product_id=id, name=None, on_hand=on_hand, reserved=0, unit_price_amount=1, currency="EUR")


def _stock(found: dict[str, Product]) -> dict[str, int]:
    return {id: product.on_hand for id, product in sorted(found.items())}


def given(client: Client, *works: Work[object]) -> None:
    """Let *client* commit *works*."""
    for work in works:
        client.do(work)
    client.commit()


def committed(client: Client, work: Work[T]) -> T:
    """Return what a transaction of *client* with *work* alone finds."""
    found = client.do(work)
    client.commit()
    return found

