"""Tensors that are spread over devices (PyTorch's DTensor): asked, gathered, and cut. Those that are not stay as they are."""

from typing import Any

from torch import Tensor


def is_spread(tensor: Any) -> bool:
    """Whether other devices hold parts, or copies, of it. Asked without loading what only teams need."""
    return hasattr(tensor, "device_mesh")


def gathered(tensor: Tensor) -> Tensor:
    """All of it, on every device; all of them call this."""
    if not is_spread(tensor):
        return tensor
    whole: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]  # a DTensor's
    return whole


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """Of a tensor that every device has whole, what each is to hold, where it holds `like` now. Nothing is sent."""
    if not is_spread(like) or whole.shape != like.shape:
        return whole
    from torch.distributed.tensor import DTensor, Replicate

    assert isinstance(like, DTensor)
    mesh = like.device_mesh
    same = DTensor.from_local(whole.to(mesh.device_type), mesh, [Replicate()] * mesh.ndim, run_check=False)
    return same.redistribute(placements=like.placements).to(like.device)
