"""What protects the provider and us from each other: a circuit breaker and a pace for each operation."""
