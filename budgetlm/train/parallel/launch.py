"""A network trained by several devices together: a team is let do it, and heard, and paid for.

The processes are started and watched by who knows how: torch's elastic agent on this machine (`agent.py`), or Ray on a cluster (`onray.py`). They start a
process for each device, and all of them again, from their newest checkpoint, when one is lost. This process keeps the account
meanwhile: whatever becomes of the members, the devices are held, and the time is charged as it passes.
"""

from collections.abc import Callable
from typing import Protocol

from budgetlm.budget.clock import Meter
from budgetlm.errors import ConfigError, StudyError
from budgetlm.records import CurvePoint, RunRecord
from budgetlm.train.parallel.member import Ready, Word
from budgetlm.workers.job import TRANSIENT, Failure, Spent

TICK_SECONDS = 0.1
GOODBYE_SECONDS = 10
"""How long members that are to end are waited for before they are ended by force."""


class Processes(Protocol):
    """Those of a team, and who watches them."""

    def start(self) -> None:
        """Start them all."""

    def is_alive(self) -> bool:
        """Whether they are still at it; what was lost is begun again."""

    def heard(self, seconds: float) -> list[Word]:
        """What the members have said; waits up to `seconds` for the first word."""

    def ask_to_stop(self) -> None:
        """Ask all members, once, to save what they have and return."""

    def outcome(self) -> tuple[RunRecord, list[str]]:
        """What the leader has returned.

        Raises:
            StudyError: they were lost too often.
        """

    def end(self) -> None:
        """Leave nothing running."""


def train_together(
    team: Processes,
    devices: int,
    meter: Meter,
    spent_seconds: float,
    *,
    on_point: Callable[[CurvePoint], None],
    should_stop: Callable[[], bool],
    note: Callable[[str], None],
) -> tuple[RunRecord, list[str]]:
    """Let a team of so many devices do its task.

    Args:
        meter: on a clock of seconds, which are charged for all devices; it is told what the leader says that they were for.
        spent_seconds: device-seconds used up before.
        should_stop: asked all the time; the team then saves what it has, and the record says `interrupted`.
        note: told when a team begins again.

    Returns:
        The run's record, and what was wrong with checkpoints that were passed over.

    Raises:
        ConfigError, StudyError: as in one process; or the team was lost too often.
    """
    began = last_word = meter.clock.now()
    begun, goes_on = False, True
    try:
        team.start()
        while goes_on:
            goes_on = team.is_alive()  # looked at before its last words are read
            for word in team.heard(TICK_SECONDS if goes_on else 0):
                match word:
                    case Ready():
                        # It may be heard long after it was said, and what has passed since then is the leader's to explain.
                        now, said = meter.clock.now(), began + (word.device_seconds - spent_seconds) / devices
                        meter.explain({"start": max(0.0, min(now, said) - last_word)})
                        if begun:
                            note(f"resuming  a process was lost; all {devices} began again from the newest checkpoint")
                        begun = True
                    case Spent():
                        meter.explain({purpose: seconds / devices for purpose, seconds in word.by_purpose.items()})
                    case CurvePoint():
                        on_point(word)
                    case Failure() if word.cause not in TRANSIENT:
                        _raise(word)
                last_word = meter.clock.now()
            meter.tick()
            if should_stop():
                team.ask_to_stop()
        return team.outcome()
    finally:
        team.end()


def _raise(failure: Failure) -> None:
    match failure.cause:
        case "configuration":
            raise ConfigError(failure.message)
        case "study":
            raise StudyError(failure.message)
        case "memory":
            raise StudyError(
                f"{failure.message}. The checkpoint before is kept. Give more devices with `--parallel fsdp`, or another trial."
            )
    raise RuntimeError(f"a process of the team failed:\n{failure.message}")


def lost_too_often(times: int, how: str) -> StudyError:
    """What is raised when a team that was begun so many times was lost the last time, too."""
    return StudyError(
        f"the final lost a process {times} times ({how}) and gave up. Its newest checkpoint is kept; the same command goes on from there."
    )
