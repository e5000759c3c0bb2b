"""Decoders of several mixers in one study."""

from budgetlm.compress.artefact import load_artefact
from budgetlm.final import final
from budgetlm.model.generate import generate
from budgetlm.model.size import MIXERS
from budgetlm.records import read_records
from budgetlm.search.study import search
from budgetlm.watch import Watcher


def test_one_study_tries_several_mixers_and_trains_the_one_that_is_asked_for(tiny_study, cache, fast_clock, home):
    shape = {"depth": 1, "width": 16, "batch_tokens": 128}
    training = {"optimizer": "adamw", "schedule": "linear", "warmup": 0.05, "cooldown": 0.4, "weight_decay": 0.1}
    settings = {"least_rung_seconds": 0.15, "stop_early": False, "seed": 23}  # one of those that draw all of them soon
    config = tiny_study(5.0, space={"mixer": list(MIXERS), **shape, **training}, search=settings)
    choice = search(config, cache, fast_clock, Watcher()).choice
    records = [record for record in read_records(config.folder) if record.state == "done"]
    tried = {record.trial: record.recipe["mixer"] for record in records}
    assert set(tried.values()) == set(MIXERS)
    assert choice.trial in tried
    for record in records:
        assert record.config["model"]["mixer"] == tried[record.trial]  # on every rung its own
        assert record.bpb < 8.0
    trial = min(number for number, mixer in tried.items() if mixer == "lstm")
    trained = final("tiny", cache, fast_clock, Watcher(), config=config, trial=trial, hours=2.1 / 3600)
    network, tokenizer, end = load_artefact(trained.folder / "model")
    assert network.config.mixer == "lstm"
    written = list(generate(network, [end], 5, temperature=0.0))
    assert tokenizer.decode(written)
    assert "mixer lstm" in trained.recipe
