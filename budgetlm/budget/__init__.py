"""The budget: what time it is, and where every device-second went."""
