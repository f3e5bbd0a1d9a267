"""
The contract suite of a shared database server: what the program relies on where several processes share a database.

A real PostgreSQL passes it (``tests/storage/test_shared_database.py``) as well as the simulated server, so that the simulation
promises what the real server keeps. A test file provides a fixture ``stand`` (see `tests.simulation.database.clients.Stand`) and a
class that inherits `SharedDatabaseContract`. All statements are those of `app.storage`.
"""

from __future__ import annotations

__all__ = ["SharedDatabaseContract"]

from collections.abc import Callable
from typing import Any

import pytest

from app.storage.sql.dialect import Failure
from tests.simulation.database.clients import Stand, given
from tests.simulation.database.row_contract import RowContract

REPEATED = (Failure.RETRY, False)
"""How the program recovers from a deadlock and a failed serialization: it repeats the transaction, and no row is to blame."""


class SharedDatabaseContract(RowContract):
    """The promises about rows, and those about errors, connections, leads and numbers."""

    # Errors

    def test_of_two_that_wait_for_each_other_one_goes_on(self, stand: Stand) -> None:
        """The other one is repeated; its locks are free before it is rolled back."""
        one, other = stand.client(), stand.client()
        given(one, one.insert("A", "B"))
        one.do(one.lock("A"))
        other.do(other.lock("B"))
        first = one.start(one.lock("B"))
        assert first.is_waiting()
        outcomes = [_outcome(waiting.result) for waiting in (other.start(other.lock("A")), first)]
        assert sorted(isinstance(each, Exception) for each in outcomes) == [False, True]
        assert [one.recovery(each) for each in outcomes if isinstance(each, Exception)] == [REPEATED]

    def test_inserts_in_different_orders_wait_for_each_other(self, stand: Stand) -> None:
        """Each statement has locked its first row and waits for the second."""
        one, other, third = stand.client(), stand.client(), stand.client()
        third.do(third.add_to_inbox("B"))
        first = one.start(one.add_to_inbox("A", "B", "C"))
        second = other.start(other.add_to_inbox("C", "A"))
        assert first.is_waiting()
        assert second.is_waiting()
        third.roll_back()
        outcomes = [_outcome(first.result), _outcome(second.result)]
        assert [one.recovery(each) for each in outcomes if isinstance(each, Exception)] == [REPEATED]

    def test_a_transaction_with_an_error_has_no_effect(self, stand: Stand) -> None:
        """Its locks are free at once, every further statement fails, and its commit stores nothing."""
        one, other = stand.client(), stand.client()
        given(one, one.insert("A", "B"))
        one.do(one.write("B", 1))
        with pytest.raises(Exception, match=r"(?i)unique"):
            one.do(one.insert("A"))
        other.do(other.lock("B"))
        with pytest.raises(Exception, match="aborted") as caught:
            one.do(one.look("A"))
        assert one.recovery(caught.value) == (Failure.REFUSED, False)
        one.commit()
        assert other.do(other.look("B")) == {"B": 0}

    def test_a_failed_serialization_is_repeated(self, stand: Stand) -> None:
        """The connection stays usable, and nothing is stored."""
        one, other = stand.client(), stand.client()
        one.do(one.insert("A"))
        with pytest.raises(Exception, match="serialize") as caught:
            one.do(one.fail_to_serialize)
        assert one.recovery(caught.value) == REPEATED
        assert not one.is_disconnected()
        other.do(other.insert("A"))
        one.roll_back()
        assert one.do(one.look("A")) == {}

    def test_a_lock_that_is_held_for_too_long_ends_the_transaction(self, stand: Stand) -> None:
        """After two seconds; the database counts as out of reach then."""
        one, other, third = stand.client(), stand.client(), stand.client()
        given(one, one.insert("A", "B"))
        one.do(one.lock("B"))
        with pytest.raises(Exception, match="lock") as caught:
            other.start(other.lock("A", "B")).result()
        assert other.recovery(caught.value) == (Failure.UNAVAILABLE, False)
        assert not other.is_disconnected()
        third.do(third.lock("A"))

    # Connections

    @pytest.mark.parametrize("end", ["cut", "halt", "close"], ids=["cut", "idle for too long", "closed"])
    def test_the_locks_of_a_connection_end_with_it(self, stand: Stand, end: str) -> None:
        """Its transaction is rolled back, and its lead is free."""
        one, other = stand.client(), stand.client()
        given(one, one.insert("A"))
        one.do(one.write("A", 1))
        assert one.do(one.lead)
        getattr(one, end)()
        assert other.do(other.lock("A")) == {"A": 0}
        assert other.do(other.lead)

    def test_what_waits_goes_on_when_the_connection_is_cut_that_has_the_lock(self, stand: Stand) -> None:
        """It finds the row as it was."""
        one, other = stand.client(), stand.client()
        given(one, one.insert("A"))
        one.do(one.write("A", 1))
        waiting = other.start(other.lock("A"))
        assert waiting.is_waiting()
        one.cut()
        assert waiting.result() == {"A": 0}

    @pytest.mark.parametrize("end", ["cut", "halt"], ids=["cut", "idle for too long"])
    def test_a_process_notices_at_its_next_statement_that_its_connection_is_gone(self, stand: Stand, end: str) -> None:
        """Also if that is the commit; then it asks for the outcome."""
        clients = [stand.client(), stand.client()]
        for client, id in zip(clients, "AB", strict=True):
            client.do(client.insert(id))
            getattr(client, end)()
        one, other = clients
        with pytest.raises(Exception, match=r"."):
            one.do(one.look("A"))
        assert one.is_disconnected()
        with pytest.raises(Exception, match=r"."):
            other.commit()
        assert other.is_disconnected()
        id = other.dialect.transaction_id(other.connection)
        assert other.call(lambda: other.dialect.was_committed(other.engine, id)) is False
        third = stand.client()
        assert third.do(third.look("A", "B")) == {}

    @pytest.mark.parametrize(("end", "was_committed"), [("commit", True), ("roll_back", False)], ids=["committed", "rolled back"])
    def test_the_outcome_of_a_transaction_is_known(self, stand: Stand, end: str, was_committed: bool) -> None:
        """To a new connection, as the one that has lost its own asks."""
        one, other = stand.client(), stand.client()
        one.do(one.insert("A"))
        one.do(one.look("A"))
        id = one.dialect.transaction_id(one.connection)
        getattr(one, end)()
        assert other.call(lambda: other.dialect.was_committed(other.engine, id)) is was_committed

    # Leads and numbers

    def test_one_of_two_leads_until_it_gives_the_lead_up(self, stand: Stand) -> None:
        """Across the ends of its transactions, however they end."""
        one, other = stand.client(), stand.client()
        assert one.do(one.lead)
        assert not other.do(other.lead)
        one.commit()
        assert one.do(one.lead)
        one.roll_back()
        assert not other.do(other.lead)
        assert not one.do(one.give_up)
        assert other.do(other.lead)
        assert not one.do(one.lead)

    def test_numbers_of_a_history_are_not_given_again(self, stand: Stand) -> None:
        """No transaction waits for another one's number, and one that is rolled back leaves a gap."""
        one, other = stand.client(), stand.client()
        first = one.do(one.number)
        second = other.do(other.number)
        other.commit()
        one.roll_back()
        assert second > first
        assert one.do(one.number) > second


def _outcome(result: Callable[[], Any]) -> Any:
    try:
        return result()
    except Exception as error:
        return error
