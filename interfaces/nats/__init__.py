"""Ways in over NATS."""
