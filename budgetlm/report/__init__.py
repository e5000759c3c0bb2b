"""The evidence: records -> figures -> one HTML file that opens anywhere."""

from budgetlm.callable import make_callable

make_callable(__name__)
