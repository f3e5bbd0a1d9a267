"""What a module keeps: the archive of its finished states, and the history of its events."""
