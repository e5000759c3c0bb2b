"""What a search has done on its devices: identify one, measure its speed, train a rung. Torch is imported where it is used."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from budgetlm.data.tokens import Tokens
from budgetlm.errors import CheckpointError
from budgetlm.files import digest
from budgetlm.model.size import ModelConfig
from budgetlm.passport import Passport, identify, pick_device, take_passport
from budgetlm.records import RunRecord
from budgetlm.search.copies import Copies, Shared
from budgetlm.train.config import Label, Matmul, RunConfig, as_dict, run_config_from
from budgetlm.train.throughput import Calibration
from budgetlm.train.trunk import trunk_of
from budgetlm.workers.courier import beside
from budgetlm.workers.job import Desk, Failure, Note


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
    goes_on: bool = False
    """Whether it was begun before, so that there may be a checkpoint in the bucket."""
    shared: Shared | None = None
    """The bucket in which copies of its checkpoints and trunks lie, if there is one."""

    def document(self) -> dict[str, Any]:
        """The job in JSON, all but its tokens and the bucket, which are those of whoever does it."""
        return {
            "label": asdict(self.label),
            "config": as_dict(self.config),
            "checkpoints": str(self.checkpoints),
            "checkpoint_seconds": self.checkpoint_seconds,
            "threads": self.threads,
            "trunks": str(self.trunks) if self.trunks else None,
            "goes_on": self.goes_on,
        }

    def work(self, desk: Desk) -> RunRecord | Failure:
        """The record of the run, `interrupted` if it was asked to stop; a failure where what it is to go on from cannot be had here."""
        import torch

        torch.set_num_threads(self.threads or torch.get_num_threads())
        if not self.shared:
            return self._train(desk, None)
        copies = Copies(self.shared, self.label.run, lambda text: desk.say(Note(text)))
        record: RunRecord | None = None
        try:
            with desk.meter.during("checkpoint"):
                lacking = beside(desk.meter.tick, lambda: self._fetch(copies))
            if lacking:
                return lacking
            record = self._train(desk, copies)
        finally:
            hands_over = record is not None and record.state == "interrupted"
            with desk.meter.during("checkpoint"):
                sent = beside(desk.meter.tick, lambda: copies.close(hands_over=hands_over))
            copies.say()
            if self.shared.lent and (sent or not hands_over):
                shutil.rmtree(self.checkpoints.parent, ignore_errors=True)
        return record

    def _fetch(self, copies: Copies) -> Failure | None:
        """Fetch what the run goes on from; a failure that another attempt may not meet, where neither the bucket nor this disk has it."""
        from budgetlm.train.checkpoint import newest_step

        if self.goes_on and not copies.fetch(self.checkpoints) and newest_step(self.checkpoints) < 0:
            return Failure("device", "the bucket with its checkpoint could not be asked, and there is none on this disk")
        if self.trunks and newest_step(self.checkpoints) < 0:
            copies.fetch_trunks(self.trunks, digest(trunk_of(self.config)))
        return None

    def _train(self, desk: Desk, copies: Copies | None) -> RunRecord:
        from budgetlm.train.loop import Checkpoints, train

        kept = Checkpoints(
            folder=self.checkpoints, every_seconds=self.checkpoint_seconds, trunks=self.trunks, elsewhere=copies
        )
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


def rung_job_from(document: Mapping[str, Any], tokens: Tokens, shared: Shared | None = None) -> RungJob:
    """The job that a `document` describes, with the tokens and the bucket of whoever does it."""
    return RungJob(
        Label(**document["label"]),
        run_config_from(document["config"]),
        tokens,
        Path(document["checkpoints"]),
        document["checkpoint_seconds"],
        document["threads"],
        Path(document["trunks"]) if document["trunks"] else None,
        document["goes_on"],
        shared,
    )
