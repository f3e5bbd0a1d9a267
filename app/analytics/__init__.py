"""What happened, as tables for queries: the events of all modules in one DuckDB file, and the projections that are made of them."""
