"""Planted bugs of what looks back: archives, replays of the history, and the analytics."""

from __future__ import annotations

__all__ = ["RECORDS"]

from tests.planted.bug import Bug

RECORDS = (
    Bug(
        "the end of an archived document may be missing", "app/storage/archive/content.py",
        "        if not decompressor.eof:\n            raise EOFError\n",
        "",
        ("tests/storage/test_archive.py",),
    ),
    Bug(
        "a decision that only changes states is equal to none", "app/runtime/replay/comparison.py",
        "        return bool(rest == ([] if has_changed else [0]))",
        "        return bool(rest in ([], [0]))",
        ("tests/runtime/test_replay.py",),
    ),
    Bug(
        "timers that are due earlier are shown as later ones", "app/runtime/replay/comparison.py",
        "(_moment(due_today, at) - _moment(due, at)).total_seconds()",
        "(_moment(due, at) - _moment(due_today, at)).total_seconds()",
        ("tests/runtime/test_replay.py",),
    ),
    Bug(
        "a replay decides about events that differ as they were", "app/runtime/replay/decisions.py",
        "            self._replaced[id] = replacement\n",
        "",
        ("tests/runtime/test_replay.py",),
    ),
    Bug(
        "a replay decides about answers to what was not asked", "app/runtime/replay/decisions.py",
        "            if self._unasked and self._is_unasked(module, event, id):\n                raise NotDecided\n",
        "",
        ("tests/runtime/test_replay.py",),
    ),
    Bug(
        "a replay delivers no event that is new", "app/runtime/replay/decisions.py",
        "            current.additional.append(today)",
        "            pass",
        ("tests/runtime/test_replay.py",),
    ),
    Bug(
        "orders that were deleted from the archive are differences", "app/runtime/replay/ends.py",
        '    return "" if first is None else first.key',
        '    return ""',
        ("tests/runtime/test_replay.py",),
    ),
    Bug(
        "a state that does not follow from the history is not named", "app/runtime/replay/ends.py",
        "                if again.baseline is not None:\n                    continue",
        "                if again.baseline is not None or again.begins_with is not None:\n                    continue",
        ("tests/runtime/test_replay.py",),
    ),
    Bug(
        "a history without its first rows is taken as whole", "app/runtime/replay/run.py",
        "(_FIRST_MAX if history.database.dialect.is_shared and not is_purged else 1)",
        "_FIRST_MAX",
        ("tests/runtime/test_replay.py",),
    ),
    Bug(
        "older orders that are archived are not seen", "app/runtime/replay/run.py",
        "            if any(store.mappers[cls].key_of(each) < oldest for each in store.archive.page(connection, cls, FIRST_ID, 1)):\n"
        "                return False\n",
        "",
        ("tests/runtime/test_replay.py",),
    ),
    Bug(
        "a baseline of another database is taken", "app/runtime/replay/run.py",
        "    if not last or not {(each.number, each.at) for each in history.transactions(last - 1, last, connection)} <= included:",
        "    if not last:",
        ("tests/runtime/test_replay.py",),
    ),
    Bug(
        "a rebuild takes a database with an outbox", "app/runtime/replay/run.py",
        '("archive", "history", "inbox", "outbox"))',
        '("archive", "history", "inbox"))',
        ("tests/cli/test_history.py",),
    ),
    Bug(
        "timers that have shifted are equal", "app/runtime/replay/report.py",
        "        return not (self.groups or self.shifted or self.stopped or self.state_count)",
        "        return not (self.groups or self.stopped or self.state_count)",
        ("tests/cli/test_history.py",),
    ),
    Bug(
        "a module that could not be decided again is equal", "app/runtime/replay/report.py",
        "        return not (self.groups or self.shifted or self.stopped or self.state_count)",
        "        return not (self.groups or self.shifted or self.state_count)",
        ("tests/runtime/test_replay.py",),
    ),
    Bug(
        "a verification that finds a difference ends with 0", "app/cli/records/replay.py",
        "    if not report.is_equal:\n        sys.exit(console.FAILED)",
        "    if report.stopped:\n        sys.exit(console.FAILED)",
        ("tests/cli/test_history.py",),
    ),
    Bug(
        "a verification reads the archive of another database", "app/cli/records/replay.py",
        "        asyncio.run(_check(parts, archive, [tuple(found) for found in grouped.values()]))",
        "        pass",
        ("tests/cli/test_history.py",),
    ),
    Bug(
        "the limit of differences does not count", "app/cli/records/replay.py",
        "    report = Report(limit)",
        "    report = Report()",
        ("tests/cli/test_history.py",),
    ),
    Bug(
        "a baseline of another release is read", "app/cli/records/replay.py",
        "        if not console.run_database_step(partial(is_current, found.engine, module)):",
        "        if False:",
        ("tests/cli/test_history.py",),
    ),
    Bug(
        "days are purged that are to be kept", "app/cli/records/history_archive.py",
        "archiver.purge(group, kept)",
        "archiver.purge(group, None)",
        ("tests/cli/test_history.py",),
    ),
    Bug(
        "a check of the archive does not see a file without a manifest", "app/cli/records/history_archive.py",
        "    archive.require_listed()\n",
        "",
        ("tests/cli/test_history.py",),
    ),
    Bug(
        "two runs write to one archive", "app/cli/records/history_archive.py",
        "        with archive.lock():\n            asyncio.run(run())",
        "        asyncio.run(run())",
        ("tests/cli/test_history.py",),
    ),
    Bug(
        "an export that goes on beyond the end is empty", "app/cli/records/history.py",
        "    if after >= (last + 1) * POSITIONS:",
        "    if after > (last + 1) * POSITIONS * 2:",
        ("tests/cli/test_history.py",),
    ),
    Bug(
        "a damaged history counts as out of reach", "app/cli/records/history.py",
        "    except ValueError as error:\n        console.exit_with(console.FAILED, str(error))",
        "    except ValueError as error:\n        console.exit_with(console.OUT_OF_REACH, str(error))",
        ("tests/cli/test_history.py",),
    ),
    Bug(
        "a time without a zone is that of the machine", "app/cli/console.py",
        "parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)",
        "parsed.astimezone(UTC)",
        ("tests/cli/test_console.py",),
    ),
    Bug(
        "the limit of a query counts for each block", "app/analytics/query.py",
        "            limit -= len(rows[:limit])\n",
        "",
        ("tests/analytics/test_query.py",),
    ),
    Bug(
        "a query answers with what is no JSON", "app/analytics/query.py",
        "        return value if math.isfinite(value) else None",
        "        return value",
        ("tests/analytics/test_query.py",),
    ),
    Bug(
        "an alert waits for long after the receiver was well", "app/analytics/watch/watcher.py",
        "        elif not self.alerts.messages:\n            self._failures = 0\n",
        "",
        ("tests/analytics/watch/test_watch.py",),
    ),
    Bug(
        "the newest alerts are dropped", "app/analytics/watch/alerts.py",
        "        self.messages = self.messages[-MESSAGES_MAX:]",
        "        self.messages = self.messages[:MESSAGES_MAX]",
        ("tests/analytics/watch/test_watch.py",),
    ),
)  # fmt: skip
