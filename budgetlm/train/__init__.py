"""Training under a deadline."""
