"""What teams of several processes have in common, whatever each holds of the network: clock, sums, and whose sequences are whose."""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from budgetlm.budget.clock import Clock
from budgetlm.train.parallel.team import Team


class TeamClock(Clock):
    """Device-seconds of a team: one second is as many as there are devices. It stands still until the team agrees again."""

    def __init__(self) -> None:
        self.moment = 0.0
        """The one that was last agreed on."""

    def now(self) -> float:
        """Device-seconds since some fixed instant of the leader's."""
        return self.moment


class Members(Team):
    """Processes that are joined by torch.distributed's default group, each of them with a device.

    Args:
        clock: what the leader's seconds are read from.
        asked: whether the leader is asked to stop.
        device: `cpu`, or `cuda`, of which each has its own.
        readers: how many members read different sequences; others read what their neighbours read.
    """

    def __init__(self, clock: Clock, asked: Callable[[], bool], device: str = "cpu", readers: int | None = None) -> None:
        self.size, self.rank = dist.get_world_size(), dist.get_rank()
        self.clock, self.stops = TeamClock(), False
        self._leaders, self._asked = clock, asked
        self._readers = readers or self.size
        self._reader = self.rank * self._readers // self.size
        self.device = torch.device(device, torch.cuda.current_device()) if device == "cuda" else torch.device(device)

    def agree(self) -> None:
        """Everybody's clock is the leader's now, and everybody stops if the leader is to."""
        word = torch.tensor([self.size * self._leaders.now(), float(self._asked())], dtype=torch.float64)
        dist.broadcast(word, src=0)  # between processors: no device waits for it
        self.clock.moment, self.stops = float(word[0]), bool(word[1])

    def stopping(self) -> bool:
        """Whether the team is to save what it has and return, as it was last agreed."""
        return self.stops

    def heard(self, value: float) -> float:
        """The leader's value, for everybody."""
        word = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(word, src=0)
        return float(word)

    def passes(self, total: int, micro_batch: int) -> list[tuple[slice, float]]:
        """As many passes for every member, since they may have to meet in each. Where one has nothing to read, it reads a sequence that does not count."""
        mine = _even(total, self._readers, self._reader)
        count = -(-_most(total, self._readers) // micro_batch)
        cuts = [_even(mine.stop - mine.start, count, number) for number in range(count)]
        return [
            (slice(mine.start + cut.start, mine.start + cut.stop), (cut.stop - cut.start) / total)
            if cut.stop > cut.start
            else (slice(0, 1), 0.0)
            for cut in cuts
        ]

    def total(self, value: Tensor) -> Tensor:
        """The sum of the members' values; of members that read the same only one counts."""
        value = value * (self._readers / self.size)
        dist.all_reduce(value)
        return value

    def most(self, value: int) -> int:
        """The greatest of the members' values."""
        word = torch.tensor(value)
        dist.all_reduce(word, dist.ReduceOp.MAX)
        return int(word)

    def added(self, value: float) -> float:
        """The members' values added up, each of which is its own."""
        word = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(word)
        return float(word)

    def joined(self, values: Sequence[Tensor]) -> Tensor:
        """What the members have computed, of those that read the same once."""
        mine_N = torch.cat([torch.empty(0), *values])
        lengths = [torch.tensor(0) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor(len(mine_N)))
        longest = max(map(int, lengths))
        parts = [torch.empty(longest) for _ in range(self.size)]
        dist.all_gather(parts, functional.pad(mine_N, (0, longest - len(mine_N))))
        return torch.cat([parts[rank][: int(lengths[rank])] for rank in range(0, self.size, self.size // self._readers)])


def _even(total: int, parts: int, number: int) -> slice:
    """Which of `total` things are the part of this number, where no two parts differ by more than one."""
    return slice(total * number // parts, total * (number + 1) // parts)


def _most(total: int, parts: int) -> int:
    """What the largest of even parts has."""
    return -(-total // parts)
