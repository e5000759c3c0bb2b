"""Train until the deadline.

The loop knows nothing of studies: it gets a configuration, tokens, and a meter that its time is charged to. It predicts
what the next step and the last evaluation will cost and stops before they would pass the deadline. In step mode the clock
decides nothing, and a run that was stopped and resumed equals one that was not, to the bit.
"""

import copy
import gc
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from budgetlm.budget.clock import Meter
from budgetlm.compress.artefact import Artefact
from budgetlm.compress.compressor import Compressor, Stage
from budgetlm.compress.layout import artefact_bytes
from budgetlm.data.batches import AnyBatches, training_batches, validation_sample
from budgetlm.data.masks import EVALUATION_RATE, EVALUATION_SEED, MaskedBatches, hide
from budgetlm.data.tokens import Tokens
from budgetlm.errors import ConfigError
from budgetlm.model.export import begin_from
from budgetlm.model.footprint import evaluation_sequences
from budgetlm.model.size import flops_per_token
from budgetlm.model.transformer import LanguageModel, build
from budgetlm.records import CurvePoint, RunRecord, State
from budgetlm.train.branch import begin_from_trunk, leave_trunk
from budgetlm.train.checkpoint import Elsewhere, Position, load_newest, save_checkpoint
from budgetlm.train.collector import collector_held
from budgetlm.train.config import Label, RunConfig, as_dict, bare_record
from budgetlm.train.curve import POINTS, Curve
from budgetlm.train.energy import EnergyMeter
from budgetlm.train.evaluate import evaluate
from budgetlm.train.heap import set_heap
from budgetlm.train.optim import average_into, set_decay, set_momentum, set_training
from budgetlm.train.pace import EVALUATION_SHARE, SECONDS_BETWEEN_FAILURES, Pace, best_interval
from budgetlm.train.parallel.team import ALONE, Team
from budgetlm.train.peak import PeakMemory
from budgetlm.train.schedule import averaging_weight, batch_at, decay_factor, lr_factor, muon_momentum, pieces_at
from budgetlm.train.step import Stepper
from budgetlm.train.trunk import trunk_share

