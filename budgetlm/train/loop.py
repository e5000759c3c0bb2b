"""Train until the deadline.

The loop knows nothing of studies: it gets a configuration, tokens, and a meter that its time is charged to. It predicts
what the next step and the last evaluation will cost and stops before they would pass the deadline. In step mode the clock
decides nothing, and a run that was stopped and resumed equals one that was not, to the bit.
"""

import copy
import math
import statistics
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from budgetlm.budget.clock import Meter
from budgetlm.data.batches import training_batches, validation_windows
from budgetlm.data.tokens import Tokens
from budgetlm.errors import CheckpointError, ConfigError, DiskFull, StudyError
from budgetlm.files import digest
from budgetlm.model.size import compute_parameters, evaluation_sequences, flops_per_token, parameters, saved_bytes
from budgetlm.model.transformer import LanguageModel, build
from budgetlm.records import CurvePoint, RunRecord, State
from budgetlm.train.checkpoint import Position, load_newest, save_checkpoint
from budgetlm.train.config import Label, RunConfig, as_dict
from budgetlm.train.evaluate import evaluate
from budgetlm.train.fp8 import fp8_twin
from budgetlm.train.halves import Halves
from budgetlm.train.heap import set_heap
from budgetlm.train.numerics import set_matmul
from budgetlm.train.optim import average_into, build_optimizers, set_decay, set_lr, set_momentum, set_training
from budgetlm.train.peak import PeakMemory
from budgetlm.train.schedule import averaging_weight, batch_at, decay_factor, lr_factor, muon_momentum, pieces_at
from budgetlm.train.trunk import can_begin_at, trunk_of, trunk_share

CURVE_POINTS = 100
"""Points that a curve has, about."""
EVALUATION_SHARE = 0.02
"""Share of a run that evaluations on the way may take, the last one apart."""
EVALUATION_RESERVE = 1.15
"""What an evaluation is kept back for, as a multiple of the slowest of the latest."""
MEASURED_BY = 0.25
"""Progress by which a run that is to be evaluated on a larger sample has measured what that will cost."""
LEAST_CHECKPOINT_SECONDS, DISK_BYTES_PER_SECOND = 0.01, 3e8
"""What a checkpoint is taken to cost before one was written: so much, and its bytes at this rate."""
HOPELESS_NATS = 1.5
"""A smoothed loss this far above that of a uniform guess means that the run has diverged."""


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Where checkpoints go, and how often they are written.

    Without `every_steps` or `every_seconds` the interval is the one that costs least in the long run, sqrt(2 · cost of a checkpoint · mean time
    between failures). Source: Young 1974, "A first order approximation to the optimum checkpoint interval".
    """

    folder: Path
    every_steps: int = 0
    every_seconds: float = 0.0
    seconds_between_failures: float = 4 * 3600
    trunks: Path | None = None
    """Where runs leave their trunks for others (`train/trunk.py`), and look for one to begin from; None for neither."""


@dataclass(frozen=True)
class Trained:
    """A run's record, and its network for whoever wants to keep it."""

    record: RunRecord
    network: LanguageModel
    """The weights that were evaluated: the averaged ones where the run averages."""
    notes: list[str]


def warm_up() -> None:
    """Load what PyTorch loads at the first step of a process, before a device's time is counted. On the CPU alone."""
    weight = torch.nn.Parameter(torch.ones(2, 2))
    torch.autograd.backward(weight.sum())
    torch.optim.AdamW([weight], fused=True).step()
    torch.optim.Muon([weight]).zero_grad()


def transferable(rows: np.ndarray, device: str) -> torch.Tensor:
    """Sequences as a tensor that can be copied to a device while the CPU goes on: a GPU's from memory that stays where it is."""
    tokens = torch.from_numpy(rows)
    return tokens.pin_memory() if device == "cuda" else tokens


