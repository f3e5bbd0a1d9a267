"""The functional core: what the modules decide. No await, no clock, no randomness, no logging."""
