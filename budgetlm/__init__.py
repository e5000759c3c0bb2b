"""budgetlm: the best language model that you can train by a deadline, found, trained and explained."""

__version__ = "0.1.0"
