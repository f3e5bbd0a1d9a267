"""Show the report of a replay, as text or as JSON."""

from __future__ import annotations

__all__ = ["as_json", "as_text"]

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from app.cli import console

if TYPE_CHECKING:
    from app.runtime.replay.report import Difference, Report, StateDifference


def as_text(report: Report, word: str, setting: str) -> str:
    """Return *report* for a person, the summary first; *word* names what was compared with the history, *setting* one that shifts timers."""
    parts = [_summary(report)]
    if report.groups:
        rows = [(*group, str(count)) for group, count in report.groups.most_common()]
        parts.append(console.table(("module", "about", "history", word, "count"), rows))
        head = f"What differs first about an order or a product ({_of(report.differences, report.root_count)}); the rest may follow from it:"
        parts.append("\n".join([head, *(f"  {_line(each)}" for each in report.differences)]))
    for (module, subject, seconds), count in report.shifted.most_common():
        by = f"{abs(seconds):g} s {'later' if seconds > 0 else 'earlier'}"
        parts.append(
            f"{module}: {count:,} timers {subject} are due {by}. A setting has changed since, perhaps {setting}; "
            "set it as it was then to compare the rest."
        )
    if report.end_count:
        head = f"States that end differently ({_of(report.ends, report.end_count)}):"
        parts.append("\n".join([head, *(f"  {each.text()}" for each in report.ends)]))
    if others := report.state_count - report.end_count:
        head = f"States that differ otherwise ({_of(report.other_states, others)}):"
        parts.append("\n".join([head, *(f"  {each.text()}" for each in report.other_states)]))
    for module, why in report.stopped.items():
        parts.append(f"{module}: decided again up to {why}. What follows in {module} was not compared.")
    if report.deleted:
        parts.append(f"Deleted from the database, and older than what it has: {_counts(report.deleted)}.")
    if report.before:
        parts.append(
            f"Begins before the history, and was not compared: {_counts(report.before)}. An earlier copy of the database as --baseline of"
            " `history verify` has the states that they began with."
        )
    return "\n\n".join(parts)


def as_json(report: Report) -> dict[str, Any]:
    """Return *report* as a JSON value."""
    return {
        "is_equal": report.is_equal,
        "transactions": report.transactions,
        "decisions": report.decisions,
        "first": None if report.first is None else {"number": report.first[0], "at": _time(report.first[1])},
        "last": None if report.last is None else {"number": report.last[0], "at": _time(report.last[1])},
        "difference_count": report.count,
        "affected_count": len(report.affected),
        "groups": [
            {"module": module, "about": cause, "was": was, "now": now, "count": count}
            for (module, cause, was, now), count in report.groups.most_common()
        ],
        "differences": [_event(each) for each in (*report.differences, *report.consequences)],
        "shifted_timers": [
            {"module": module, "subject": subject, "seconds": seconds, "count": count}
            for (module, subject, seconds), count in report.shifted.most_common()
        ],
        "states_compared": _by_kind(report.states),
        "state_difference_count": report.state_count,
        "end_difference_count": report.end_count,
        "ends": [_state(each) for each in report.ends],
        "other_states": [_state(each) for each in report.other_states],
        "stopped": report.stopped,
        "deleted": _by_kind(report.deleted),
        "before_history": [
            {**each, "examples": list(report.before_examples.get((each["module"], each["kind"]), ()))}
            for each in _by_kind(report.before)
        ],
    }


def _summary(report: Report) -> str:
    if report.first is None or report.last is None:
        return "The history is empty."
    compared = sum(report.states.values())
    done = (
        f"{report.transactions:,} transactions from {_time(report.first[1])} to {_time(report.last[1])}:"
        f" {report.decisions:,} decisions made again, {compared:,} states compared."
    )
    if report.is_equal:
        return f"{done}\nEqual: every event and every state is what it was."
    return (
        f"{done}\nDifferent: events and decisions {report.count:,} (orders and products: {len(report.affected):,}),"
        f" due times {sum(report.shifted.values()):,}, states {report.state_count:,} (with another end: {report.end_count:,})."
    )


def _time(at: str) -> str:
    """Return *at* as the API shows a time."""
    return at.replace("+00:00", "Z")


def _line(difference: Difference) -> str:
    return f"{_time(difference.at)} {difference.key} {difference.module} about {difference.cause}: {difference.detail}"


def _of(shown: Sequence[object], count: int) -> str:
    return f"{count:,}" if len(shown) == count else f"the first {len(shown):,} of {count:,}"


def _counts(counts: Mapping[tuple[str, str], int]) -> str:
    return ", ".join(f"{count:,} of {module} ({kind})" for (module, kind), count in counts.items())


def _by_kind(counts: Any) -> list[dict[str, Any]]:
    return [{"module": module, "kind": kind, "count": count} for (module, kind), count in counts.items()]


def _event(difference: Difference) -> dict[str, Any]:
    return {
        "module": difference.module, "number": difference.number, "at": _time(difference.at), "key": difference.key,
        "about": difference.cause, "ordinal": difference.ordinal, "was": difference.was, "now": difference.now,
        "detail": difference.detail, "is_consequence": difference.is_consequence,
    }  # fmt: skip


def _state(difference: StateDifference) -> dict[str, Any]:
    members = {name: {"was": _plain(was), "now": _plain(now)} for name, (was, now) in difference.members.items()}
    return {"module": difference.module, "kind": difference.kind, "key": difference.key, "members": members, "detail": difference.detail}


def _plain(value: Any) -> Any:
    import orjson

    return orjson.loads(orjson.dumps(value, default=str))
