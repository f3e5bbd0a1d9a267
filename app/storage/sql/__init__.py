"""Databases, dialects and transactions."""
