"""Parsing and validation of HTTP requests."""
