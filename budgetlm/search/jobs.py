"""What a search has done on its devices: identify one, measure its speed, train a rung. Torch is imported where it is used."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from budgetlm.data.tokens import Tokens
from budgetlm.errors import CheckpointError
from budgetlm.model.size import ModelConfig
from budgetlm.passport import Passport, identify, pick_device, take_passport
from budgetlm.records import RunRecord
from budgetlm.train.config import Label, Matmul, RunConfig, as_dict, run_config_from
from budgetlm.train.throughput import Calibration
from budgetlm.workers.job import Desk


@dataclass(frozen=True)
class IdentifyJob:
    """Says which device there is."""

    device: str
    """`auto`, `cpu` or `cuda`."""
    threads: int
    measured: Path | None = None
    """The cache in which measured ceilings are kept, where they are wanted, too."""
    precision: str = "auto"
    compressions: tuple[str, ...] = ()
    """Option strings that the study may give a recipe."""
    teacher: str = ""

    def work(self, desk: Desk) -> Passport:
        """The passport of the place's device, which is refused if it cannot compute in the precision, or do the compressions."""
        from budgetlm.compress.quantize import check_here
        from budgetlm.train.fp8 import check_fp8

        device = pick_device(self.device, self.threads)
        if self.precision == "fp8":
            check_fp8(device)
        check_here(self.compressions, device, self.teacher)
        with desk.meter.during("calibrate"):
            return take_passport(device, self.measured) if self.measured else identify(device)


@dataclass(frozen=True)
class ThreadsJob:
    """Measures on how many CPU threads models like `shape` train fastest, up to the passport's."""

    shape: ModelConfig
    passport: Passport
    cache: Path
    rung_seconds: float
    """The longest rung."""

    def work(self, desk: Desk) -> Passport:
        """The passport of the device with that many threads."""
        import torch

        from budgetlm.train.choices import choose_threads

        with desk.meter.during("calibrate"):
            torch.set_num_threads(self.passport.threads)
            threads = choose_threads(self.shape, self.passport, desk.meter.clock, self.cache, self.rung_seconds)
            if threads == self.passport.threads:
                return self.passport
            torch.set_num_threads(threads)
            return take_passport(self.passport.device, self.cache)


@dataclass(frozen=True)
class CalibrateJob:
    """Measures what the device does fastest."""

    shapes: Sequence[ModelConfig]
    passport: Passport
    optimizers: Sequence[str]
    cache: Path
    rung_seconds: float
    """The longest rung."""
    precision: str = "auto"
    attention: str = "auto"
    matmul: Matmul = "auto"

    def work(self, desk: Desk) -> Calibration:
        """What was measured, or is remembered."""
        import torch

        from budgetlm.train.calibrate import calibrate

        torch.set_num_threads(self.passport.threads)
        with desk.meter.during("calibrate"):
            return calibrate(
                self.shapes,
                self.passport,
                self.optimizers,
                desk.meter.clock,
                self.cache,
                rung_seconds=self.rung_seconds,
                wanted_precision=self.precision,
                wanted_attention=self.attention,
                matmul=self.matmul,
                tick=desk.meter.tick,
            )


@dataclass(frozen=True)
class RungJob:
    """Trains a recipe's proxy for a rung, from the newest checkpoint that it has left, and leaves checkpoints itself."""

    label: Label
    config: RunConfig
    tokens: Tokens
    checkpoints: Path
    checkpoint_seconds: float = 0.0
    """Between checkpoints; 0 for the interval that costs least."""
    threads: int = 0
    """CPU threads; 0 for those of the place."""
    trunks: Path | None = None
    """Where it looks for a trunk to begin from, and leaves its own; None for neither."""

    def document(self) -> dict[str, Any]:
        """The job in JSON, all but its tokens, which whoever does it has prepared."""
        return {
            "label": asdict(self.label),
            "config": as_dict(self.config),
            "checkpoints": str(self.checkpoints),
            "checkpoint_seconds": self.checkpoint_seconds,
            "threads": self.threads,
            "trunks": str(self.trunks) if self.trunks else None,
        }

    def work(self, desk: Desk) -> RunRecord:
        """The record of the run, `interrupted` if it was asked to stop."""
        import torch

        from budgetlm.train.loop import Checkpoints, train

        torch.set_num_threads(self.threads or torch.get_num_threads())
        kept = Checkpoints(folder=self.checkpoints, every_seconds=self.checkpoint_seconds, trunks=self.trunks)
        for _ in range(2):
            try:
                return train(
                    self.config,
                    self.label,
                    self.tokens,
                    desk.meter,
                    on_point=desk.say,
                    should_stop=desk.should_stop,
                    checkpoints=kept,
                    began=desk.began,
                ).record
            except CheckpointError:  # none of them can be read: a rung is short enough to begin again
                shutil.rmtree(self.checkpoints, ignore_errors=True)
        raise AssertionError("a run without checkpoints found one that it could not read")


def rung_job_from(document: Mapping[str, Any], tokens: Tokens) -> RungJob:
    """The job that a `document` describes, with the tokens of whoever does it."""
    return RungJob(
        Label(**document["label"]),
        run_config_from(document["config"]),
        tokens,
        Path(document["checkpoints"]),
        document["checkpoint_seconds"],
        document["threads"],
        Path(document["trunks"]) if document["trunks"] else None,
    )
