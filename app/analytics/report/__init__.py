"""The report: the projections of a period as one page, and the same numbers as JSON."""
