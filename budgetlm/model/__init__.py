"""The language model: its arithmetic, its network, its form on disk."""
