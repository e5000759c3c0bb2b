"""Training on several sources, each read by its weight."""

import json

from budgetlm.data.config import DataConfig
from budgetlm.data.corpus import prepare_corpus
from budgetlm.data.tokens import prepare_tokens
from budgetlm.train.loop import Checkpoints
from tests.conftest import sentences
from tests.train.test_checkpoint import StopAfter
from tests.train.test_streamed import assert_equal, run


def test_a_run_that_is_stopped_and_resumed_equals_one_that_is_not_to_the_bit(tmp_path):
    for name, texts in (("a", sentences(120)), ("b", [f"{n} and {n + 1} make {2 * n + 1}\n" * 8 for n in range(60)])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = DataConfig(source=f"{tmp_path / 'a.jsonl'}:0.3 + {tmp_path / 'b.jsonl'}:0.7")
    tokens = prepare_tokens(config, prepare_corpus(config, tmp_path / "cache"), 320, tmp_path / "cache")
    straight = run(tokens, 12)
    checkpoints = Checkpoints(folder=tmp_path / "checkpoints")
    for part in (3, 5):
        assert run(tokens, 12, checkpoints=checkpoints, should_stop=StopAfter(part)).record.state == "interrupted"
    assert_equal(straight, run(tokens, 12, checkpoints=checkpoints))
