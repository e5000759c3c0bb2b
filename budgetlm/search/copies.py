"""What a run has in its study's bucket: copies of its checkpoints, and of the trunk that it leaves; and who removes them again."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from budgetlm.errors import BucketAway
from budgetlm.workers.bucket import Bucket
from budgetlm.workers.courier import Courier, Errand

HAND_OVER_SECONDS = 7.0
"""How long a run that was asked to stop waits until its last checkpoint is sent: those who ask give it 8 s for everything, or more."""
TIDY_SECONDS = 10.0
"""How long a search that has ended waits for the bucket to be tidied. What is left then goes when the next one begins."""


@dataclass(frozen=True)
class Shared:
    """A study's bucket, for its jobs."""

    address: str
    study: str
    lent: bool = False
    """Whether the study's folder is not to be seen here, so that a run that leaves this machine leaves nothing behind."""

    def bucket(self) -> Bucket:
        """The bucket itself."""
        return Bucket(self.address, self.study)


class Copies:
    """What one run has in the bucket: its checkpoints, and the trunk that it leaves.

    Args:
        shared: the study's bucket.
        run: its name.
        tell: told what went wrong, always by the thread that the run's other words come from.
    """

    def __init__(self, shared: Shared, run: str, tell: Callable[[str], None]) -> None:
        self._bucket, self._run, self._tell = shared.bucket(), f"runs/{run}", tell
        self._faults: list[str] = []
        self._courier = Courier(
            lambda fault: self._faults.append(f"is not sent, and goes on with what is on its own disk: {fault}")
        )
        self._trunk = False

    @property
    def seconds(self) -> float:
        """What sending the last one took."""
        return self._courier.seconds

    def fetch(self, checkpoints: Path) -> bool:
        """Put the run's newest checkpoint that is whole beside those that are here, unless they are as new.

        Returns:
            Whether the bucket could be asked.
        """
        from budgetlm.train.checkpoint import checkpoint_folder, newest_step

        try:
            self._bucket.fetch(self._run, partial(checkpoint_folder, checkpoints), beyond=newest_step(checkpoints))
        except BucketAway as error:
            self._faults.append(f"could not look for its checkpoint: {error}")
            return False
        return True

    def fetch_trunks(self, trunks: Path, trunk: str) -> None:
        """Put the trunks of that name that other runs have left beside those that are here."""
        from budgetlm.train.checkpoint import checkpoint_folder, newest_step

        try:
            for length in self._bucket.names(f"trunks/{trunk}"):
                here = trunks / trunk / length
                self._bucket.fetch(f"trunks/{trunk}/{length}", partial(checkpoint_folder, here), beyond=newest_step(here))
        except BucketAway as error:  # then it is trained here, as if there were none
            self._faults.append(f"could not look for a trunk: {error}")

    def saved(self, checkpoint: Path) -> None:
        """Send the run's newest checkpoint, in place of one that has not been begun with."""
        self._send(self._run, checkpoint)

    def left(self, trunk: Path) -> None:
        """Send the trunk that the run has left."""
        self._trunk = True
        self._send(f"trunks/{trunk.parent.parent.name}/{trunk.parent.name}", trunk)

    def close(self, *, hands_over: bool) -> bool:
        """Let go of the bucket.

        Args:
            hands_over: whether somebody else goes on with the run, who wants its newest checkpoint.

        Returns:
            Whether all that somebody else may want is there.
        """
        sent = not (hands_over or self._trunk) or self._courier.finish(HAND_OVER_SECONDS)
        self._courier.close()
        return sent

    def say(self) -> None:
        """Tell what went wrong since the last time."""
        while self._faults:
            self._tell(self._faults.pop(0))

    def _send(self, key: str, folder: Path) -> None:
        """Have a checkpoint sent. Its files are opened now, for it may be gone from the disk by the time it is its turn."""
        from budgetlm.train.checkpoint import step_of

        with ExitStack() as stack:
            files = {path.name: stack.enter_context(path.open("rb")) for path in sorted(folder.iterdir())}
            opened = stack.pop_all()
        send = partial(self._bucket.send, key, step_of(folder), files, self._courier.goes_on)
        self._courier.give(key, Errand(send, opened.close))
        self.say()


class Tidier:
    """The leader's broom: removes from the bucket what nobody will go on with.

    Args:
        tell: told what went wrong, from another thread.
    """

    def __init__(self, bucket: Bucket, tell: Callable[[str], None]) -> None:
        self._bucket = bucket
        self._courier = Courier(lambda fault: tell(f"warning   the bucket is not tidied: {fault}"))

    def forget_run(self, run: str) -> None:
        """A run has its record."""
        self._courier.give(run, Errand(partial(self._bucket.forget, f"runs/{run}")))

    def keep_trunks(self, trunks: Iterable[str]) -> None:
        """Of all trunks only these may be begun from."""
        self._courier.give("trunks/", Errand(partial(self._bucket.keep, "trunks", set(trunks))))

    def close(self) -> None:
        """Let it end what it is at."""
        self._courier.finish(TIDY_SECONDS)
        self._courier.close()
