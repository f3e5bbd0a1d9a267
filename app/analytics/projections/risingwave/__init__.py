"""The same events and projections as SQL for RisingWave, a distributed engine that speaks PostgreSQL's SQL."""
