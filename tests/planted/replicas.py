"""Planted bugs that matter where several processes of a module share its database."""

from __future__ import annotations

__all__ = ["REPLICAS"]

from tests.planted.bug import Bug

_STORE = "app/storage/module_store.py"
_ROWS = "app/storage/state_rows.py"
_TRANSACTIONS = "app/storage/sql/transactions.py"
_RELAY = "app/messaging/outbox_relay.py"

_POSTGRES = ("tests/storage/test_postgres.py",)
_RELAYS = ("tests/messaging/test_outbox_relay.py", "tests/storage/test_postgres.py")
_SHARED = ("tests/storage/test_shared_database.py",)
_COMMITS = ("tests/storage/test_transactions.py", "tests/storage/test_postgres.py")

REPLICAS = (
    Bug(
        "each process of a module leads", _STORE,
        '        return self._dialect.try_lead(connection, f"{self.module.name} relay", is_eligible)\n',
        "        return True\n",
        _RELAYS,
    ),
    Bug(
        "a process without a bus keeps the lead", _RELAY,
        "        is_leader = self._store.acquire_leadership(connection, self._bus.is_connected)\n",
        "        is_leader = self._store.acquire_leadership(connection, True)\n",
        _RELAYS,
    ),
    Bug(
        "what a dead process has committed is not published", _STORE,
        "        return HANDOVER_DELAY if self._dialect.is_shared else local_delay\n",
        "        return timedelta(days=1) if self._dialect.is_shared else local_delay\n",
        _RELAYS,
    ),
    Bug(
        "an id that another process has put into the inbox meanwhile is processed again", _STORE,
        "        self._insert_inbox = dialect.insert(inbox, InboxEntry._fields)\n",
        '        self._insert_inbox = dialect.insert(inbox, InboxEntry._fields, "ON CONFLICT (id) DO NOTHING")\n',
        _POSTGRES,
    ),
    Bug(
        "states are cached although other processes write them", _STORE,
        "        self._cache = None if dialect.is_shared else StateCache(self.mappers)\n",
        "        self._cache = StateCache(self.mappers)\n",
        _POSTGRES,
    ),
    Bug(
        "states are loaded without a lock", _ROWS,
        "        if dialect.for_update:\n",
        "        if False:\n",
        _POSTGRES,
    ),
    Bug(
        "a transaction that conflicts with another process is not repeated", _TRANSACTIONS,
        "    if failure is Failure.RETRY and may_retry:\n",
        "    if failure is Failure.RETRY and may_retry and is_disconnected:\n",
        _COMMITS,
    ),
    Bug(
        "a commit of unknown outcome counts as one that failed", _TRANSACTIONS,
        '                raise CommitOutcomeUnknown("The database went out of reach while it committed.") from error\n',
        '                raise StorageUnavailable("The database went out of reach while it committed.") from error\n',
        _COMMITS,
    ),
    Bug(
        "a connection that breaks before the commit counts as one that breaks after it", _TRANSACTIONS,
        "            if not was_committed:\n                raise\n",
        "",
        _COMMITS,
    ),
    Bug(
        "rows are locked in the order in which a plan finds them", _ROWS,
        'WHERE {key} {{keys}} ORDER BY {key}{dialect.for_update}"\n',
        'WHERE {key} {{keys}}{dialect.for_update}"\n',
        _SHARED,
    ),
    Bug(
        "tables are locked in the order of the request", _STORE,
        "for cls, mapper in self.mappers.items() if cls in keys}\n",
        "for cls, mapper in ((each, self.mappers[each]) for each in keys)}\n",
        _SHARED,
    ),
    Bug(
        "new states are inserted in the order of their decisions", _ROWS,
        "        rows = sorted((self._row(state) for state in states), key=itemgetter(0))\n",
        "        rows = [self._row(state) for state in states]\n",
        _SHARED,
    ),
    Bug(
        "inbox entries are inserted in the order of their arrival", _STORE,
        "sorted(inbox_entries, key=_BY_ID) if is_shared else inbox_entries)\n",
        "inbox_entries)\n",
        _SHARED,
    ),
    Bug(
        "timers are published without taking their lock", _STORE,
        "        ended = {id for (id,) in self._end_timers.fetch(connection, [(row.id,) for row in timers], (DUE_NOW,))()}\n",
        "        ended = {row.id for row in timers}\n",
        _SHARED,
    ),
)  # fmt: skip