COLLECTED_EVERY = 100
"""Steps after which garbage is collected: the same ones on all devices of a team, so that none waits for another's."""
MEASURED_BY = 0.25
"""Progress by which a run that is to be evaluated on a larger sample has measured what that will cost."""


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Where checkpoints go, and how often they are written.

    Without `every_steps` or `every_seconds` the interval is the one that costs least in the long run (`best_interval`).
    """

    folder: Path
    every_steps: int = 0
    every_seconds: float = 0.0
    seconds_between_failures: float = SECONDS_BETWEEN_FAILURES
    trunks: Path | None = None
    """Where runs leave their trunks for others (`train/trunk.py`), and look for one to begin from; None for neither."""
    elsewhere: Elsewhere | None = None
    """Where copies of them go, if anywhere. An interval is never shorter than sending one takes: the next would only wait."""


@dataclass(frozen=True)
class Trained:
    """A run's record, and its network for whoever wants to keep it."""

    record: RunRecord
    network: LanguageModel
    """The weights that were evaluated: the averaged ones where the run averages."""
    notes: list[str]
    artefact: Artefact | None = None
    """What would be deployed, and was scored, where the run compresses its network."""


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
    reserve: float = 0.0,
    team: Team = ALONE,
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
        reserve: device-seconds before the deadline that are left over for what follows.
        team: the devices that train together, of which this process has one; all of them call this, with the team's clock in their meters.

    Returns:
        The record, whose `bpb` is None if the run was stopped or diverged, and the network.

    Raises:
        CheckpointError: there are checkpoints, and none can be used.
        ConfigError: compilation is wanted and does not work here.
    """
    began = meter.clock.now() if began is None else began
    with collector_held():
        run = _Run(config, label, tokens, meter, checkpoints, spent_seconds, began, reserve, team)
        try:
            return run.go(on_point, should_stop)
        finally:
            run.stepper.meanwhile = None  # they would hold each other, and all that they hold, until garbage is collected


def _network(config: RunConfig) -> LanguageModel:
    """The run's network as it begins: fresh, or with the weights that it inherits."""
    network = build(config.model, config.seed)
    if config.init:
        begin_from(Path(config.init), network)
    return network


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
        reserve: float,
        team: Team,
    ) -> None:
        self.config, self.label, self.meter, self.checkpoints, self.team = config, label, meter, checkpoints, team
        self.spent_before = dict(meter.spent)
        set_heap(config.device, compact=config.compact_heap)
        self.memory, self.energy = PeakMemory.begin(config.device), EnergyMeter.of(config.device)
        self.windows = self._sample(tokens, config.eval_tokens)
        self.all_windows = self._sample(tokens, config.full_eval_tokens) if config.full_eval_tokens else self.windows[:0]
        self.bytes_V = tokens.bytes_V
        every = len(self.windows) + len(self.all_windows)
        self.pace = Pace(config, config.seconds - reserve, windows=every, dense_windows=len(self.windows))
        self.network = _network(config)
        team.take(self.network, config)
        self.stepper = Stepper(config, self.network, team)
        self.ahead: tuple[int, np.ndarray] | None = None
        """Sequences that were taken while the device was busy, and the position that they are for."""
        self.average = copy.deepcopy(self.network).requires_grad_(False) if config.ema else None
        parts = (self.network, self.stepper.optimizers, self.average)
        self.compressor = Compressor(config.compression, *parts, tokens.tokenizer_file, config.device)
        self.stepper.loss = self.compressor.loss
        self.compresses = config.compression.option != "none"
        self.rehearsed = bool(config.steps) or not self.compresses
        self.artefact: Artefact | None = None
        self.dense_bpb: float | None = None
        self.position, self.notes = Position(), list[str]()
        if checkpoints:
            parts_and_config = (self.network, self.stepper.optimizers, as_dict(config), self.average)
            self.position, self.notes = load_newest(checkpoints.folder, *parts_and_config, fit=self._fit, team=team)
        trunks = checkpoints.trunks if checkpoints else None
        if trunks and not self.position.step:
            self.position = begin_from_trunk(trunks, config, *parts, self._fit)
        self.compressor.resume()
        if self.position.shrunk_at >= 0:
            self.stepper.renew()
        self.batches = self._sequences(tokens)
        self.started = began - (self.position.seconds if spent_seconds is None else spent_seconds)
        self.steps_here = 0
        self.last_checkpoint = (meter.clock.now(), self.position.step)
        due = self._progress() + 1 / POINTS if self.position.step else 0.0
        self.curve = Curve(config.model.vocab_size, self.position.loss, due)
        self.evaluations_done: int | None = None
        self.averaged_until = self._progress()
        self.trunk_goes_to = trunks if self._progress_of_next_step() < trunk_share(config) else None

    def _sample(self, tokens: Tokens, most_tokens: int) -> np.ndarray:
        """Windows of the validation split, with marks where an encoder is to be asked."""
        model = self.config.model
        windows = validation_sample(tokens, model.context_length, most_tokens)
        return hide(windows, EVALUATION_RATE, EVALUATION_SEED) if model.encodes else windows

    def _sequences(self, tokens: Tokens) -> AnyBatches | MaskedBatches:
        """What is trained on, from where the run stands."""
        config = self.config
        batches = training_batches(
            tokens, config.model.context_length, config.seed, config.unique_tokens, self.position.route
        )
        return MaskedBatches(batches, config.model.mask_rate, config.seed) if config.model.encodes else batches

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
        self.team.agree()
        self.meter.switch("other")
        state: State = "done"
        while not self._finished():
            if should_stop():
                state = "interrupted"
                break
            if self.trunk_goes_to and self._progress_of_next_step() >= trunk_share(self.config):
                self._leave_trunk(self.trunk_goes_to)
            lr = self._prepare(self._progress_of_next_step())
            self._step(lr)
            if self.curve.diverged:
                state = "diverged"
                break
            if self.curve.is_due(self._progress()):
                self._point(lr, self._evaluate_on_the_way(), on_point)
            if not self.rehearsed and self._progress() >= MEASURED_BY:
                self._rehearse_compression()
            if self._checkpoint_is_due():
                self._save()
            if self.steps_here % COLLECTED_EVERY == 0:
                gc.collect()
        if self.checkpoints and state == "interrupted":
            self._save()
        bpb = full = None
        if state == "done":
            scored = self._compressed() if self.compresses else None
            bpb = self._evaluate(self.windows, scored)
            if len(self.all_windows) and self.pace.still_fits(self.elapsed, len(self.all_windows)):
                full = self._evaluate(self.all_windows, scored)
            self._point(self._lr(1.0), bpb, on_point)
        set_training(self.stepper.optimizers, on=False)
        network = self.average or self.network
        whole = self.team.assembled(network) if state == "done" else network
        return Trained(self._record(state, bpb, full), whole, self.notes, self.artefact)

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

    def _step(self, lr: float) -> None:
        compiling = self.config.compile and self.team.compiles and not self.steps_here
        before = self.meter.clock.now()
        with self.meter.during("compile" if compiling else "train"):
            rows = self._rows(self.position.sequences, self._batch())
            if self.compressor.before_step(self._progress_of_next_step(), self.sequences_done, rows):
                self.stepper.renew(self.compressor.rounds)
            self.stepper.meanwhile = partial(self._take_ahead, self.position.sequences + len(rows), len(rows))
            try:
                loss = self.stepper.step(rows, lr)
            except torch._dynamo.exc.TorchDynamoException as error:
                self._do_not_compile(error)
                loss = self.stepper.step(rows, lr)
            self.compressor.after_step()
            self.team.agree()
            seconds, done = self.meter.clock.now() - before, self.position
            compiled_for = done.compile_seconds + compiling * seconds
            position = replace(done, step=done.step + 1, sequences=done.sequences + len(rows), loss=loss)
            self.position = replace(position, compile_seconds=compiled_for)
            self._average()
        self.energy.look(self.meter.clock.now())
        tokens = len(rows) * self.config.model.context_length
        self.steps_here += 1
        self.curve.stepped(loss, seconds, tokens)
        if not compiling:
            self.pace.stepped(seconds, len(rows), tokens)

    def _do_not_compile(self, error: Exception) -> None:
        """Go on without compiled blocks, unless they are insisted on."""
        why = f"torch.compile does not work here: {str(error).strip().splitlines()[0]}"
        if self.config.compile_or_fail:
            raise ConfigError(f"{why}. Set `train.compile` to `off`, or install a C compiler.") from error
        self.notes.append(f"{why}; the run goes on without it")
        self.stepper.do_not_compile()

    def _rows(self, position: int, count: int) -> np.ndarray:
        """The sequences of a step: those that were taken ahead, if they are the right ones."""
        if self.ahead and self.ahead[0] == position and len(self.ahead[1]) == count:
            return self.ahead[1]
        return self.batches.take(position, count)

    def _take_ahead(self, position: int, count: int) -> None:
        """Take what the next step will read while this one is done; in a batch ramp it may yet want more."""
        self.ahead = (position, self.batches.take(position, count))

    # --- time ---

    def _finished(self) -> bool:
        if self.config.steps:
            return self.position.step >= self.config.steps
        # A step that would pass the deadline is not begun; the first one is, so that there is something to measure.
        return bool(self.steps_here) and self.elapsed + self.pace.step(self._batch()) > self.pace.training_ends()

    def _progress(self) -> float:
        if self.config.steps:
            return self.position.step / self.config.steps
        return min(1.0, self._share_of_training(self.elapsed))

    def _progress_of_next_step(self) -> float:
        """Progress in the middle of the coming step."""
        if self.config.steps:
            return (self.position.step + 0.5) / self.config.steps
        return self._share_of_training(self.elapsed + 0.5 * self.pace.step(self._batch()))

    def _share_of_training(self, seconds: float) -> float:
        """Progress so many seconds into the run. Compiling is none: a warm-up would be over with the first step."""
        away = self.position.compile_seconds
        return (seconds - away) / max(1e-9, self.pace.training_ends() - away)

    # --- what is measured and kept on the way ---

    def _point(self, lr: float, bpb: float | None, on_point: Callable[[CurvePoint], None] | None) -> None:
        point = self.curve.point(
            self._progress(),
            step=self.position.step,
            seconds=self.elapsed,
            tokens=self.sequences_done * self.config.model.context_length,
            lr=lr,
            bpb=bpb,
            gradient_norm=self.stepper.gradient_norm,
        )
        if on_point:
            on_point(point)

    def _evaluate_on_the_way(self) -> float | None:
        """Bits per byte at a few even places of a run that is long enough to afford it."""
        if self.config.steps:
            return None
        left = EVALUATION_SHARE * self.config.seconds - self.pace.evaluations_at_the_end()
        affordable = min(10, max(0, int(left / max(1e-9, self.pace.evaluation(len(self.windows))))))
        due = int(self._progress() * (affordable + 1))
        if self.evaluations_done is None:  # a resumed run does not make up for those before it
            self.evaluations_done = due
        # What the larger sample will take is kept back, and is known only once a smaller one has been measured.
        unknown = len(self.all_windows) and not self.pace.has_evaluated and self._progress() >= MEASURED_BY
        if not unknown and (due <= self.evaluations_done or due > affordable):
            return None
        self.evaluations_done = due
        return self._evaluate(self.windows)

    def _evaluate(self, windows: np.ndarray, compressed: LanguageModel | None = None) -> float:
        micro = evaluation_sequences(self.config.model, self.config.micro_batch_sequences)
        before = self.meter.clock.now()
        with self.meter.during("evaluate"):
            network, precision = compressed or self.average or self.network, self.config.precision
            if compressed and self.config.compression.quantised:
                precision = "fp32"  # what rounded weights are computed with
            set_training(self.stepper.optimizers, on=False)
            bpb = evaluate(network, windows, self.bytes_V, micro_batch=micro, precision=precision, team=self.team)
            self.team.agree()
        self.pace.evaluated(self.meter.clock.now() - before, len(windows), compressed=compressed is not None)
        return bpb

    # --- what is deployed ---

    def _compressed(self) -> LanguageModel:
        """The network as it would be deployed, read again from the bytes of its file; with what it was worth before."""
        rows = self._rows(self.position.sequences, self._batch())
        with self.meter.during("compress"):
            set_training(self.stepper.optimizers, on=False)
            self.compressor.finish(self.sequences_done, rows)
        if self.config.compression.quantised:
            self.dense_bpb = self._evaluate(self.windows)
        with self.meter.during("compress"):
            network, self.artefact = self.compressor.deployed(self.average or self.network)
            self.team.agree()
        return network

    def _rehearse_compression(self) -> None:
        """Measure what the end will take: to compress the network as it is now, and to evaluate it on a few windows."""
        self.rehearsed, before = True, self.meter.clock.now()
        with self.meter.during("compress"):
            set_training(self.stepper.optimizers, on=False)
            network, _ = self.compressor.deployed(self.average or self.network)
            self.team.agree()
        self.pace.compress_seconds = self.meter.clock.now() - before
        few = self.windows[: max(1, len(self.windows) // 4)]
        if not self.pace.has_evaluated:
            self._evaluate(few)
        if self.config.compression.quantised:
            self._evaluate(few, network)

    def _fit(self, position: Position) -> None:
        self.compressor.fit(Stage(position.pruning_updates, position.shrunk_at))

    # --- what is kept for this run, and for others ---

    def _where_it_stands(self) -> Position:
        return replace(self.position, seconds=self.elapsed, route=self.batches.route, **asdict(self.compressor.stage))

    def _checkpoint_is_due(self) -> bool:
        if not self.checkpoints:
            return False
        seconds, step = self.last_checkpoint
        if self.checkpoints.every_steps:
            return self.position.step - step >= self.checkpoints.every_steps
        interval = self.checkpoints.every_seconds or best_interval(
            self.pace.checkpoint_seconds, self.checkpoints.seconds_between_failures
        )
        sending = self.checkpoints.elsewhere.seconds if self.checkpoints.elsewhere else 0.0
        return self.meter.clock.now() - seconds >= max(interval, sending)

    def _save(self) -> None:
        assert self.checkpoints
        parts, before = (self.network, self.stepper.optimizers), self.meter.clock.now()
        self.position = self._where_it_stands()
        with self.meter.during("checkpoint"):
            path = save_checkpoint(
                self.checkpoints.folder, *parts, self.position, as_dict(self.config), self.average, self.team
            )
            self.team.agree()
            if self.checkpoints.elsewhere:
                self.checkpoints.elsewhere.saved(path)
        self.last_checkpoint = (self.meter.clock.now(), self.position.step)
        self.pace.saved(self.last_checkpoint[0] - before)

    def _leave_trunk(self, trunks: Path) -> None:
        """Leave what other runs can begin from."""
        self.trunk_goes_to, parts = None, (self.network, self.stepper.optimizers, self.average)
        here = self._where_it_stands()
        with self.meter.during("checkpoint"):
            left = leave_trunk(trunks, self.config, self.label.run, *parts, here)
            if left and self.checkpoints and self.checkpoints.elsewhere:
                self.checkpoints.elsewhere.left(left)

    def _record(self, state: State, bpb: float | None, full: float | None) -> RunRecord:
        model, meter, done = self.config.model, self.meter, self.sequences_done
        tokens = done * model.context_length
        whole = self.compressor.stage.shrunk_at if self.compressor.stage.shrunk_at >= 0 else done
        small = self.network.config
        flops = model.context_length * (whole * flops_per_token(model) + (done - whole) * flops_per_token(small))
        with meter.during("other"):  # brings the meter's sums up to this moment
            pass
        return replace(
            bare_record(self.label, self.config),
            state=state if bpb is None or math.isfinite(bpb) else "diverged",
            seconds=self.elapsed - self.position.inherited_seconds,
            by_purpose={str(p): seconds - self.spent_before[p] for p, seconds in meter.spent.items()},
            inherited_seconds=self.position.inherited_seconds,
            inherited_from=self.position.inherited_from,
            devices=self.team.size,
            steps=self.position.step,
            tokens=tokens,
            flops=float(flops),
            tokens_per_second=self.pace.tokens_per_second,
            bpb=bpb if bpb is not None and math.isfinite(bpb) else None,
            bpb_full=full,
            dense_bpb=self.dense_bpb,
            artefact_bytes=len(self.artefact.weights) if self.artefact else artefact_bytes(model, self.config.compression),
            teacher_seconds=self.compressor.teacher_seconds,
            epochs=self.sequences_done / self.batches.sequences,
            peak_bytes=self.team.most(self.memory.bytes()),
            energy_joules=self.team.added(self.energy.joules()),
            cause={"diverged": "diverged", "interrupted": "stopped"}.get(state, ""),
            error="the loss stopped being finite, or rose far above that of a uniform guess" if state == "diverged" else "",
        )