def in_pieces(sequences_BL: torch.Tensor, pieces: int) -> torch.Tensor:
    """Sequences (B, L + 1) cut into (B · pieces, L / pieces + 1): every target stays one, with fewer tokens before it."""
    if pieces == 1:
        return sequences_BL
    length = (sequences_BL.shape[1] - 1) // pieces
    return sequences_BL.unfold(1, length + 1, length).flatten(0, 1)


class Stepper:
    """One optimisation step: forward, backward, clip, update."""

    pieces = 1
    """Parts that each sequence is cut into."""

    gradient_norm = math.nan
    """Of the latest step, before it was clipped."""

    meanwhile: Callable[[], None] | None = None
    """Done in every step once the device has all its work, before it is waited for."""

    def __init__(self, config: RunConfig, network: LanguageModel) -> None:
        self.config, self.network = config, network
        set_matmul(config.matmul, config.device)
        self._halves = Halves(network) if config.precision == "bf16-master" else None
        if config.precision == "fp8":
            self._trained = fp8_twin(network, emulate=config.device == "cpu")
        else:
            self._trained = self._halves.network if self._halves else network
        self._trained.model.checkpoint_activations = config.checkpoint_activations
        self._trained.model.attend_by_products(config.products_up_to)
        self.optimizers = build_optimizers(network, config.optimizer, bf16_is_fast=config.bf16_is_fast)
        self._weights = [weight for weight in network.parameters() if weight.requires_grad]
        if config.compile:
            self._trained.model.compile_blocks(cuda_graphs=config.cuda_graphs)
        if (
            config.cuda_graphs
        ):  # a graph's own gradients are overwritten when it runs again: they are added to these, which stay
            for weight in self._weights:
                weight.grad = torch.zeros_like(weight)

    def step(self, rows: np.ndarray, lr: float) -> float:
        """Train on sequences of token ids, int64, shape (B, L + 1). Returns their mean loss in nats, NaN once diverged."""
        config, total, losses = self.config, len(rows), list[torch.Tensor]()
        sequences = transferable(rows, config.device)
        if self._halves:
            self._halves.refresh()
        for start in range(0, total, config.micro_batch_sequences):
            micro = sequences[start : start + config.micro_batch_sequences].to(config.device, non_blocking=True)
            tokens = in_pieces(micro, self.pieces)
            if config.cuda_graphs:
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            with torch.autocast(config.device, torch.bfloat16, enabled=config.precision != "fp32"):
                loss = self._trained.loss(tokens[:, :-1], tokens[:, 1:]) * (len(micro) / total)
            torch.autograd.backward(loss)
            losses.append(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(self._weights, config.optimizer.clip)
        set_lr(self.optimizers, lr)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=not config.cuda_graphs)
        if self.meanwhile:
            self.meanwhile()
        losses_and_norm = torch.stack([torch.stack(losses).sum(), norm])
        mean, self.gradient_norm = losses_and_norm.tolist()  # the one time that the device is waited for
        return mean if math.isfinite(self.gradient_norm) else math.nan


