"""Server-sent events: one state, or all states of a class, after each change."""
