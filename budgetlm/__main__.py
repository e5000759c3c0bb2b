"""`python -m budgetlm` is `budgetlm`."""

from budgetlm.cli import main

main()
