"""How often devices fail or are taken away, by published figures, and what that costs the run that was there."""

import math
from dataclasses import dataclass, field

from budgetlm.errors import ConfigError
from budgetlm.train.config import RunConfig
from budgetlm.train.pace import best_interval, expected_checkpoint_seconds

PUBLISHED = {
    "llama3": 54 * 24 * 16_384 / 419,
    "opt175b": 61 * 24 * (992 / 8) / 100,
    "spot": 1 / 0.10,
}
"""Hours between two failures of one device. Sources: Llama 3 (arXiv:2407.21783, section 3.3.4), 419 unexpected interruptions in 54 days of 16,384
GPUs; OPT-175B (arXiv:2205.01068, section 2.5), over 100 hosts of 8 GPUs cycled in two months of 992 GPUs, all devices of a host at once; Bamboo
(arXiv:2204.12013, section 6), the least of the hourly preemption rates of its spot instances, 10 %."""


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What happens to the devices of a search. Failures come at random, however long a device has worked, each device's by themselves."""

    mean_seconds: float = math.inf
    """Between two failures of one device."""
    restart_seconds: float = 180.0
    """From a failure until the device works again. It stays held meanwhile, and is charged."""
    stop_seconds: float = math.inf
    """So often the whole search is asked to stop, and begun again; no device is held in between."""
    seed: int = 0

    @staticmethod
    def read(text: str, seed: int = 0) -> "Faults":
        """From a name of `PUBLISHED`, or the hours between two failures of a device.

        Raises:
            ConfigError: it is neither.
        """
        try:
            hours = PUBLISHED[text] if text in PUBLISHED else float(text)
        except ValueError:
            hours = math.nan
        if not hours > 0:
            raise ConfigError(
                f"`--failures {text}` says nothing of how often devices fail. Use {', '.join(PUBLISHED)}, or the hours between two failures of one."
            )
        return Faults(mean_seconds=3600 * hours, seed=seed)


@dataclass(frozen=True)
class Toll:
    """What became of the devices' time in a simulated search, and of its account. Device-seconds, where nothing else is said."""

    devices: int
    wall_seconds: float
    """From the first run to the end of the last one."""
    charged: float
    useful: float
    """Of runs that came to their end."""
    redone: float = 0.0
    """Trained since a run's last checkpoint, and lost."""
    restarting: float = 0.0
    """Held while a device that had failed was made to work again."""
    failures: int = 0
    stops: int = 0
    overspent: float = 0.0
    """Charged beyond the budget."""
    lost_trials: int = 0
    """Begun, and given up or forgotten because their devices failed."""
    unpaid_trials: int = 0
    """Begun and cut off, with too little left of the budget to go on with them."""
    told_twice: int = 0
    zombies: int = 0
    """Leases, runs and trials that nobody minds any more and that are still open."""

    @property
    def utilisation(self) -> float:
        """Share of what was charged that was of use."""
        return self.useful / self.charged if self.charged else 0.0

    @property
    def idle(self) -> float:
        """Held by nobody: there was nothing worth its seconds, or what was left did not pay for it."""
        return max(0.0, self.devices * self.wall_seconds - self.charged)

    def summary(self) -> str:
        """For people."""
        return (
            f"{self.devices} devices for {self.wall_seconds / 3600:.2f} h: {self.charged / 3600:.1f} device-hours charged, {self.utilisation:.1%} of them of use; "
            f"{self.failures} failures, {self.redone / 3600:.2f} h done again, {self.restarting / 3600:.2f} h restarting; overspent {self.overspent:.1f} s, "
            f"trials lost {self.lost_trials}, told twice {self.told_twice}, zombies {self.zombies}"
        )


@dataclass
class Tally:
    """What is counted while a search is simulated."""

    failures: int = 0
    redone: float = 0.0
    restarting: float = 0.0
    told: dict[int, int] = field(default_factory=dict)
    """How often Optuna was told of each trial."""


def checkpoint_interval(config: RunConfig) -> float:
    """Seconds between the checkpoints of a run, as the training loop chooses them before it has measured one."""
    return best_interval(expected_checkpoint_seconds(config))
