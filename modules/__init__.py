"""The pure core: what the modules decide. No await, no clock, no dice, no logger."""
