"""Store module states, inbox and outbox in a database."""
