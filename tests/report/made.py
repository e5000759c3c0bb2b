"""Studies made up for the tests of the report: facts without a folder, of as many trials as wanted."""

import math
import random

from budgetlm.forecast.history import Moment
from budgetlm.receipts import Receipt
from budgetlm.records import CurvePoint, RunRecord
from budgetlm.report.facts import Account, Facts
from tests.conftest import record

TARGET, SHARES = 1000.0, (1 / 64, 1 / 16, 1 / 4)
EVIL = '<script>alert("x")</script>'


def curve(seconds: float, bpb: float | None, points: int = 20, chance: random.Random | None = None) -> list[CurvePoint]:
    """A curve that falls, with noise."""
    chance = chance or random.Random(0)
    made = []
    for i in range(1, points + 1):
        share = i / points
        loss = 3.0 + 5.0 * math.exp(-4 * share) + chance.gauss(0, 0.1)
        made.append(
            CurvePoint(
                step=10 * i,
                seconds=seconds * share,
                tokens=5120 * i,
                loss=loss,
                lr=0.02 * (1 - share),
                tokens_per_second=20_000 + chance.gauss(0, 500),
                bpb=bpb if i == points else None,
                gradient_norm=0.5 + chance.random(),
            )
        )
    return made


def runs_of(trials: int, chance: random.Random) -> list[RunRecord]:
    """Trials as a search leaves them: every third climbs, every ninth to the top, one in fifty diverges."""
    made, clock = [], 0.0
    for trial in range(trials):
        rate, batch, depth, width = (
            10 ** chance.uniform(-2.5, -1),
            round(2 ** chance.uniform(10, 13)),
            chance.randint(1, 4),
            16 * chance.randint(2, 10),
        )
        level = 0.02 * (math.log(rate / 0.02) ** 2 + 0.3 * math.log(batch / 3000) ** 2) + abs(chance.gauss(0, 0.03))
        top = 1 + (trial % 3 == 0) + (trial % 9 == 0) if trial else 3
        diverged = trial % 50 == 7
        for rung, share in enumerate(SHARES[: 1 if diverged else top]):
            bpb = (
                None if diverged else 0.5 + math.exp(level - 0.2 * math.log(share)) * 0.8 * math.exp(chance.gauss(0, 0.005))
            )
            seconds = TARGET * share
            recipe = {
                "depth": depth,
                "width": width,
                "batch_tokens": batch,
                "peak_lr": rate,
                "schedule": chance.choice(["linear", "cosine"]) if not rung else made[-1].recipe["schedule"],
                "optimizer": "muon",
            }
            changes = {
                "recipe": recipe,
                "state": "diverged" if diverged else "done",
                "cause": "diverged" if diverged else "",
                "error": "the loss stopped being finite" if diverged else "",
                "began_seconds": clock,
                "why": ("climb" if rung else "new") if trial else "default",
                "tokens": 5120 * 20,
                "steps": 200,
                "flops": 1e12 * share * chance.uniform(0.9, 1.1),
                "tokens_per_second": chance.uniform(15_000, 25_000),
                "predicted_tokens_per_second": chance.uniform(15_000, 25_000),
                "peak_bytes": chance.randint(30, 60) * 2**20,
                "predicted_peak_bytes": 45e6,
                "config": {"model": {"depth": max(1, depth // 2), "width": width // 2}, "batch_tokens": batch // 2},
                "by_purpose": {"train": 0.9 * seconds, "evaluate": 0.1 * seconds},
            }
            made.append(record(trial, rung, seconds, bpb, **changes))
            clock += seconds
    return made


def facts(trials: int = 12, *, final: bool = True, points: int = 20, seed: int = 0, **changes) -> Facts:
    """The facts of such a study."""
    chance = random.Random(seed)
    records = runs_of(trials, chance)
    kept, samples, finals, judged = {}, {}, [], []
    if final and trials:
        run = "final-trial0000-1000s-seed0"
        finals = [
            record(
                0, -1, 990.0, 1.31, kind="final", run=run, planned_seconds=TARGET, bpb_full=1.32, recipe=records[0].recipe
            )
        ]
        kept = {run: {"mean": 1.3, "low": 1.2, "high": 1.4, "share": 0.8}}
        samples = {run: [{"prompt": "def ", "continuation": "f(x):\n    return x"}]}
        judged = [Receipt("tiny", run, 0, TARGET, 1.3, 1.2, 1.4, 1.31, inside=True)]
    spent = sum(r.seconds for r in records)
    values = {
        "name": "tiny",
        "records": [*records, *finals],
        "curves": {r.run: curve(r.seconds, r.bpb, points, chance) for r in [*records, *finals]},
        "plan": {
            "passport": {"device": "cpu", "name": "a machine", "threads": 1, "budgetlm": "0.1.0", "fp32_gflops": 80.0},
            "world": {"vocab_size": 4096, "context_length": 256, "precision": "fp32"},
            "rungs": [TARGET * share for share in SHARES],
            "target_seconds": TARGET,
            "space": {
                "depth": {"kind": "Range", "low": 1, "high": 4, "log": False, "step": 0},
                "width": {"kind": "Range", "low": 32, "high": 160, "log": False, "step": 16},
                "batch_tokens": {"kind": "Range", "low": 1024, "high": 8192, "log": True, "step": 0},
                "peak_lr": {"kind": "Range", "low": 0.003, "high": 0.1, "log": True, "step": 0},
                "schedule": {"kind": "Choices", "values": ["linear", "cosine"]},
                "optimizer": {"kind": "Fixed", "value": "muon"},
            },
            "default": {"depth": 2, "width": 64, "batch_tokens": 2048, "peak_lr": 0.02},
            "data": "0123456789abcdef",
        },
        "plan_text": "the plan",
        "study_file": "[budget]\nhours = 1",
        "accounts": {"search": Account(spent + 50, {"train": 0.9 * spent, "evaluate": 0.1 * spent}, "the budget is spent")},
        "importance": {
            "trials": trials,
            "importance": {"peak_lr": 0.6, "depth": 0.4} if trials >= 8 else {},
            "intervals": {"peak_lr": [0.4, 0.8], "depth": [0.1, 0.6]} if trials >= 8 else {},
        },
        "moments": [Moment(10.0 * (i + 1), i + 1, 0, 1.4 - 0.01 * i, 1.3, 1.5, 1.4) for i in range(min(trials, 200))],
        "forecasts_kept": kept,
        "samples": samples,
        "receipts": judged,
        "written_by": "budgetlm 0.1.0",
    }
    return Facts(**{**values, **changes})


def evil_facts() -> Facts:
    """Facts in which every string from outside would run, were it taken for HTML."""
    made = facts(10)
    for r in made.records:
        r.recipe["schedule"] = EVIL
    plan = {**made.plan, "passport": {"name": EVIL, EVIL: EVIL, "budgetlm": EVIL}, "data": EVIL}
    plan["space"] = {
        **plan["space"],
        EVIL: {"kind": "Choices", "values": [EVIL, "b"]},
        "schedule": {"kind": "Choices", "values": [EVIL, "b"]},
    }
    failed = record(
        77, 0, 5.0, None, error=EVIL, cause=EVIL, why=EVIL, run=f"{EVIL}-rung0", recipe={"schedule": EVIL, EVIL: EVIL}
    )
    return facts(
        10,
        name=EVIL,
        records=[*made.records, failed],
        plan=plan,
        plan_text=EVIL,
        study_file=EVIL,
        accounts={EVIL: Account(10.0, {"train": 5.0}, EVIL), "search": Account(10.0, {EVIL: 5.0}, EVIL)},
        importance={"trials": 10, "importance": {EVIL: 0.6, "depth": 0.4}, "intervals": {}},
        samples={"final-trial0000-1000s-seed0": [{"prompt": EVIL, "continuation": EVIL}]},
        receipts=[Receipt(EVIL, EVIL, 0, 1.0, 1.3, 1.2, 1.4, 1.31, inside=True)],
        written_by=EVIL,
    )
