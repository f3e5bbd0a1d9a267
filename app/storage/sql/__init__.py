"""Databases, dialects, executors and transactions."""
