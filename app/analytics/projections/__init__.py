"""The projections: what is counted from the events, one SQL file each, and how they are read."""
