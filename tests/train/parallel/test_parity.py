"""Two gloo processes against one: the same losses, the same models, one checkpoint for all."""

import dataclasses

import pytest
import torch

from budgetlm.compress.apply import Compression
from budgetlm.train.config import OptimizerConfig
from budgetlm.train.parallel.kinds import IN_GROUPS
from budgetlm.train.schedule import ScheduleConfig
from tests.conftest import tiny_model, tiny_run
from tests.train.parallel.gang import Run, runs, together, trained

NOISE = 2e-6
"""Largest relative difference of a loss over 20 steps; 2e-7 was seen (tests/benchmarks/bench_parallel.py)."""
CONFIGS = {
    "adamw": tiny_run(steps=20, batch_sequences=5, micro_batch_sequences=2),
    "muon": tiny_run(
        steps=20, batch_sequences=6, micro_batch_sequences=2, optimizer=OptimizerConfig(name="muon", peak_lr=1e-2)
    ),
}
"""Batches that divide among two, and that do not."""
WITH_ALL = dataclasses.replace(
    CONFIGS["muon"],
    ema=0.2,
    compression=Compression(option="prune", sparsity=0.5),
    schedule=ScheduleConfig(batch_ramp=0.5, short_sequences=0.4, momentum_warmup=0.3),
)
"""What only data parallel does: averages, pruning; with a first batch of one sequence for two members."""


IN_PARTS = {
    "adam": tiny_run(steps=5, optimizer=OptimizerConfig(name="adam", peak_lr=1e-2)),
    "checkpointed": tiny_run(steps=5, checkpoint_activations=True, micro_batch_sequences=1),
    "layers that share a block": tiny_run(steps=5, model=tiny_model(depth=4, share_layers=2)),
    "factors": tiny_run(steps=5, model=tiny_model(embedding_rank=16, norm_embedding=True)),
    "head apart": tiny_run(steps=5, model=tiny_model(tie_embeddings=False)),
    "window": tiny_run(steps=5, model=tiny_model(window=8)),
    "convolution": tiny_run(steps=5, model=tiny_model(mixer="conv")),
    "encoder": tiny_run(steps=5, model=tiny_model(mask_token=1, mask_rate=0.3)),
}
"""What is trained in parts in other ways than most."""
TWO_HEADS = tiny_model(width=128)
SLOW = {name: OptimizerConfig(name=name, peak_lr=1e-3) for name in ("adamw", "muon", "adam", "sgd")}
"""A rate at which a difference of rounding does not grow: AdamW's first steps are as large for the least gradient as for any."""
BY_TENSORS = {
    "adamw": tiny_run(steps=20, model=TWO_HEADS, optimizer=SLOW["adamw"], batch_sequences=5, micro_batch_sequences=2),
    "muon": tiny_run(steps=20, model=TWO_HEADS, optimizer=SLOW["muon"], batch_sequences=6, micro_batch_sequences=2),
    "checkpointed": tiny_run(steps=5, model=TWO_HEADS, optimizer=SLOW["muon"], checkpoint_activations=True),
    "one more word": tiny_run(steps=5, model=tiny_model(width=128, vocab_size=321), optimizer=SLOW["muon"]),
    "head apart": tiny_run(steps=5, model=tiny_model(width=128, tie_embeddings=False), optimizer=SLOW["muon"]),
    "layers that share a block": tiny_run(
        steps=5, model=tiny_model(width=128, depth=4, share_layers=2), optimizer=SLOW["muon"]
    ),
    "norm and groups": tiny_run(
        steps=5, model=tiny_model(width=256, kv_groups=2, norm_embedding=True), optimizer=SLOW["muon"]
    ),
    "documents": tiny_run(steps=5, model=tiny_model(width=128, document_end=1), optimizer=SLOW["muon"]),
    "window": tiny_run(steps=5, model=tiny_model(width=128, window=8), optimizer=SLOW["muon"]),
}
"""What heads and words can be divided of."""
BY_GROUPS = ("muon", "one more word", "head apart", "norm and groups")
GROUPED = dataclasses.replace(BY_TENSORS["adamw"], steps=6)
"""A batch of five sequences does not divide between two groups."""
BY_STAGES = {
    **CONFIGS,
    "sgd": tiny_run(steps=5, model=tiny_model(depth=3), optimizer=SLOW["sgd"]),
    "checkpointed": IN_PARTS["checkpointed"],
    "factors": IN_PARTS["factors"],
    "head apart": IN_PARTS["head apart"],
    "window": IN_PARTS["window"],
    "lstm": tiny_run(steps=5, model=tiny_model(mixer="lstm")),
    "ramp": dataclasses.replace(
        CONFIGS["muon"], schedule=ScheduleConfig(batch_ramp=0.5, short_sequences=0.4, momentum_warmup=0.3)
    ),
}
"""What layers can be divided of; with a first batch of one sequence for two members."""
FORKS = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
"""Processes that are forked have PyTorch loaded already; later Pythons warn of it where there are threads."""
ROUNDED = tiny_run(steps=5, model=TWO_HEADS, precision="bf16")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def gang(tokens, folders, tmp_path_factory):
    """What two members have come to, all in one pair of processes."""
    trained(CONFIGS["muon"], tokens, folder=folders / "alone", stop_after=10)
    wanted = {
        **{(kind, name): Run(kind, config) for name, config in CONFIGS.items() for kind in ("ddp", "fsdp")},
        ("ddp", "all"): Run("ddp", WITH_ALL),
        **{("fsdp", name): Run("fsdp", config) for name, config in IN_PARTS.items()},
        **{("tp", name): Run("tp", config) for name, config in BY_TENSORS.items()},
        **{("pp", name): Run("pp", config) for name, config in BY_STAGES.items()},
        **{(kind, "rounded"): Run(kind, ROUNDED) for kind in ("ddp", "fsdp", "tp", "pp")},
        ("fsdp", "offloaded"): Run("fsdp", CONFIGS["muon"], offload=True),
        ("ddp", "begun by one"): Run("ddp", CONFIGS["muon"], folders / "alone", stop_after=15),
        ("fsdp", "begun by one"): Run("fsdp", CONFIGS["muon"], folders / "alone"),
        ("fsdp", "left"): Run("fsdp", CONFIGS["muon"], folders / "fsdp", stop_after=10),
        ("tp", "passed on"): Run("tp", BY_TENSORS["muon"], folders / "passed on", stop_after=5),
        ("pp", "passed on"): Run("pp", BY_TENSORS["muon"], folders / "passed on", stop_after=10),
        ("fsdp", "passed on"): Run("fsdp", BY_TENSORS["muon"], folders / "passed on", stop_after=15),
        ("pp", "deadline"): Run("pp", dataclasses.replace(CONFIGS["adamw"], steps=0, seconds=5.0)),
        ("ddp", "deadline"): Run("ddp", dataclasses.replace(CONFIGS["adamw"], steps=0, seconds=5.0)),
    }
    returned = together(runs, list(wanted.values()), tokens, logs=tmp_path_factory.mktemp("logs"))
    return {rank: dict(zip(wanted, outcomes, strict=True)) for rank, outcomes in returned.items()}


