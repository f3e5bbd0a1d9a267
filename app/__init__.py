"""Everything that waits, listens or writes."""
