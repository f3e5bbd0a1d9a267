"""The same saga on other libraries. Each file runs in an environment of its own, which has nothing of this program."""
