"""Outbox relay, event headers, consumers and dead letters."""
