"""The devices that train a final: which they are, how they may do it together, and several of them doing it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from budgetlm.budget.clock import Meter
from budgetlm.config import StudyConfig
from budgetlm.data.tokens import Tokens
from budgetlm.model.footprint import host_bytes, saved_bytes
from budgetlm.recipe.oracle import Way, fits_in, team_ways
from budgetlm.recipe.world import World
from budgetlm.records import CurvePoint, RunRecord
from budgetlm.train.config import Label, RunConfig
from budgetlm.train.loop import Checkpoints
from budgetlm.train.pace import DISK_BYTES_PER_SECOND
from budgetlm.train.parallel.crew import Crew, crew_here, crew_on_ray
from budgetlm.train.parallel.kinds import IN_GROUPS, check_kind, check_offload
from budgetlm.train.parallel.launch import train_together
from budgetlm.train.parallel.member import Task

PARTING_SECONDS = 1.0
"""What the processes of a team are given to end in."""


def team_of(study: StudyConfig, device: str, threads: int) -> "FinalTeam":
    """The devices that a study's final is to be trained by.

    Args:
        device: `cpu` or `cuda`.
        threads: CPU threads of each, where they are a Ray cluster's.

    Raises:
        ConfigError: there are not so many, or nothing can wait beside them.
    """
    wanted = study.train
    if wanted.offload:
        check_offload(device)
    if wanted.engine == "ray" and wanted.final_devices != 1:
        return FinalTeam(study, crew_on_ray(wanted.final_devices, device, wanted.ray_address, threads))
    return FinalTeam(study, crew_here(wanted.final_devices, device))


@dataclass(frozen=True)
class FinalTeam:
    """The devices of a final, be they one or many."""

    study: StudyConfig
    crew: Crew

    @property
    def devices(self) -> int:
        """How many they are."""
        return self.crew.count

    @property
    def together(self) -> bool:
        """Whether processes of their own train it: on several devices, or on one beside which its weights wait."""
        return self.devices > 1 or self.study.train.offload

    def worlds(self, world: World) -> list[World]:
        """The world as it is for one of the devices, in each way in which they may train, the faster first."""
        return [way.world for way in self._ways(world)] if self.together else [world]

    def way(self, config: RunConfig, world: World) -> Way:
        """How they train a run together: as it is asked for, or the first way in which it fits.

        Raises:
            ConfigError: they cannot.
        """
        ways = self._ways(world)
        way = next((way for way in ways if fits_in(config, way.world)), ways[-1])
        check_kind(config, way.kind, self.devices, way.parts)
        return way

    def _ways(self, world: World) -> list[Way]:
        wanted = self.study.train
        return team_ways(world, self.devices, wanted.parallel, offload=wanted.offload)

    def says(self, way: Way, config: RunConfig) -> list[str]:
        """How they train a run together, for people."""
        groups = f" in groups of {way.parts}" if way.kind in IN_GROUPS else ""
        lines = [f"{self.devices}{self.crew.where}, {way.kind}{groups}: a second of theirs is charged as {self.devices}"]
        if self.study.train.offload:
            lines.append(f"{host_bytes(config.model) / 1e9:,.2f} GB wait in the processor's memory")
        if config.compile and way.kind not in ("ddp", "pp"):
            lines.append("blocks are not compiled in this kind")
        return lines

    def task(
        self,
        way: Way,
        config: RunConfig,
        label: Label,
        tokens: Tokens,
        checkpoints: Checkpoints,
        folder: Path,
        spent_seconds: float,
    ) -> Task:
        """What each of them is given to do.

        Args:
            folder: where the model is to be written.
            spent_seconds: device-seconds that earlier parts of this final have used up.
        """
        writing = saved_bytes(config.model, 0, exported=True) / DISK_BYTES_PER_SECOND
        return Task(
            kind=way.kind,
            config=config,
            label=label,
            tokens=tokens,
            checkpoints=checkpoints,
            folder=folder,
            reserve=self.devices * (PARTING_SECONDS + writing),
            spent_seconds=spent_seconds,
            launched=time.monotonic(),
            threads=self.crew.threads,
            offload=self.study.train.offload,
            parts=way.parts,
            hang_seconds=self.study.search.hang_seconds,
        )

    def train(
        self,
        task: Task,
        meter: Meter,
        on_point: Callable[[CurvePoint], None],
        should_stop: Callable[[], bool],
        note: Callable[[str], None],
    ) -> tuple[RunRecord, list[str]]:
        """Have them do it; as `train_together`."""
        processes = self.crew.hire(task, self.study.search.max_restarts)
        return train_together(
            processes, self.devices, meter, task.spent_seconds, on_point=on_point, should_stop=should_stop, note=note
        )
