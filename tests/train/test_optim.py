import pytest
import torch

from budgetlm.errors import ConfigError
from budgetlm.model.transformer import build
from budgetlm.train.config import OptimizerConfig
from budgetlm.train.optim import MuonFloat32, build_optimizers
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


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_is_trained_once_and_only_matrices_decay(name, tied):
    network = build(tiny_model(tie_embeddings=tied), 0)
    optimizers = build_optimizers(network, OptimizerConfig(name=name, weight_decay=0.3), bf16_is_fast=False)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    trained = [id(weight) for group in groups for weight in group["params"]]
    assert sorted(trained) == sorted(id(weight) for weight in network.parameters())
    for group in groups:
        assert all((weight.ndim >= 2) == (group["weight_decay"] == 0.3) for weight in group["params"])
    muon = [w for o in optimizers if isinstance(o, torch.optim.Muon) for g in o.param_groups for w in g["params"]]
    assert len(muon) == (14 if name == "muon" else 0)  # 7 matrices a block, no embedding


@pytest.mark.parametrize(
    "bad", [{"name": "sgdd"}, {"peak_lr": 0.0}, {"peak_lr": float("nan")}, {"weight_decay": -1.0}, {"clip": 0.0}]
)
def test_impossible_optimizers_are_refused(bad):
    with pytest.raises(ConfigError):
        OptimizerConfig(**bad)
