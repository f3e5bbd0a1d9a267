"""The archive of a module: its table, what is in it, and how states get there and back."""
