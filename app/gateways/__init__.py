"""Payment providers: the gateway port and its adapters, the circuit breaker, and the worker that calls the provider."""
