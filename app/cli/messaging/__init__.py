"""The commands of the bus: contracts, dead letters, stored messages, streams and consumers."""
