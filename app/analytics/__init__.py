"""What happened, as tables to ask: the events of all modules in one DuckDB file, and the projections that are made of them."""
