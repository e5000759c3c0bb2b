import dataclasses
from unittest import mock

import pytest

from budgetlm.compress.apply import Compression
from budgetlm.config import TrainSettings
from budgetlm.errors import ConfigError
from budgetlm.final import final
from budgetlm.model.footprint import host_bytes, training_memory
from budgetlm.recipe.oracle import team_ways
from budgetlm.recipe.scale import at_target, least_bytes, memory_violation, truncated
from budgetlm.search.plan import load_plan
from budgetlm.train.config import OptimizerConfig
from budgetlm.train.parallel.crew import crew_here
from budgetlm.train.parallel.kinds import KINDS, check_kind
from budgetlm.train.parallel.pp import stages
from budgetlm.train.parallel.team import ALONE
from budgetlm.watch import Watcher
from tests.conftest import tiny_model, tiny_run


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_batch_has_a_sequence_for_every_device(kind):
    check_kind(tiny_run(steps=1, batch_sequences=4), kind, 4)
    with pytest.raises(
        ConfigError, match="a batch of 4 sequences cannot be divided among 5 devices. Give `--devices 4` or fewer"
    ):
        check_kind(tiny_run(steps=1, batch_sequences=4), kind, 5)


NOT_IN_PARTS = [
    ({"compression": Compression(option="prune")}, "`prune` looks at whole matrices"),
    ({"ema": 0.1}, "`ema` would need a second network"),
    ({"precision": "bf16-master"}, "`bf16-master` keeps copies"),
    ({"compile": True, "cuda_graphs": True}, "CUDA graphs"),
]
NOT_OF_PARTS = [({"optimizer": OptimizerConfig(name="adafactor")}, "`adafactor` trains whole matrices; adamw, muon")]
REFUSED = {
    "fsdp": [*NOT_IN_PARTS, *NOT_OF_PARTS, ({"model": tiny_model(mixer="lstm")}, "PyTorch's LSTM")],
    "tp": [
        *NOT_IN_PARTS,
        *NOT_OF_PARTS,
        ({"model": tiny_model(mixer="conv")}, "heads of a decoder's attention"),
        ({"model": tiny_model(mask_token=1)}, "heads of a decoder's attention"),
        ({"model": tiny_model(width=128, embedding_rank=16)}, "an embedding in two factors"),
        ({"model": tiny_model(width=128, kv_groups=2)}, "its 1 key/value heads are not a multiple"),
    ],
    "pp": [
        *NOT_IN_PARTS,
        ({"model": tiny_model(depth=1)}, "each is to have a layer, and there are 1"),
        ({"model": tiny_model(depth=4, share_layers=2)}, "a block that layers share"),
        ({"model": tiny_model(mask_token=1)}, "an encoder's loss"),
        ({"model": tiny_model(document_end=1)}, "where documents end"),
    ],
}


@pytest.mark.parametrize(("kind", "changes", "why"), [(kind, *row) for kind, rows in REFUSED.items() for row in rows])
def test_what_cannot_be_trained_in_parts_is_refused_with_the_reason(kind, changes, why):
    whole = tiny_run(steps=1, model=tiny_model(width=128))
    check_kind(whole, kind, 2)
    config = dataclasses.replace(whole, **changes)
    check_kind(config, "ddp", 2)
    with pytest.raises(ConfigError, match=f"cannot be trained in parts .`{kind}`. by 2 devices.*{why}.*--parallel ddp"):
        check_kind(config, kind, 2)


@pytest.mark.parametrize(("depth", "members"), [(2, 2), (7, 2), (12, 4), (5, 5)])
@pytest.mark.parametrize("vocabulary", [16, 4096])
def test_stages_have_all_layers_in_order_and_the_last_no_more_than_others(depth, members, vocabulary):
    found = stages(tiny_model(depth=depth, vocab_size=vocabulary), members)
    assert [layer for stage in found for layer in stage] == list(range(depth))
    sizes = [len(stage) for stage in found]
    assert min(sizes) >= 1
    assert max(sizes[:-1]) - min(sizes[:-1]) <= 1
    assert sizes[-1] <= max(sizes[:-1])
    if vocabulary > 16:
        assert sizes[-1] == 1  # a head of so many words is more work than such a block


