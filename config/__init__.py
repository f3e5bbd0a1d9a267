"""config tells: what the environment says, checked once, before anything else starts."""
