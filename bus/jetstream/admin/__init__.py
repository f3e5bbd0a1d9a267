"""Create, change and verify streams and consumers on a broker."""
