"""Decide the history again with the code of today, and compare what follows with what has followed."""
