"""Logs, metrics and trace headers."""
