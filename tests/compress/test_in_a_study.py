"""Compression as a search and a final see it: recipes, prices, what is refused, what is left on the disk."""

import dataclasses

import pytest
import torch
from typer.testing import CliRunner

from budgetlm.cli import app
from budgetlm.compress.apply import OPTIONS, Compression, extra_bytes
from budgetlm.compress.artefact import load_artefact, make_artefact, save_artefact
from budgetlm.compress.layout import artefact_bytes
from budgetlm.compress.measure import measure_apart, speed, tokens_read
from budgetlm.errors import ConfigError
from budgetlm.files import write_json
from budgetlm.final import final
from budgetlm.model.export import save_model
from budgetlm.model.size import parameters
from budgetlm.recipe.oracle import deployed_bytes, expected_peak_bytes, expected_speed, model_of
from budgetlm.recipe.recipe import Recipe
from budgetlm.recipe.scale import at_target, miniature
from budgetlm.recipe.space import Choices, compressions, read_space
from budgetlm.records import read_records
from budgetlm.search import study
from budgetlm.studies import ledger_of
from budgetlm.train.config import run_config_from
from budgetlm.train.throughput import learnt_paces
from budgetlm.train.trunk import trunk_of
from budgetlm.watch import Watcher
from tests.conftest import tiny_model, tiny_run
from tests.model.test_transformer import trained_looking
from tests.recipe.conftest import world  # noqa: F401

RECIPE = Recipe(depth=8, width=256, batch_tokens=16_384, peak_lr=4e-3)


def recipe_with(option, **changes):
    return dataclasses.replace(RECIPE, compression=option, **changes)


def test_a_study_file_names_options_and_is_told_at_once_of_those_that_make_no_sense():
    space = read_space({"compression": ["none", "int8+prune"], "sparsity": {"low": 0.3, "high": 0.9}})
    assert space["compression"] == Choices(("none", "prune+int8"))
    assert compressions(space) == ("none", "prune+int8")
    assert compressions(read_space({"compression": "int4"})) == ("int4",)
    with pytest.raises(ConfigError, match="packed zeros and all"):
        read_space({"compression": ["none", "prune+int4"]})
    with pytest.raises(ConfigError, match="is a choice, not a range"):
        read_space({"compression": {"low": 0, "high": 1}})


def test_the_bytes_of_a_recipe_are_those_of_its_shape_at_the_target(world):  # noqa: F811
    for option in ("none", "int8", "shrink-layers+int4"):
        expected = artefact_bytes(model_of(RECIPE, world), Compression(option=option))
        assert deployed_bytes(recipe_with(option), world) == expected
    small, large = (deployed_bytes(recipe_with("prune", sparsity=share), world) for share in (0.9, 0.5))
    assert small < large < deployed_bytes(RECIPE, world)


def test_a_miniature_is_compressed_as_its_recipe_is(world):  # noqa: F811
    config = miniature(recipe_with("prune24+int8", prune_start=0.3), 600.0, 10_000.0, world)
    assert config.compression == Compression(option="prune24+int8", start=0.3)
    assert run_config_from(dataclasses.asdict(config)) == config


def test_what_is_taken_out_early_is_foretold_to_save_more_time_and_a_teacher_to_cost_some(world):  # noqa: F811
    plain, late, early = (
        expected_speed(at_target(recipe, 10_000.0, world), world)
        for recipe in (
            RECIPE,
            recipe_with("shrink-heads+shrink-hidden", prune_start=0.8),
            recipe_with("shrink-heads+shrink-hidden", prune_start=0.1),
        )
    )
    assert plain < late < early
    taught = dataclasses.replace(world, teacher="x", teacher_parameters=10**7)
    assert expected_speed(at_target(recipe_with("distil"), 10_000.0, taught), taught) < plain
    assert expected_speed(at_target(recipe_with("int4-qat"), 10_000.0, world), world) < plain
    assert expected_speed(at_target(recipe_with("int4"), 10_000.0, world), world) == plain
    learnt = dataclasses.replace(world, paces={"int4-qat": 0.5})
    foretold = expected_speed(at_target(recipe_with("int4-qat"), 10_000.0, world), world)
    assert expected_speed(at_target(recipe_with("int4-qat"), 10_000.0, learnt), learnt) == pytest.approx(0.5 * foretold)


def test_runs_correct_what_was_foretold_of_their_option():
    paces = learnt_paces([("distil", 50.0, 100.0), ("distil", 60.0, 100.0), ("prune", 99.0, 100.0)])
    assert paces["distil"] == pytest.approx(0.6)
    assert paces["prune"] == pytest.approx(0.995)


def test_memory_counts_masks_rounded_copies_and_the_teacher(world):  # noqa: F811
    model = model_of(RECIPE, world)
    teacher = Compression(option="distil", teacher_parameters=10**7)
    assert extra_bytes(model, teacher) == 4 * 10**7
    assert extra_bytes(model, Compression(option="int8-qat")) == 8 * parameters(model)
    assert extra_bytes(model, Compression(option="int8")) == 0
    plain, pruned = (expected_peak_bytes(at_target(recipe, 1e4, world), world) for recipe in (RECIPE, recipe_with("prune")))
    assert pruned > plain


