"""Parse and validate HTTP requests."""
