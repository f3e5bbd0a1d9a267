"""Run the modules: queue, batch, transaction, reply."""