def agree(ours, theirs):
    assert not isinstance(theirs, str), theirs
    assert len(ours.losses) == len(theirs.losses)
    assert max(abs(a - b) / a for a, b in zip(ours.losses, theirs.losses, strict=True)) < NOISE
    assert ours.bpb == pytest.approx(theirs.bpb, rel=NOISE)
    assert ours.weights.keys() == theirs.weights.keys()
    for name, weight in ours.weights.items():
        torch.testing.assert_close(theirs.weights[name], weight, atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", CONFIGS)
def test_two_devices_train_as_one_does(tokens, gang, kind, name):
    agree(trained(CONFIGS[name], tokens), gang[0][kind, name])


@pytest.mark.parametrize("name", IN_PARTS)
def test_whatever_is_trained_in_parts_is_trained_as_a_whole(tokens, gang, name):
    agree(trained(IN_PARTS[name], tokens), gang[0]["fsdp", name])


@pytest.mark.parametrize("name", BY_TENSORS)
def test_parts_of_every_matrix_are_trained_as_wholes(tokens, gang, name):
    agree(trained(BY_TENSORS[name], tokens), gang[0]["tp", name])


@pytest.mark.parametrize("name", BY_STAGES)
def test_blocks_that_hand_on_what_comes_of_them_are_trained_as_one_network(tokens, gang, name):
    agree(trained(BY_STAGES[name], tokens), gang[0]["pp", name])


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "tp", "pp"])
def test_in_bf16_they_differ_by_its_rounding(tokens, gang, kind):
    assert gang[0][kind, "rounded"].losses == pytest.approx(trained(ROUNDED, tokens).losses, rel=1e-2)


def test_parts_may_wait_in_the_processors_memory(tokens, gang):
    agree(trained(CONFIGS["muon"], tokens), gang[0]["fsdp", "offloaded"])


def test_data_parallel_averages_and_prunes_and_ramps_its_batch_as_one_does(tokens, gang):
    agree(trained(WITH_ALL, tokens), gang[0]["ddp", "all"])


def test_a_run_goes_on_under_another_kind_and_number_of_devices(tokens, gang, folders):
    alone = trained(CONFIGS["muon"], tokens)
    by_all = gang[0]["fsdp", "begun by one"]  # 10 steps by one, 5 by data parallel, 5 sharded
    assert by_all.steps == alone.steps == 20
    after = gang[0]["fsdp", "left"]
    assert after.steps == 10
    for ours in (by_all, trained(CONFIGS["muon"], tokens, folder=folders / "fsdp")):
        assert ours.losses[-5:] == pytest.approx(alone.losses[-5:], rel=NOISE)
        assert ours.bpb == pytest.approx(alone.bpb, rel=NOISE)