def test_no_more_devices_than_there_are():
    with mock.patch("budgetlm.train.parallel.crew.visible_gpus", return_value=["0", "1"]):
        assert [crew_here(wanted, "cuda").count for wanted in (0, 1, 2)] == [2, 1, 2]
        with pytest.raises(
            ConfigError, match="3 devices are asked for, but this machine has 2 GPUs to use .*Give `--devices 2`"
        ):
            crew_here(3, "cuda")
    assert [crew_here(wanted, "cpu").count for wanted in (0, 1)] == [1, 1]
    with pytest.raises(ConfigError, match="has [0-9]+ cores"):
        crew_here(10**6, "cpu")


@pytest.mark.parametrize("train", [{"final_devices": 10**6}, {"final_devices": 2, "parallel": "fsdp"}], ids=str)
def test_a_refused_final_is_charged_nothing(searched, cache, clock, monkeypatch, train):
    monkeypatch.setattr("budgetlm.final_team.check_kind", refuse)
    config = dataclasses.replace(searched, train=dataclasses.replace(searched.train, **train))
    with pytest.raises(ConfigError):
        final("tiny", cache, clock, Watcher(), config=config)
    from budgetlm.budget.database import file_address
    from budgetlm.budget.ledger import open_ledger

    assert open_ledger(file_address(config.folder / "study.db")).accounts() == ["search"]


def refuse(config, kind, devices, parts):
    assert kind == "fsdp"
    raise ConfigError("not in parts")


def worlds(searched):
    """That of a study on a CPU, and the same on a GPU."""
    cpu = load_plan(searched.folder).world
    return cpu, dataclasses.replace(cpu, device="cuda")


def test_parts_are_for_what_does_not_fit_a_gpu_and_on_a_cpu_only_if_asked_for(searched):
    cpu, gpu = worlds(searched)
    assert [[way.kind for way in team_ways(world, 4, "auto")] for world in (gpu, cpu)] == [["ddp", "fsdp"], ["ddp"]]
    for world in (cpu, gpu):
        for kind in KINDS:
            assert [way.kind for way in team_ways(world, 4, kind)] == [kind]
    assert [way.world.shards for way in team_ways(gpu, 4, "auto")] == [1, 4]
    assert team_ways(cpu, 4, "auto")[0].world.memory_bytes == cpu.memory_bytes // 4


def test_of_two_ways_at_once_the_one_with_the_fewest_parts_that_fits_is_taken(searched):
    _, gpu = worlds(searched)
    ways = team_ways(gpu, 8, "ddp,tp")
    assert [(way.parts, way.world.shards) for way in ways] == [(2, 2), (4, 4)]
    assert [way.parts for way in team_ways(gpu, 5, "ddp,tp")] == [5]
    whole = tiny_run(steps=1, model=tiny_model(width=128), batch_sequences=4)
    check_kind(whole, "ddp,tp", 8, 2)
    with pytest.raises(ConfigError, match="at least two groups of at least two devices each, but 5 devices do not divide"):
        check_kind(whole, "ddp,tp", 5, 5)
    with pytest.raises(ConfigError, match="4 sequences cannot be divided among 6 devices. Give `--devices 8`"):
        check_kind(whole, "ddp,tp", 12, 2)
    with pytest.raises(ConfigError, match="its 2 key/value heads are not a multiple"):
        check_kind(whole, "ddp,tp", 8, 4)


def test_parts_of_parts_are_counted_of_all_devices_in_groups_as_small_as_can_be(searched):
    _, gpu = worlds(searched)
    assert [(way.parts, way.world.shards) for way in team_ways(gpu, 8, "fsdp,tp")] == [(2, 8)]
    assert [(way.parts, way.world.shards) for way in team_ways(gpu, 9, "fsdp,tp")] == [(3, 9)]
    assert [way.parts for way in team_ways(gpu, 5, "fsdp,tp")] == [5]
    whole = tiny_run(steps=1, model=tiny_model(width=128), batch_sequences=4)
    check_kind(whole, "fsdp,tp", 8, 2)
    with pytest.raises(
        ConfigError, match=r"5 devices do not divide into such of 5.*or one of the two alone \(`--parallel fsdp`"
    ):
        check_kind(whole, "fsdp,tp", 5, 5)
    with pytest.raises(ConfigError, match="its width of 128 is not a multiple of its 3 groups"):
        check_kind(whole, "fsdp,tp", 6, 2)
    with pytest.raises(ConfigError, match="4 sequences cannot be divided among 6 devices"):
        check_kind(whole, "fsdp,tp", 12, 2)
    averaged = dataclasses.replace(whole, ema=0.1)
    with pytest.raises(ConfigError, match="second network in parts"):
        check_kind(averaged, "fsdp,tp", 8, 2)