def train(
    config: RunConfig,
    label: Label,
    tokens: Tokens,
    meter: Meter,
    *,
    on_point: Callable[[CurvePoint], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    checkpoints: Checkpoints | None = None,
    spent_seconds: float | None = None,
    began: float | None = None,
) -> Trained:
    """Train a model until its deadline, or for its steps, and measure it.

    Args:
        config: what to train. With `seconds` the deadline counts from `began`.
        label: who the run is, for its record.
        meter: is told what every moment was for; its clock is the only one used.
        on_point: called with each point of the curve as it is reached.
        should_stop: asked after every step; the run then ends as `interrupted`, its checkpoint written.
        checkpoints: write them, and begin from the newest one there.
        spent_seconds: device-seconds that earlier parts of a resumed run have used up, so that the deadline stands whatever
            was lost. Without it a resumed run has all the time that was left when its checkpoint was written.
        began: the clock when the device began to be held for this run; this call if left out.

    Returns:
        The record, whose `bpb` is None if the run was stopped or diverged, and the network.

    Raises:
        CheckpointError: there are checkpoints, and none can be used.
        ConfigError: compilation is wanted and does not work here.
    """
    began = meter.clock.now() if began is None else began
    return _Run(config, label, tokens, meter, checkpoints, spent_seconds, began).go(on_point, should_stop)


class _Run:
    """The state of one training run."""

    def __init__(
        self,
        config: RunConfig,
        label: Label,
        tokens: Tokens,
        meter: Meter,
        checkpoints: Checkpoints | None,
        spent_seconds: float | None,
        began: float,
    ) -> None:
        self.config, self.label, self.meter, self.checkpoints = config, label, meter, checkpoints
        self.spent_before = dict(meter.spent)
        set_heap(config.device, compact=config.compact_heap)
        self.memory = PeakMemory.begin(config.device)
        context = config.model.context_length
        self.windows = validation_windows(tokens.split("validation"), context, config.eval_tokens)
        self.all_windows = (
            validation_windows(tokens.split("validation"), context, config.full_eval_tokens)
            if config.full_eval_tokens
            else self.windows[:0]
        )
        self.bytes_V = tokens.bytes_V
        self.network = build(config.model, config.seed, config.device)
        self.stepper = Stepper(config, self.network)
        self.ahead: tuple[int, np.ndarray] | None = None
        """Sequences that were taken while the device was busy, and the position that they are for."""
        self.average = copy.deepcopy(self.network).requires_grad_(False) if config.ema else None
        self.position, self.notes = Position(), list[str]()
        if checkpoints:
            parts = (self.network, self.stepper.optimizers)
            self.position, self.notes = load_newest(checkpoints.folder, *parts, as_dict(config), self.average)
        if checkpoints and checkpoints.trunks and not self.position.step:
            self._begin_from_a_trunk(checkpoints.trunks)
        self.batches = training_batches(tokens, context, config.seed, config.unique_tokens, self.position.route)
        self.started = began - (self.position.seconds if spent_seconds is None else spent_seconds)
        self.steps_here = 0
        self.sequence_seconds: deque[float] = deque(maxlen=9)
        """Seconds a sequence of the latest steps: a batch ramp makes steps unlike, but not their sequences."""
        self.eval_seconds: deque[float] = deque(maxlen=3)
        """Seconds a window of the latest evaluations."""
        self.train_seconds, self.train_tokens = 0.0, 0
        self.recent_loss: deque[float] = deque(maxlen=20)
        self.last_loss = self.position.loss
        self.pending: list[tuple[float, float, int]] = []  # loss, seconds, tokens of the steps since the last curve point
        self.last_checkpoint = (meter.clock.now(), self.position.step)
        self.checkpoint_seconds = (
            LEAST_CHECKPOINT_SECONDS + saved_bytes(config.model, averaged=config.ema > 0) / DISK_BYTES_PER_SECOND
        )
        # Curve points begin with a dense handful, then come evenly in progress; a resumed run only goes on with them.
        self.next_point = self._progress() + 1 / CURVE_POINTS if self.position.step else 0.0
        self.evaluations_done: int | None = None
        self.averaged_until = self._progress()
        self.leaves_trunk = bool(checkpoints and checkpoints.trunks) and self._progress_of_next_step() < trunk_share(config)

    @property
    def elapsed(self) -> float:
        """Device-seconds of the run so far."""
        return self.meter.clock.now() - self.started

    @property
    def sequences_done(self) -> int:
        """Training sequences read so far."""
        return self.position.sequences

    def go(self, on_point: Callable[[CurvePoint], None] | None, should_stop: Callable[[], bool]) -> Trained:
        """Steps, points, evaluations and checkpoints until the end."""
        self.meter.switch("other")
        state: State = "done"
        while not self._finished():
            if should_stop():
                state = "interrupted"
                break
            if self.leaves_trunk and self._progress_of_next_step() >= trunk_share(self.config):
                self._leave_trunk()
            lr = self._prepare(self._progress_of_next_step())
            loss = self._step(lr)
            if self._diverged(loss):
                state = "diverged"
                break
            if self._progress() >= self.next_point:
                self._point(lr, self._evaluate_on_the_way(), on_point)
            if self._checkpoint_is_due():
                self._save()
        if self.checkpoints and state == "interrupted":
            self._save()
        bpb = full = None
        if state == "done":
            bpb = self._evaluate(self.windows)
            if len(self.all_windows) and self._still_fits(self.all_windows):
                full = self._evaluate(self.all_windows)
            self._point(self._lr(1.0), bpb, on_point)
        set_training(self.stepper.optimizers, on=False)
        return Trained(self._record(state, bpb, full), self.average or self.network, self.notes)

    # --- one step ---

    def _lr(self, progress: float) -> float:
        return self.config.optimizer.peak_lr * lr_factor(self.config.schedule, progress)

    def _prepare(self, progress: float) -> float:
        """Set weights, weight decay and momentum for a step at `progress`, and say its learning rate."""
        schedule, optimizers = self.config.schedule, self.stepper.optimizers
        set_training(optimizers, on=True)
        set_decay(optimizers, self.config.optimizer.weight_decay * decay_factor(schedule, progress))
        set_momentum(optimizers, muon_momentum(schedule, progress))
        self.stepper.pieces = pieces_at(schedule, progress)
        return self._lr(progress)

    def _batch(self) -> int:
        """Sequences of the coming step."""
        return batch_at(self.config.schedule, self._progress(), self.config.batch_sequences)

    def _average(self) -> None:
        """Let the averaged weights follow the step just done."""
        if self.average:
            progress = self._progress()
            average_into(self.average, self.network, averaging_weight(self.config.ema, self.averaged_until, progress))
            self.averaged_until = progress

    def _step(self, lr: float) -> float:
        compiling = self.config.compile and not self.steps_here
        before = self.meter.clock.now()
        with self.meter.during("compile" if compiling else "train"):
            rows = self._rows(self.position.sequences, self._batch())
            self.stepper.meanwhile = partial(self._take_ahead, self.position.sequences + len(rows), len(rows))
            try:
                loss = self.stepper.step(rows, lr)
            except torch._dynamo.exc.TorchDynamoException as error:
                raise ConfigError(
                    f"torch.compile does not work here: {str(error).strip().splitlines()[0]}. Set `train.compile` to "
                    "`off`, or install a C compiler."
                ) from error
            done = self.position
            self.position = replace(done, step=done.step + 1, sequences=done.sequences + len(rows), loss=loss)
            self._average()
        seconds = self.meter.clock.now() - before
        tokens = len(rows) * self.config.model.context_length
        self.steps_here += 1
        self.pending.append((loss, seconds, tokens))
        if not compiling:
            self.sequence_seconds.append(seconds / len(rows))
            self.train_seconds += seconds
            self.train_tokens += tokens
        return loss

    def _rows(self, position: int, count: int) -> np.ndarray:
        """The sequences of a step: those that were taken ahead, if they are the right ones."""
        if self.ahead and self.ahead[0] == position and len(self.ahead[1]) == count:
            return self.ahead[1]
        return self.batches.take(position, count)

    def _take_ahead(self, position: int, count: int) -> None:
        """Take what the next step will read while this one is done; in a batch ramp it may yet want more."""
        self.ahead = (position, self.batches.take(position, count))

    def _diverged(self, loss: float) -> bool:
        self.recent_loss.append(loss)
        if not math.isfinite(loss):
            return True
        limit = math.log(self.config.model.vocab_size) + HOPELESS_NATS
        return len(self.recent_loss) == self.recent_loss.maxlen and statistics.fmean(self.recent_loss) > limit

    # --- time ---

    def _finished(self) -> bool:
        if self.config.steps:
            return self.position.step >= self.config.steps
        # A step that would pass the deadline is not begun; the first one is, so that there is something to measure.
        return bool(self.steps_here) and self.elapsed + self._next_step() > self._training_ends()

    def _next_step(self) -> float:
        """Seconds that the next step will take, rather too many than too few."""
        return 1.1 * self._batch() * statistics.median(self.sequence_seconds) if self.sequence_seconds else 0.0

    def _training_ends(self) -> float:
        """When the last step must be done for the last evaluation to fit before the deadline."""
        return max(0.0, self.config.seconds - self._cost(self.windows) - self._cost(self.all_windows))

    def _cost(self, windows: np.ndarray) -> float:
        """Seconds kept back to evaluate on `windows`: as measured, or at first from the steps, of which a third is a forward pass."""
        if self.eval_seconds:
            return EVALUATION_RESERVE * max(self.eval_seconds) * len(windows)
        return 0.5 * len(windows) * (statistics.median(self.sequence_seconds) if self.sequence_seconds else 0.0)

    def _still_fits(self, windows: np.ndarray) -> bool:
        """Whether an evaluation, whose time was kept back, ends before the deadline at the best speed that was seen of late."""
        return bool(self.config.steps) or self.elapsed + min(self.eval_seconds) * len(windows) <= self.config.seconds

    def _progress(self) -> float:
        if self.config.steps:
            return self.position.step / self.config.steps
        return min(1.0, self.elapsed / max(1e-9, self._training_ends()))

    def _progress_of_next_step(self) -> float:
        """Progress in the middle of the coming step."""
        if self.config.steps:
            return (self.position.step + 0.5) / self.config.steps
        return (self.elapsed + 0.5 * self._next_step()) / max(1e-9, self._training_ends())

    # --- what is measured and kept on the way ---

    def _point(self, lr: float, bpb: float | None, on_point: Callable[[CurvePoint], None] | None) -> None:
        losses, seconds = [p[0] for p in self.pending], sum(p[1] for p in self.pending)
        tokens = sum(p[2] for p in self.pending)
        if losses:
            self.last_loss = statistics.fmean(losses)
        point = CurvePoint(
            step=self.position.step,
            seconds=self.elapsed,
            tokens=self.sequences_done * self.config.model.context_length,
            loss=self.last_loss,
            lr=lr,
            tokens_per_second=tokens / seconds if seconds else 0.0,
            bpb=bpb,
            gradient_norm=self.stepper.gradient_norm if math.isfinite(self.stepper.gradient_norm) else None,
        )
        self.pending = []
        self.next_point = self._progress() + 1 / CURVE_POINTS if self.position.step >= 5 else 0.0
        if on_point:
            on_point(point)

    def _evaluate_on_the_way(self) -> float | None:
        """Bits per byte at a few even places of a run that is long enough to afford it."""
        if self.config.steps:
            return None
        affordable = min(10, int(EVALUATION_SHARE * self.config.seconds / max(1e-9, self._cost(self.windows))))
        due = int(self._progress() * (affordable + 1))
        if self.evaluations_done is None:  # a resumed run does not make up for those before it
            self.evaluations_done = due
        # What the larger sample will take is kept back, and is known only once a smaller one has been measured.
        unknown = len(self.all_windows) and not self.eval_seconds and self._progress() >= MEASURED_BY
        if not unknown and (due <= self.evaluations_done or due > affordable):
            return None
        self.evaluations_done = due
        return self._evaluate(self.windows)

    def _evaluate(self, windows: np.ndarray) -> float:
        micro = evaluation_sequences(self.config.model, self.config.micro_batch_sequences)
        before = self.meter.clock.now()
        with self.meter.during("evaluate"):
            network, precision = self.average or self.network, self.config.precision
            set_training(self.stepper.optimizers, on=False)
            bpb = evaluate(network, windows, self.bytes_V, micro_batch=micro, precision=precision)
        self.eval_seconds.append((self.meter.clock.now() - before) / len(windows))
        return bpb

    def _checkpoint_is_due(self) -> bool:
        if not self.checkpoints:
            return False
        seconds, step = self.last_checkpoint
        if self.checkpoints.every_steps:
            return self.position.step - step >= self.checkpoints.every_steps
        best = math.sqrt(2 * self.checkpoint_seconds * self.checkpoints.seconds_between_failures)
        interval = self.checkpoints.every_seconds or best
        return self.meter.clock.now() - seconds >= interval

    def _save(self) -> None:
        assert self.checkpoints
        parts, before = (self.network, self.stepper.optimizers), self.meter.clock.now()
        self.position = replace(self.position, seconds=self.elapsed, route=self.batches.route)
        with self.meter.during("checkpoint"):
            save_checkpoint(self.checkpoints.folder, *parts, self.position, as_dict(self.config), self.average)
        self.last_checkpoint = (self.meter.clock.now(), self.position.step)
        self.checkpoint_seconds = max(LEAST_CHECKPOINT_SECONDS, self.last_checkpoint[0] - before)

    # --- what it shares with other runs ---

    def _begin_from_a_trunk(self, trunks: Path) -> None:
        """Take over what another run has trained already, if there is such a one and it can be read: of those that suit, the longest's."""
        trunk, parts = trunk_of(self.config), (self.network, self.stepper.optimizers)
        for folder in sorted((trunks / digest(trunk)).glob("*"), reverse=True):
            with suppress(CheckpointError):  # then it is trained here, as if it had not been
                self.position, _ = load_newest(
                    folder, *parts, trunk, self.average, lambda at: can_begin_at(self.config, at.seconds, at.step)
                )
            if self.position.step:
                return

    def _leave_trunk(self) -> None:
        """Keep the state before the rate falls, as the position that another run begins from."""
        assert self.checkpoints
        assert self.checkpoints.trunks
        self.leaves_trunk = False
        trunk, parts, spent = trunk_of(self.config), (self.network, self.stepper.optimizers), self.elapsed
        folder = self.checkpoints.trunks / digest(trunk) / f"{self.config.seconds or self.config.steps:014.3f}"
        position = replace(
            self.position, seconds=spent, route=self.batches.route, inherited_seconds=spent, inherited_from=self.label.run
        )
        with self.meter.during("checkpoint"), suppress(DiskFull, StudyError):  # nobody depends on it
            save_checkpoint(folder, *parts, position, trunk, self.average)

    def _record(self, state: State, bpb: float | None, full: float | None) -> RunRecord:
        model, meter = self.config.model, self.meter
        tokens = self.sequences_done * model.context_length
        with meter.during("other"):  # brings the meter's sums up to this moment
            pass
        return RunRecord(
            run=self.label.run,
            kind=self.label.kind,
            trial=self.label.trial,
            rung=self.label.rung,
            state=state if bpb is None or math.isfinite(bpb) else "diverged",
            recipe=self.label.recipe,
            config=as_dict(self.config),
            seed=self.config.seed,
            target_seconds=self.label.target_seconds,
            planned_seconds=self.config.seconds,
            seconds=self.elapsed - self.position.inherited_seconds,
            by_purpose={str(p): seconds - self.spent_before[p] for p, seconds in meter.spent.items()},
            inherited_seconds=self.position.inherited_seconds,
            inherited_from=self.position.inherited_from,
            steps=self.position.step,
            tokens=tokens,
            parameters=parameters(model),
            compute_parameters=compute_parameters(model),
            flops=float(tokens * flops_per_token(model)),
            tokens_per_second=self.train_tokens / self.train_seconds if self.train_seconds else 0.0,
            bpb=bpb if bpb is not None and math.isfinite(bpb) else None,
            bpb_full=full,
            epochs=self.sequences_done / self.batches.sequences,
            peak_bytes=self.memory.bytes(),
            passport=self.label.passport,
            why=self.label.why,
            cause={"diverged": "diverged", "interrupted": "stopped"}.get(state, ""),
            error="the loss stopped being finite, or rose far above that of a uniform guess" if state == "diverged" else "",
        )
