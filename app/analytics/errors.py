"""
Errors of the analytics, sorted by what the caller does next.

Each message is one line for the operator, with what to do.
"""

from __future__ import annotations

__all__ = ["AnalyticsError", "AnalyticsMissing", "FileInUse", "FileUnusable", "QueryRefused", "SourceUnavailable"]


class AnalyticsError(Exception):
    """The analytics cannot go on."""


class AnalyticsMissing(AnalyticsError):
    """The packages of the extra are not installed: install them."""


class FileInUse(AnalyticsError):
    """Another process writes the file: end that process, or send it the query."""


class FileUnusable(AnalyticsError):
    """The file is damaged, of a newer release, or cannot be written: replace it, or the release."""


class QueryRefused(AnalyticsError):
    """A query is wrong, or is no query: correct it."""


class SourceUnavailable(AnalyticsError):
    """What the events come from is out of reach: try again later."""
