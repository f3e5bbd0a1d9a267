"""Searches over the states of one class: for a page of a list, and for what has changed."""
