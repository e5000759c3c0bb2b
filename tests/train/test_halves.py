import dataclasses

import numpy as np
import pytest
import torch

from budgetlm.budget.clock import Clock, Meter
from budgetlm.model.transformer import build
from budgetlm.train.config import Label, OptimizerConfig
from budgetlm.train.halves import Halves
from budgetlm.train.loop import Checkpoints, train
from budgetlm.train.step import Stepper
from tests.conftest import tiny_model, tiny_run
from tests.model.test_transformer import TOKENS_BL, trained_looking

LABEL = Label(run="x", kind="rung", trial=0, rung=0, recipe={}, target_seconds=9.0)


def test_the_blocks_matrices_are_bf16_and_all_else_is_the_networks_own():
    network = trained_looking(tiny_model(kv_groups=2, norm_embedding=True))
    halves = Halves(network)
    dtypes = {name: weight.dtype for name, weight in halves.network.named_parameters()}
    for (name, ours), theirs in zip(network.named_parameters(), halves.network.parameters(), strict=True):
        in_blocks = ".layers." in name and ours.ndim == 2
        assert dtypes[name] == (torch.bfloat16 if in_blocks else torch.float32)
        assert (ours is theirs) == (not in_blocks)
        assert ours.dtype == torch.float32
    assert halves.network.lm_head.weight is network.model.embed_tokens.weight
    assert halves.network.model.cos_LS is network.model.cos_LS


def test_refreshing_rounds_what_has_moved():
    network = trained_looking(tiny_model())
    halves = Halves(network)
    ours, theirs = network.model.layers[0].mlp.up_proj.weight, halves.network.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        ours.add_(1.0)
    assert not torch.equal(theirs, ours.bfloat16())
    halves.refresh()
    assert torch.equal(theirs, ours.bfloat16())


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("again", [False, True])
def test_a_step_is_that_of_autocast_to_the_bit(name, again):
    def weights_after(precision):
        config = tiny_run(
            steps=3,
            precision=precision,
            optimizer=OptimizerConfig(name=name),
            checkpoint_activations=again,
            batch_sequences=3,
        )
        network = build(config.model, 0)
        stepper = Stepper(config, network)
        losses = [stepper.step(TOKENS_BL.numpy(), 1e-2) for _ in range(3)]
        assert all(weight.grad is None for weight in network.parameters())
        return losses, list(network.parameters())

    (losses, ours), (expected, theirs) = weights_after("bf16-master"), weights_after("bf16")
    assert losses == expected
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert {weight.dtype for weight in ours} == {torch.float32}


def test_gradients_of_several_passes_add_up_in_fp32():
    network = trained_looking(tiny_model())
    halves = Halves(network)
    weight = network.model.layers[0].mlp.up_proj.weight
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            halves.network.loss(TOKENS_BL[:, :-1], TOKENS_BL[:, 1:]).backward()
    twice = weight.grad
    assert twice.dtype == torch.float32
    assert all(half.grad is None for half in halves._halves)
    weight.grad = None
    with torch.autocast("cpu", torch.bfloat16):
        halves.network.loss(TOKENS_BL[:, :-1], TOKENS_BL[:, 1:]).backward()
    assert torch.equal(twice, 2 * weight.grad)


@pytest.mark.parametrize("changes", [{}, {"ema": 0.1}, {"optimizer": OptimizerConfig(name="schedulefree", peak_lr=1e-2)}])
def test_a_run_learns_and_goes_on_from_its_checkpoint_as_if_it_had_not_been_cut(tmp_path, tokens, changes):
    model = tiny_model(vocab_size=tokens.facts.vocab_size)
    config = tiny_run(model=model, steps=12, precision="bf16-master", **{"micro_batch_sequences": 2, **changes})
    short = train(dataclasses.replace(config, steps=1), LABEL, tokens, Meter(Clock())).record
    whole = train(config, LABEL, tokens, Meter(Clock())).record
    assert whole.bpb < short.bpb - 0.5
    checkpoints, steps = Checkpoints(folder=tmp_path / "c", every_steps=6), iter(range(100))
    cut = train(config, LABEL, tokens, Meter(Clock()), checkpoints=checkpoints, should_stop=lambda: next(steps) == 6)
    assert cut.record.state == "interrupted"
    assert train(config, LABEL, tokens, Meter(Clock()), checkpoints=checkpoints).record.bpb == whole.bpb


# --- CUDA graphs, as far as a CPU goes --------------------------------------------------------------------------------


def test_cuda_graphs_are_asked_of_the_compiler_and_gradients_stay_where_they_are(monkeypatch):
    asked, begun = [], []
    monkeypatch.setattr(torch, "compile", lambda function, mode=None, dynamic=None: asked.append(mode) or function)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(1))
    rows = np.asarray(TOKENS_BL)

    def weights_after(**changes):
        config = tiny_run(steps=2, batch_sequences=3, micro_batch_sequences=1, **changes)
        network = build(config.model, 0)
        stepper, grads = Stepper(config, network), [weight.grad for weight in network.parameters()]
        losses = [stepper.step(rows, 1e-2) for _ in range(2)]
        if config.cuda_graphs:
            assert all(weight.grad is grad for weight, grad in zip(network.parameters(), grads, strict=True))
        return losses, list(network.parameters())

    plain = weights_after()
    assert (asked, begun) == ([], [])
    compiled = weights_after(compile=True)
    assert (asked, begun) == ([None, None], [])
    graphs = weights_after(compile=True, cuda_graphs=True)
    assert asked[2:] == ["reduce-overhead"] * 2
    assert len(begun) == 6  # passes
    assert graphs[0] == compiled[0] == plain[0]
    assert all(torch.equal(a, b) for a, b in zip(graphs[1], plain[1], strict=True))
    half = weights_after(compile=True, cuda_graphs=True, precision="bf16-master")
    assert half[0] == pytest.approx(plain[0], rel=0.01)
