"""Ctrl-C and SIGTERM as a polite request: finish the step, settle the ledger, leave.

The second Ctrl-C is not polite, and raises as usual.
"""

import signal
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """Within its `with` block, SIGINT and SIGTERM set `requested` instead of ending the process at once."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Whether somebody has asked to stop."""
        return self.requested

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
