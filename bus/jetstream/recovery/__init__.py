"""Find and dead-letter messages that no consumer can settle any more."""
