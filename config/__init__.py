"""Settings of a process, read from environment variables and checked once. Imports nothing of the project."""
