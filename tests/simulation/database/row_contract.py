"""The part of the contract suite of a shared database that is about rows: what is visible, locked, or in conflict."""

from __future__ import annotations

__all__ = ["RowContract"]

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from app.storage import module_store
from app.storage.module_store import INBOX_RETENTION
from app.storage.sql.dialect import Failure
from tests.simulation.database.clients import NOW, Client, Stand, committed, given


class RowContract:
    """What two or three processes see of each other, and who waits for which of them."""

    # What is visible

    def test_a_row_is_visible_to_others_once_it_is_committed(self, stand: Stand) -> None:
        """A transaction sees its own row at once; another one sees it after the commit, also if it has begun before."""
        one, other = stand.client(), stand.client()
        one.do(one.insert("A"))
        assert other.do(other.look("A")) == {}
        assert one.do(one.look("A")) == {"A": 0}
        one.commit()
        assert other.do(other.look("A")) == {"A": 0}

    def test_a_read_does_not_wait_for_a_lock(self, stand: Stand) -> None:
        """It finds the row as it was committed."""
        one, other = stand.client(), stand.client()
        given(one, one.insert("A"))
        one.do(one.write("A", 1))
        assert other.do(other.look("A")) == {"A": 0}

    def test_what_is_rolled_back_was_never_there(self, stand: Stand) -> None:
        """Neither a new row nor a change nor a deletion."""
        one, other = stand.client(), stand.client()
        given(one, one.insert("A", "B"))
        for work in one.insert("C"), one.write("A", 1), one.delete("B"):
            one.do(work)
        one.roll_back()
        assert other.do(other.look("A", "B", "C")) == {"A": 0, "B": 0}

    # Rows that are locked

    def test_a_locked_row_is_waited_for_and_read_again(self, stand: Stand) -> None:
        """The one that has waited finds what was committed meanwhile."""
        one, other = stand.client(), stand.client()
        given(one, one.insert("A"))
        one.do(one.lock("A"))
        waiting = other.start(other.lock("A"))
        assert waiting.is_waiting()
        one.do(one.write("A", 1))
        one.commit()
        assert waiting.result() == {"A": 1}

    def test_a_row_is_unchanged_after_a_rollback(self, stand: Stand) -> None:
        """The one that has waited finds the row as it was."""
        one, other = stand.client(), stand.client()
        given(one, one.insert("A"))
        one.do(one.write("A", 1))
        waiting = other.start(other.lock("A"))
        assert waiting.is_waiting()
        one.roll_back()
        assert waiting.result() == {"A": 0}

    def test_a_row_that_is_deleted_meanwhile_is_not_found(self, stand: Stand) -> None:
        """The one that has waited goes on without it."""
        one, other = stand.client(), stand.client()
        given(one, one.insert("A", "B"))
        one.do(one.delete("A"))
        waiting = other.start(other.lock("A", "B"))
        assert waiting.is_waiting()
        one.commit()
        assert waiting.result() == {"B": 0}

    def test_a_write_waits_for_a_lock(self, stand: Stand) -> None:
        """The last one to commit has the row."""
        one, other = stand.client(), stand.client()
        given(one, one.insert("A"))
        one.do(one.lock("A"))
        waiting = other.start(other.write("A", 2))
        assert waiting.is_waiting()
        one.do(one.write("A", 1))
        one.commit()
        waiting.result()
        other.commit()
        assert committed(one, one.look("A")) == {"A": 2}

    def test_a_statement_keeps_the_locks_that_it_has_while_it_waits(self, stand: Stand) -> None:
        """It locks its rows in order, and those before the one that it waits for stay locked; those after it do not."""
        one, other, third = stand.client(), stand.client(), stand.client()
        given(one, one.insert("A", "B", "C"))
        one.do(one.lock("B"))
        waiting = other.start(other.lock("C", "A", "B"))
        assert waiting.is_waiting()
        third.do(third.write("C", 1))
        third.commit()
        behind = third.start(third.lock("A"))
        assert behind.is_waiting()
        one.commit()
        assert waiting.result() == {"A": 0, "B": 0, "C": 1}
        other.commit()
        assert behind.result() == {"A": 0}

    def test_a_statement_that_has_waited_does_not_touch_what_was_committed_meanwhile(self, stand: Stand) -> None:
        """It looks again only at the rows that it has found: a timer that was set anew after that is not cancelled."""
        one, other = stand.client(), stand.client()
        given(one, one.send("1", timer="T"))
        one.do(one.cancel("T"))
        one.do(one.send("2", timer="T"))
        waiting = other.start(other.cancel("T"))
        assert waiting.is_waiting()
        one.commit()
        waiting.result()
        other.commit()
        assert committed(one, one.due) == [("2", b"{}")]

    @pytest.mark.parametrize("is_sent", [False, True], ids=["not sent", "sent"])
    def test_a_timer_that_has_ended_is_cancelled_until_it_is_sent(self, stand: Stand, is_sent: bool) -> None:
        """The one that cancels waits for the one that ends it, and then looks at the row again."""
        one, other = stand.client(), stand.client()
        given(one, one.send("1", timer="T"))
        assert one.do(one.end_timers) == ["1"]
        if is_sent:
            one.do(one.mark_sent("1"))
        waiting = other.start(other.cancel("T"))
        assert waiting.is_waiting()
        one.commit()
        waiting.result()
        other.commit()
        one.do(one.send("1", body=b"again"))  # only a row that is gone can be stored again
        assert one.do(one.due) == ([] if is_sent else [("1", b"again")])

    # Inserts

    @pytest.mark.parametrize("kind", [Client.insert, Client.add_to_inbox], ids=["a state", "an inbox entry"])
    def test_an_insert_waits_for_the_same_key_and_then_conflicts(self, stand: Stand, kind: Callable[..., Any]) -> None:
        """The first to commit has the row; the other one is repeated."""
        one, other = stand.client(), stand.client()
        one.do(kind(one, "A"))
        waiting = other.start(kind(other, "A"))
        assert waiting.is_waiting()
        one.commit()
        with pytest.raises(Exception, match=r"(?i)unique") as caught:
            waiting.result()
        assert other.recovery(caught.value) == (Failure.RETRY, True)
        assert not other.is_disconnected()

    @pytest.mark.parametrize("kind", [Client.insert, Client.add_to_inbox], ids=["a state", "an inbox entry"])
    def test_an_insert_goes_on_once_the_other_is_rolled_back(self, stand: Stand, kind: Callable[..., Any]) -> None:
        """The key is free again."""
        one, other = stand.client(), stand.client()
        one.do(kind(one, "A"))
        waiting = other.start(kind(other, "A"))
        assert waiting.is_waiting()
        one.roll_back()
        waiting.result()
        other.commit()
        with pytest.raises(Exception, match=r"(?i)unique"):
            one.do(kind(one, "A"))

    @pytest.mark.parametrize(("is_committed", "body"), [(True, b"one"), (False, b"other")])
    def test_an_insert_that_may_do_nothing_waits_for_the_same_key(self, stand: Stand, is_committed: bool, body: bytes) -> None:
        """A message that is in the outbox is left as it is, and stored if the other one is rolled back; neither is an error."""
        one, other = stand.client(), stand.client()
        one.do(one.send("1", body=b"one"))
        waiting = other.start(other.send("1", body=b"other"))
        assert waiting.is_waiting()
        if is_committed:
            one.commit()
        else:
            one.roll_back()
        waiting.result()
        other.commit()
        assert committed(other, other.due) == [("1", body)]

    def test_an_insert_locks_its_rows_in_their_order(self, stand: Stand) -> None:
        """Those before the one that it waits for are its own already."""
        one, other, third = stand.client(), stand.client(), stand.client()
        one.do(one.add_to_inbox("B"))
        waiting = other.start(other.add_to_inbox("A", "B"))
        behind = third.start(third.add_to_inbox("A"))
        assert waiting.is_waiting()
        assert behind.is_waiting()
        one.roll_back()
        waiting.result()
        assert behind.is_waiting()
        other.commit()
        with pytest.raises(Exception, match=r"(?i)unique"):
            behind.result()

    @pytest.mark.parametrize("is_removed", [False, True], ids=["stays", "is removed meanwhile"])
    def test_an_insert_waits_also_if_another_row_of_it_conflicts(self, stand: Stand, is_removed: bool) -> None:
        """It meets the row that is not committed yet first, in the order of its rows; then it looks at the other one."""
        one, other, third = stand.client(), stand.client(), stand.client()
        given(one, one.add_to_inbox("B"))
        one.do(one.add_to_inbox("A"))
        waiting = other.start(other.add_to_inbox("A", "B", "C"))
        assert waiting.is_waiting()
        if is_removed:
            given(third, third.remove_from_inbox("B"))
        one.roll_back()
        if is_removed:
            waiting.result()
            return
        with pytest.raises(Exception, match=r"(?i)unique"):
            waiting.result()

    @pytest.mark.parametrize("kind", [Client.insert_together, Client.receive], ids=["states", "inbox entries"])
    def test_a_batch_inserts_its_rows_in_the_order_of_their_keys(self, stand: Stand, kind: Callable[..., Any]) -> None:
        """So no two batches wait for each other, in whatever order their messages have arrived."""
        one, other, third = stand.client(), stand.client(), stand.client()
        one.do(kind(one, "B"))
        waiting = other.start(kind(other, "C", "B", "A"))
        assert waiting.is_waiting()
        third.do(kind(third, "C"))
        behind = third.start(kind(third, "A"))
        assert behind.is_waiting()
        third.cut()  # it would wait for the one that waits
        one.roll_back()
        waiting.result()

    def test_a_batch_locks_its_tables_in_one_order(self, stand: Stand) -> None:
        """That of the module, whatever the event names first."""
        one, other, third = stand.client(), stand.client(), stand.client()
        given(one, one.insert("A"), one.reserve("o"))
        one.do(one.lock_with_reservation("none", "o"))
        waiting = other.start(other.lock_with_reservation("A", "o"))
        assert waiting.is_waiting()
        third.do(third.lock("A"))
        third.commit()
        one.commit()
        waiting.result()

    # Rows that are skipped

    def test_a_locked_message_is_not_marked_as_sent(self, stand: Stand) -> None:
        """It stays in the outbox; nothing waits."""
        one, other = stand.client(), stand.client()
        given(one, one.send("1"), one.send("2"))
        one.do(one.mark_sent("1"))
        other.do(other.mark_sent("1", "2"))
        other.commit()
        one.roll_back()
        assert committed(one, one.due) == [("1", b"{}")]

    def test_a_timer_is_ended_by_one_of_two(self, stand: Stand) -> None:
        """The other one leaves it out, and nothing waits: neither for one that ends it nor for one that cancels it."""
        one, other, third = stand.client(), stand.client(), stand.client()
        given(one, one.send("1", timer="S"), one.send("2", timer="T"), one.send("3", timer="U"))
        one.do(one.cancel("S"))
        assert other.do(other.end_timers) == ["2", "3"]
        assert third.do(third.end_timers) == []

    def test_a_purge_locks_only_what_it_deletes(self, stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another one deletes the next rows meanwhile."""
        monkeypatch.setattr(module_store, "PURGE_MAX", 1)
        one, other, third = stand.client(), stand.client(), stand.client()
        old = NOW - INBOX_RETENTION - timedelta(hours=1)
        for hours, id in enumerate(["C", "A", "B"]):
            given(one, one.add_to_inbox(id, at=old + timedelta(minutes=hours)))
        for client in one, other:
            assert client.do(client.purge) == 1
        third.do(third.add_to_inbox("D"))
        other.commit()
        one.commit()
        assert third.do(third.in_inbox("A", "B", "C")) == ["B"]

    def test_heartbeats_do_not_wait(self, stand: Stand) -> None:
        """Of two replicas that beat at once one is enough."""
        one, other = stand.client(), stand.client()
        one.do(lambda connection: one.store.heartbeat.resume(connection, NOW, timedelta(hours=1)))
        one.commit()
        one.do(lambda connection: one.store.heartbeat.beat(connection, NOW + timedelta(seconds=1)))
        other.do(lambda connection: other.store.heartbeat.beat(connection, NOW + timedelta(seconds=2)))
        other.commit()
        one.commit()
        assert one.do(one.store.heartbeat.last_beat) == NOW + timedelta(seconds=1)
