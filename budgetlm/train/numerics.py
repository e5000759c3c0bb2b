"""How exactly the matrix products of a run are computed: a setting of the whole process, so every run states its own."""

import torch

from budgetlm.train.config import Matmul


def set_matmul(matmul: Matmul, device: str) -> None:
    """Settle how fp32 matrices are multiplied from now on, whatever an earlier run of this process wanted.

    `highest` is fp32 throughout; `high` lets a GPU round the factors to TF32 (10 bits of mantissa), or to pairs of bf16; `medium` to
    bf16. What goes through autocast is bf16 anyhow, and not concerned. `auto` is `high` on a GPU and `highest` on a CPU.

    Source: `torch.set_float32_matmul_precision` in PyTorch's documentation.
    """
    usual = "high" if device == "cuda" else "highest"
    torch.set_float32_matmul_precision(usual if matmul == "auto" else matmul)
