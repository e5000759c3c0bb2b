"""The search: an Optuna study that pays for every second out of one ledger."""