def test_parts_keep_no_copies_of_matrices_where_calibration_has_taken_them(searched):
    for world in worlds(searched):
        copied = dataclasses.replace(world, precision="bf16-master")
        found = {kind: team_ways(copied, 4, kind)[0].world.precision for kind in KINDS}
        assert found == {kind: "bf16-master" if kind == "ddp" else "bf16" for kind in KINDS}


def test_what_waits_in_the_processors_memory_takes_none_of_the_devices(searched):
    cpu, gpu = worlds(searched)
    assert [(way.kind, way.world.offload) for way in team_ways(gpu, 1, "auto", offload=True)] == [("fsdp", True)]
    assert not team_ways(cpu, 2, "fsdp", offload=True)[0].world.offload
    counts = {"micro_batch_sequences": 1, "optimizer": "adamw", "precision": "fp32"}
    rest = {"checkpoint_activations": True, "accumulates": False, "shards": 4}
    model = tiny_model(depth=12, width=512)
    held, waits = (training_memory(model, **counts, **rest, offload=offload).peak for offload in (False, True))
    assert host_bytes(model) / 4 / 2 < held - waits < host_bytes(model) / 4


def test_a_search_counts_its_final_as_it_will_be_spread_and_its_rungs_on_one_device(searched):
    plan, (_, gpu) = load_plan(searched.folder), worlds(searched)
    target, large = plan.target_seconds, dataclasses.replace(plan.default, depth=24, width=1024, batch_tokens=512)
    one = dataclasses.replace(gpu, memory_bytes=int(0.6 * least_bytes(large, target, gpu)))
    eight = dataclasses.replace(one, final_devices=8)
    assert memory_violation(large, target, one) > 0 > memory_violation(large, target, eight)
    assert at_target(large, target, eight).model.depth == 24
    for world in (one, dataclasses.replace(eight, final_parallel="ddp")):
        with pytest.raises(ConfigError, match="needs about"):
            at_target(large, target, world)
    with pytest.raises(ConfigError, match="needs about"):
        truncated(large, target / 4, target, eight)
    averaged = dataclasses.replace(large, ema=0.1)  # which is not trained in parts
    assert memory_violation(averaged, target, eight) > 0


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"fsdp"}))
def test_offload_is_refused_where_no_parts_wait(kind):
    with pytest.raises(ConfigError, match=f"parts of `fsdp`, but `train.parallel` is `{kind}`.*leave `offload` out"):
        TrainSettings(parallel=kind, offload=True)


def test_ways_that_cannot_be_combined_are_refused_with_those_that_can():
    with pytest.raises(
        ConfigError, match="train.parallel cannot be 'pp,tp'.*of two at once there are `ddp,tp` and `fsdp,tp`"
    ):
        TrainSettings(parallel="pp,tp")


def test_a_processor_has_nowhere_to_offload_to(searched, cache, clock):
    config = dataclasses.replace(searched, train=dataclasses.replace(searched.train, offload=True))
    with pytest.raises(ConfigError, match="the device is the processor. Leave it out"):
        final("tiny", cache, clock, Watcher(), config=config)


def test_one_of_several_devices_holds_less():
    counts = {"micro_batch_sequences": 1, "optimizer": "adamw", "precision": "fp32"}
    rest = {"checkpoint_activations": True, "accumulates": False}
    model = tiny_model(depth=12, width=512)
    one, *more = [training_memory(model, **counts, **rest, shards=shards).peak for shards in (1, 2, 4, 8)]
    assert [one, *more] == sorted([one, *more], reverse=True)
    assert more[-1] < one / 2


@pytest.mark.parametrize("total", [1, 5, 6, 7])
def test_the_passes_of_one_device_are_all_of_a_batch(total):
    passes = ALONE.passes(total, 3)
    rows = list(range(total))
    assert [row for part, _ in passes for row in rows[part]] == rows
    assert sum(share for _, share in passes) == pytest.approx(1)