def test_runs_that_differ_only_in_what_follows_the_last_step_share_their_trunk():
    one, other, pruned = (tiny_run(steps=9, compression=Compression(option=o)) for o in ("none", "int8", "prune"))
    assert trunk_of(one) == trunk_of(other)
    assert trunk_of(one) != trunk_of(pruned)


def test_what_a_study_lacks_is_said_before_anything_is_charged(tiny_study, cache, clock, tmp_path):
    config = tiny_study(space={"compression": ["none", "distil"]})
    with pytest.raises(ConfigError, match="needs a teacher"):
        study.search(config, cache, clock, Watcher())
    assert sum(ledger_of(config.name).balance().by_purpose.get(p, 0) for p in ("train", "evaluate")) == 0


def test_a_teacher_that_was_trained_for_a_study_is_charged_once(tiny_study, cache, clock, tokens, tmp_path, monkeypatch):
    save_model(tmp_path, trained_looking(tiny_model(width=48)), tokens.tokenizer_file, 0)
    monkeypatch.setattr(study.Scheduler, "run", lambda _self: "there is nothing to learn here")
    train = {"eval_tokens": 256, "threads": 1, "compile": "off", "teacher": str(tmp_path), "charge_teacher": True}

    def search(seconds=6.0):
        study.search(tiny_study(seconds, train=train), cache, clock, Watcher())
        return ledger_of("tiny").balance()

    with pytest.raises(ConfigError, match="does not say what training the teacher took"):
        search()
    write_json(tmp_path / "recipe.json", {"seconds": 7.0})
    with pytest.raises(ConfigError, match="took 7 s, but the search has 6 s for everything"):
        search()
    write_json(tmp_path / "recipe.json", {"seconds": 1.5})
    first, again = search(), search()
    assert first.by_purpose["teacher"] == again.by_purpose["teacher"] == 1.5
    assert again.charged_seconds == first.charged_seconds < 6.0
    with pytest.raises(ConfigError, match="needs a teacher"):
        tiny_study(train={"charge_teacher": True})


def test_a_final_of_a_compressed_recipe_is_what_was_scored_and_it_writes(tiny_study, cache, fast_clock, tokens):
    space = {"depth": 2, "width": 32, "batch_tokens": 128, "compression": "prune+int8", "sparsity": 0.6}
    config = tiny_study(space=space)
    study.search(config, cache, fast_clock, Watcher())
    rungs = read_records(config.folder)
    assert all(r.artefact_bytes > 0 and r.dense_bpb is not None for r in rungs if r.state == "done")
    result = final("tiny", cache, fast_clock, Watcher(), config=config)
    record = result.record
    assert record.state == "done"
    assert record.seconds <= 3.2
    assert (result.folder / "model" / "model.safetensors").stat().st_size == record.artefact_bytes
    network, _, _ = load_artefact(result.folder / "model")
    for name, weight in network.named_parameters():
        if ".layers." in name and weight.ndim == 2:
            assert int((weight.dequantize() == 0).sum()) >= round(0.6 * weight.numel()), name
    said = CliRunner().invoke(app, ["generate", "the tree", "--study", "tiny", "--tokens", "5"])
    assert said.exit_code == 0
    assert said.output.startswith("the tree")


def test_a_model_is_measured_here_and_in_a_process_of_its_own(tokens, tmp_path):
    network = trained_looking(tiny_model(width=64))
    artefact = make_artefact(network, Compression(option="int8"))
    save_artefact(tmp_path, artefact, network, tokens.tokenizer_file, 0)
    apart = measure_apart(tmp_path, 1)
    assert min(apart.prefill_tokens_per_second, apart.decode_tokens_per_second, apart.resident_bytes) > 0
    ticks = iter(range(10**6))
    here = speed(network, lambda: float(next(ticks)))
    assert here.prefill_tokens_per_second == 32  # a context in a tick
    assert here.decode_tokens_per_second == 32  # and so many tokens in the next
    assert tokens_read(32) > 32


def test_every_option_says_what_it_changes_and_costs():
    assert all(option.changes and option.price for option in OPTIONS)
    assert len({option.name for option in OPTIONS}) == len(OPTIONS)


def test_a_compressed_teacher_can_teach(tokens, tmp_path):
    from budgetlm.compress.distill import load_teacher

    network = trained_looking(tiny_model(width=64))
    save_model(tmp_path, network, tokens.tokenizer_file, 0)
    save_artefact(tmp_path, make_artefact(network, Compression(option="int4")), network, tokens.tokenizer_file, 0)
    taught = load_teacher(str(tmp_path), tokens.tokenizer_file, "cpu")
    ids = torch.arange(8)[None]
    assert taught.head(taught.features(ids)).shape == (1, 8, 320)
