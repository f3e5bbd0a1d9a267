"""How SQL reads a member of an event's JSON value, and with which type."""

from __future__ import annotations

__all__ = ["member"]

from collections.abc import Sequence

_NUMERIC = "DECIMAL"


def member(source: str, path: Sequence[str], type: str) -> str:
    """
    Return the SQL for the member at *path* of the JSONB value *source*; *type* is DuckDB's, as `event_tables` gives it.

    A list, a struct and a value of any type stay JSONB; a JSON null is NULL in every type.
    """
    *outer, last = (f"'{name}'" for name in path)
    inside = " -> ".join([source, *outer])
    if type == "VARCHAR":
        return f"{inside} ->> {last}"
    if type.endswith("[]"):
        return f"CASE WHEN jsonb_typeof({inside} -> {last}) = 'array' THEN {inside} -> {last} END"
    if type == "JSON" or type.startswith("STRUCT"):
        return f"CASE WHEN jsonb_typeof({inside} -> {last}) <> 'null' THEN {inside} -> {last} END"
    # RisingWave's DECIMAL takes no precision.
    return f"CAST({inside} ->> {last} AS {_NUMERIC if type.startswith(_NUMERIC) else type})"
