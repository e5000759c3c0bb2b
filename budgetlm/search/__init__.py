"""The search: an Optuna study that pays for every second out of one ledger."""

from budgetlm.callable import make_callable

make_callable(__name__)
