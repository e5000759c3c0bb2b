"""What machines that do not see a study's folder find of it in a bucket: settings, plan, text, weights to begin from, checkpoints and trunks.

Records and curves are the leader's alone: hands tell it of them through the database. So whoever knows a study from a bucket lends it a hand, and never
leads it.

    study/  study.toml and plan.json       tokens/FINGERPRINT/  the text, as it was prepared       init/  weights that all runs begin from
    runs/RUN/  its checkpoints             trunks/TRUNK/SECONDS/  those that runs have left for others
"""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from filelock import FileLock

from budgetlm.config import STUDY_FILE, StudyConfig, read_study_file
from budgetlm.data.tokens import Tokens, tokens_of
from budgetlm.errors import StudyError
from budgetlm.files import disk_errors
from budgetlm.inherit import INIT
from budgetlm.search.plan import Plan, load_plan
from budgetlm.studies import PLAN, UNFINISHED
from budgetlm.workers.bucket import Bucket


def publish(bucket: Bucket, config: StudyConfig, tokens: Tokens, note: Callable[[str], None]) -> None:
    """Send what a worker must have before its first run, the study itself last, and remove what runs have left that have ended.

    Of a streamed source the text is not sent: it is not all there.

    Raises:
        BucketAway: the bucket cannot be used.
    """
    bucket.keep("runs", {path.name for path in (config.folder / UNFINISHED).glob("*")})
    wanted = [] if tokens.streamed else [(f"tokens/{tokens.facts.fingerprint}", tokens.folder)]
    wanted += [(INIT, config.folder / INIT)] if config.model.init else []
    for key, folder in wanted:
        if bucket.newest(key) < 0:
            size = sum(path.stat().st_size for path in folder.iterdir())
            note(f"shared    sends {folder} ({size / 1e6:,.1f} MB) to {bucket.address}")
            bucket.send_folder(key, 0, folder)
    with ExitStack() as stack:
        files = {name: stack.enter_context((config.folder / name).open("rb")) for name in (STUDY_FILE, PLAN)}
        bucket.send("study", bucket.newest("study") + 1, files)


def published(bucket: Bucket) -> tuple[StudyConfig, Plan] | None:
    """A study's settings and plan, once its search has begun.

    Raises:
        BucketAway: the bucket cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="budgetlm-study-") as made:
        folder = bucket.fetch("study", lambda _number: Path(made) / "study")
        plan = load_plan(folder) if folder else None
        return (read_study_file(folder / STUDY_FILE), plan) if folder and plan else None


def fetch_text(bucket: Bucket, fingerprint: str, cache: Path) -> Tokens | None:
    """A study's text, from the cache or from the bucket; None if it is in neither."""
    if not (there := tokens_of(cache, fingerprint)):
        folder = cache / "tokens" / fingerprint
        folder.parent.mkdir(parents=True, exist_ok=True)
        with disk_errors(folder), FileLock(f"{folder}.lock"):
            if not (there := tokens_of(cache, fingerprint)):
                bucket.fetch(f"tokens/{fingerprint}", lambda _number: folder)
                there = tokens_of(cache, fingerprint)
    return there


def fetch_init(bucket: Bucket, config: StudyConfig) -> None:
    """The weights that a study's runs begin from, into its folder, where there are any.

    Raises:
        StudyError: the bucket has not got them.
    """
    kept = config.folder / INIT
    if config.model.init and not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{kept}.lock"):
            if not kept.exists() and not bucket.fetch(INIT, lambda _number: kept):
                raise StudyError(
                    f"{bucket.address} has not the weights that the runs of study {config.name!r} begin from. Repeat its search, which sends them."
                )
