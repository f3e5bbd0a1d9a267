"""The versions of an event at the bus: which are used, and when a retired one is no longer published."""
