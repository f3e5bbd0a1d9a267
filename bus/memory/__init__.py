"""The in-memory adapter of the bus port."""
