"""Commands that show what has happened: the audit, and the history of all events."""
