"""What payments talks to, and how carefully: gateways, the circuit breaker, and the worker that calls."""