def test_one_checkpoint_serves_parts_of_every_kind(tokens, gang, folders):
    alone = trained(BY_TENSORS["muon"], tokens)
    assert [gang[0][kind, "passed on"].steps for kind in ("tp", "pp", "fsdp")] == [5, 10, 15]
    ours = trained(BY_TENSORS["muon"], tokens, folder=folders / "passed on")
    assert ours.losses[-5:] == pytest.approx(alone.losses[-5:], rel=NOISE)
    assert ours.bpb == pytest.approx(alone.bpb, rel=NOISE)


@pytest.mark.parametrize("kind", ["ddp", "pp"])
def test_all_members_stop_at_one_step_by_the_leaders_clock(gang, kind):
    ours, theirs = (gang[rank][kind, "deadline"] for rank in (0, 1))
    assert ours.steps == theirs.steps
    assert ours.losses == theirs.losses
    assert ours.bpb == theirs.bpb
    # A step takes the leader 0.1 s, which are 0.2 of two devices; the other member's clock runs ten times as fast.
    assert 15 < ours.steps < 25
    assert ours.seconds == theirs.seconds <= 5.0


def test_the_leaders_record_has_what_all_members_took(gang):
    for outcomes in (gang[0], gang[1]):
        # The other member alone has a share; its counter was read when it began, at its first step and at the end.
        assert outcomes["ddp", "adamw"].joules == 2.0


@pytest.fixture(scope="module")
def gang_of_four(tokens, folders, tmp_path_factory):
    """What four members in two groups have come to; some of it goes on with what one has begun, or another team left."""
    for kind in IN_GROUPS:
        trained(GROUPED, tokens, folder=folders / kind, stop_after=2)
    wanted = {
        **{(kind, "left"): Run(kind, GROUPED, folders / kind, stop_after=4, parts=2) for kind in IN_GROUPS},
        **{(kind, "whole"): Run(kind, GROUPED, parts=2) for kind in IN_GROUPS},
        **{("fsdp,tp", name): Run("fsdp,tp", BY_TENSORS[name], parts=2) for name in BY_GROUPS},
        ("fsdp,tp", "rounded"): Run("fsdp,tp", ROUNDED, parts=2),
    }
    returned = together(runs, list(wanted.values()), tokens, logs=tmp_path_factory.mktemp("logs"), devices=4, start="fork")
    return dict(zip(wanted, returned[0], strict=True))


@FORKS
@pytest.mark.parametrize("kind", IN_GROUPS)
def test_groups_of_devices_that_divide_every_matrix_divide_the_batch(tokens, gang_of_four, kind):
    agree(trained(GROUPED, tokens), gang_of_four[kind, "whole"])


@FORKS
@pytest.mark.parametrize("name", BY_GROUPS)
def test_parts_of_parts_are_trained_as_wholes(tokens, gang_of_four, name):
    agree(trained(BY_TENSORS[name], tokens), gang_of_four["fsdp,tp", name])


@FORKS
def test_parts_of_parts_differ_in_bf16_by_its_rounding(tokens, gang_of_four):
    assert gang_of_four["fsdp,tp", "rounded"].losses == pytest.approx(trained(ROUNDED, tokens).losses, rel=1e-2)


@FORKS
@pytest.mark.parametrize("kind", IN_GROUPS)
def test_one_goes_on_with_what_groups_have_left_that_went_on_with_what_one_had(tokens, gang_of_four, folders, kind):
    left = gang_of_four[kind, "left"]
    assert not isinstance(left, str), left
    assert left.steps == 4
    alone, ours = trained(GROUPED, tokens), trained(GROUPED, tokens, folder=folders / kind)
    assert ours.losses[-2:] == pytest.approx(alone.losses[-2:], rel=NOISE)
    assert ours.bpb == pytest.approx(alone.bpb, rel=NOISE)
    for name, weight in alone.weights.items():
        torch.testing.assert_close(ours.weights[name], weight, atol=1e-3, rtol=0)


@FORKS
def test_parts_whose_members_are_killed_go_on_from_their_newest_checkpoint(tokens, folders, tmp_path):
    """One of each pair of processes dies with no time for a word, first in `fsdp`, then in `tp`, and all begin again."""
    config = dataclasses.replace(BY_TENSORS["adamw"], steps=4)
    wanted = [Run(kind, config, folders / f"{kind} killed", dies_after=3) for kind in ("fsdp", "tp")]
    returned = together(runs, wanted, tokens, logs=tmp_path, start="fork", restarts=2)
    alone = trained(config, tokens)
    by_tensors = returned[0][1]
    assert 0 < len(by_tensors.losses) < len(alone.losses)  # it did not begin from nothing
    for ours in returned[0]:
        assert ours.steps == 4
        assert ours.bpb == pytest.approx(alone.bpb, rel=NOISE)
