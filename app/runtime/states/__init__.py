"""Read the states of a module for requests, and follow their changes for streams."""
