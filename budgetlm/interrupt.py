"""Ctrl-C and SIGTERM as a polite request: save what there is, settle the ledger, leave.

The second request is not polite, and raises as usual.
"""

import signal
from types import FrameType, TracebackType
from typing import Any

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
RESUME_ME = 75
"""Exit code after SIGTERM, which schedulers and spot instances send: EX_TEMPFAIL of sysexits.h, "try again later"."""


class StopRequest:
    """Within its `with` block, SIGINT and SIGTERM set `requested` instead of ending the process at once."""

    def __init__(self) -> None:
        self.requested = False
        self.exit_code = 0
        """What the process should end with; 0 while nobody has asked it to stop."""
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

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested, self.exit_code = True, RESUME_ME if number == signal.SIGTERM else INTERRUPTED
