"""Modules that can be called: `budgetlm.search` is a folder of code, and to who imports budgetlm a function as well."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """The function of `library.py` that has the module's name."""
        return getattr(import_module("budgetlm.library"), self.__name__.rpartition(".")[2])(*arguments, **options)


def make_callable(name: str) -> None:
    """Let calls of a module go to the function of that name in `library.py`.

    Python has assigning to a module's `__class__` for this (reference, 3.3.2.1).
    """
    sys.modules[name].__class__ = _Callable
