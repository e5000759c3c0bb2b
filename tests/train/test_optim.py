import pytest
import torch

from budgetlm.errors import ConfigError
from budgetlm.model.transformer import build
from budgetlm.train.config import OPTIMIZERS, OptimizerConfig
from budgetlm.train.optim import (
    LR_SCALE,
    MuonFloat32,
    average_into,
    build_optimizers,
    set_decay,
    set_lr,
    set_momentum,
    set_training,
)
from tests.conftest import tiny_model


@pytest.mark.parametrize("shape", [(48, 32), (32, 48), (32, 32)])
def test_muon_in_fp32_takes_the_steps_of_torchs_own(shape):
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    options = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    moved = []
    for optimizer in (torch.optim.Muon, MuonFloat32):
        weights = [torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.flip(0).clone())]
        muon = optimizer(weights, **options)
        for step in range(5):
            for number, weight in enumerate(weights):
                weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(10 * step + number))
            muon.step()
        moved.append(torch.stack([w.detach() - start for w in weights]))
    # torch's own rounds to bf16, whose step is 1/256; the difference must be of that size and no larger.
    assert (moved[0] - moved[1]).norm() / moved[0].norm() < 0.02


def moved(name, gradient, *, steps=1, tied=False, before_step=lambda optimizers: None, **options):
    """A network's weights before and after steps along fixed gradients, by name."""
    network = build(tiny_model(tie_embeddings=tied), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in network.parameters():  # none at zero, where nothing would decay
            weight.normal_(0.0, 0.05, generator=generator)
    optimizers = build_optimizers(network, OptimizerConfig(name=name, **options), bf16_is_fast=False)
    start = {key: weight.detach().clone() for key, weight in network.named_parameters()}
    for _ in range(steps):
        before_step(optimizers)
        for weight in network.parameters():
            weight.grad = torch.randn(weight.shape, generator=generator) * gradient
        for optimizer in optimizers:
            optimizer.step()
    return start, {key: weight.detach() for key, weight in network.named_parameters()}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_is_trained_once(name, tied):
    network = build(tiny_model(tie_embeddings=tied), 0)
    optimizers = build_optimizers(network, OptimizerConfig(name=name), bf16_is_fast=False)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    trained = [id(weight) for group in groups for weight in group["params"]]
    assert sorted(trained) == sorted(id(weight) for weight in network.parameters())
    muon = [w for o in optimizers if isinstance(o, torch.optim.Muon) for g in o.param_groups for w in g["params"]]
    assert len(muon) == (14 if name == "muon" else 0)  # 7 matrices a block, no embedding


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_shrinks_matrices_by_the_rate_times_the_decay_in_every_optimizer_but_adam(name):
    start, after = moved(name, 0.0, peak_lr=0.01, weight_decay=0.3, embedding_lr=4.0)
    for key, weight in start.items():
        shrunk = 1 - 0.01 * 0.3 if weight.ndim == 2 and name != "adam" else 1.0
        assert torch.allclose(after[key], weight * shrunk, rtol=1e-6, atol=0), key


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_follows_what_it_is_set_to(name):
    start, after = moved(name, 0.0, weight_decay=0.3, before_step=lambda optimizers: set_decay(optimizers, 0.0))
    assert all(torch.equal(after[key], weight) for key, weight in start.items())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_embedding_and_head_move_as_many_times_faster_as_said_and_nothing_else_does(name):
    start, plain = moved(name, 1e-3, weight_decay=0.0, peak_lr=1e-3)
    _, faster = moved(name, 1e-3, weight_decay=0.0, peak_lr=1e-3, embedding_lr=3.0)
    for key, weight in start.items():
        times = 3 if "embed_tokens" in key or "lm_head" in key else 1
        assert torch.allclose(faster[key] - weight, times * (plain[key] - weight), rtol=1e-3, atol=1e-7), key


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_is_given_its_multiple_of_the_rate(name):
    start, plain = moved(name, 1e-3, weight_decay=0.0, peak_lr=1e-4)
    _, halved = moved(name, 1e-3, weight_decay=0.0, before_step=lambda optimizers: set_lr(optimizers, 0.5e-4))
    for key, weight in start.items():
        assert torch.allclose(2 * (halved[key] - weight), plain[key] - weight, rtol=1e-2, atol=1e-7), key
    optimizers = build_optimizers(build(tiny_model(), 0), OptimizerConfig(name=name, peak_lr=1e-4), bf16_is_fast=False)
    assert all(g["lr"] == pytest.approx(1e-4 * LR_SCALE.get(name, 1.0)) for o in optimizers for g in o.param_groups)


def test_momentum_is_set_for_muon_and_for_no_other():
    def low(optimizers):
        set_momentum(optimizers, 0.5)

    for name in OPTIMIZERS:
        start, usual = moved(name, 1e-3, steps=3)
        _, other = moved(name, 1e-3, steps=3, before_step=low)
        changed = {key for key in start if not torch.equal(usual[key], other[key])}
        assert all("proj" in key for key in changed)
        assert len(changed) == (14 if name == "muon" else 0)


def test_schedule_free_weights_to_evaluate_are_others_than_those_trained_at_and_go_back():
    network = build(tiny_model(), 0)
    optimizers = build_optimizers(network, OptimizerConfig(name="schedulefree"), bf16_is_fast=False)
    for step in range(3):
        for number, weight in enumerate(network.parameters()):
            weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(100 * step + number))
        optimizers[0].step()
    trained = [w.detach().clone() for w in network.parameters()]
    set_training(optimizers, on=False)
    evaluated = [w.detach().clone() for w in network.parameters()]
    assert not any(torch.allclose(a, b, atol=1e-5) for a, b in zip(trained, evaluated, strict=True))
    set_training(optimizers, on=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(trained, network.parameters(), strict=True))


def test_an_average_moves_by_its_weight():
    average, network = build(tiny_model(), 0), build(tiny_model(), 1)
    before = [w.detach().clone() for w in average.parameters()]
    average_into(average, network, 0.25)
    for now, old, new in zip(average.parameters(), before, network.parameters(), strict=True):
        assert torch.allclose(now, 0.75 * old + 0.25 * new, atol=1e-6)


@pytest.mark.parametrize(
    "bad",
    [
        {"name": "sgdd"},
        {"peak_lr": 0.0},
        {"peak_lr": float("nan")},
        {"embedding_lr": 0.0},
        {"weight_decay": -1.0},
        {"clip": 0.0},
    ],
)
def test_impossible_optimizers_are_refused(bad):
    with pytest.raises(ConfigError):
        OptimizerConfig(**bad)
