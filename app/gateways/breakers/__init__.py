"""A circuit breaker and a limit of the call rate for each operation of the payment provider."""
