"""Muon's step in fp32 against torch's own, which rounds to bf16: seconds a step, interleaved, medians and their ratio.

On processors without bf16 instructions the latter is emulated. budgetlm uses whichever the measured ceilings favour.
"""

import statistics
import time

import torch

from budgetlm.train.optim import MuonFloat32

SHAPES = [(64, 64)] * 4 + [(192, 64)] * 2 + [(64, 192)]
REPEATS = 15


def step_seconds(muon: torch.optim.Optimizer) -> float:
    before = time.perf_counter()
    muon.step()
    return time.perf_counter() - before


def main() -> None:
    optimizers = []
    for kind in (MuonFloat32, torch.optim.Muon):
        weights = [torch.nn.Parameter(torch.randn(shape)) for _ in range(2) for shape in SHAPES]
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        optimizers.append(kind(weights, lr=1e-3, adjust_lr_fn="match_rms_adamw"))
    pairs = [[step_seconds(optimizer) for optimizer in optimizers] for _ in range(REPEATS)][2:]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print(
        f"fp32 {1e3 * ours:.2f} ms, torch's bf16 {1e3 * theirs:.2f} ms a step (2 blocks of width 64): ratio {ratio:.1f}, n = {len(pairs)}"
    )


if __name__ == "__main__":
    main()
