"""What vendors say that their devices can do: ceilings to plan with where the device itself is not at hand.

Published figures are peaks. A large matrix product reaches perhaps three quarters of one, and training less: before
anything is measured it is taken to reach `search.sizing.UTILISATION` of it. Nothing here may stand beside measured figures:
`published_passport` says in its name that it was not measured, and its `id` is that of no machine.
"""

import difflib
import platform
from dataclasses import dataclass

import budgetlm
from budgetlm.errors import ConfigError
from budgetlm.passport import Passport


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device as its vendor describes it. Dense peaks: where a sheet quotes tensor cores with sparsity, half of that."""

    key: str
    """What a person types: `h100`."""
    name: str
    memory_bytes: int
    """Memory by the sheet, a GB taken as 1e9 bytes. Drivers report a little more: an A10G 24.1e9, an H100 85.0e9."""
    fp32_tflops: float
    """fp32 outside the tensor cores, which is what PyTorch uses unless TF32 is allowed."""
    bf16_tflops: float
    """bf16 tensor cores, dense, accumulating in fp32; 0 where the device has none and PyTorch emulates them."""
    bandwidth_gb_per_second: float
    """Memory bandwidth, 1e9 bytes a second."""
    source: str
    """The vendor's document, and where in it the figures stand."""


def _device(key: str, name: str, gb: int, fp32: float, bf16: float, bandwidth: float, source: str) -> Device:
    return Device(
        key=key,
        name=name,
        memory_bytes=gb * 10**9,
        fp32_tflops=fp32,
        bf16_tflops=bf16,
        bandwidth_gb_per_second=bandwidth,
        source=source,
    )


DEVICES: dict[str, Device] = {
    device.key: device
    for device in (
        _device(
            "h100", "NVIDIA H100 SXM 80 GB", 80, 67, 989.5, 3350,
            "NVIDIA H100 Tensor Core GPU data sheet, specifications, column SXM (BF16 1,979 with sparsity)",
        ),
        _device(
            "h100-pcie", "NVIDIA H100 PCIe 80 GB", 80, 51, 756.5, 2000,
            "NVIDIA H100 Tensor Core GPU data sheet, specifications, column PCIe (BF16 1,513 with sparsity)",
        ),
        _device(
            "h200", "NVIDIA H200 SXM 141 GB", 141, 67, 989.5, 4800,
            "NVIDIA H200 Tensor Core GPU data sheet, specifications, column SXM (BF16 1,979 with sparsity)",
        ),
        _device(
            "b200", "NVIDIA B200 180 GB (HGX)", 180, 75, 2250, 7700,
            "NVIDIA Blackwell data sheet, individual GPU specifications, column HGX B200 (BF16 4.5 PFLOPS with sparsity)",
        ),
        _device(
            "a100", "NVIDIA A100 SXM 80 GB", 80, 19.5, 312, 2039,
            "NVIDIA A100 Tensor Core GPU data sheet, specifications, column 80GB SXM (BF16 312, 624 with sparsity)",
        ),
        _device(
            "a100-40", "NVIDIA A100 SXM 40 GB", 40, 19.5, 312, 1555,
            "NVIDIA A100 Tensor Core GPU Architecture white paper, table of A100 (40 GB SXM) specifications",
        ),
        _device(
            "l4", "NVIDIA L4", 24, 30.3, 121, 300,
            "NVIDIA L4 Tensor Core GPU data sheet, specifications (BF16 242 with sparsity)",
        ),
        _device(
            "l40s", "NVIDIA L40S", 48, 91.6, 362.05, 864,
            "NVIDIA L40S data sheet, specifications (BF16 362.05, 733 with sparsity)",
        ),
        _device(
            "a10", "NVIDIA A10", 24, 31.2, 125, 600,
            "NVIDIA A10 Tensor Core GPU data sheet, specifications (BF16 125, 250 with sparsity)",
        ),
        _device(
            "a10g", "NVIDIA A10G (AWS G5)", 24, 35, 70, 600,
            "NVIDIA A10G data sheet for AWS, 17 February 2022, specifications (BF16 70, 140 with sparsity)",
        ),
        _device(
            "v100", "NVIDIA V100 SXM2 16 GB", 16, 15.7, 0, 900,
            "NVIDIA V100 Tensor Core GPU data sheet, specifications, column SXM2 (tensor cores for fp16 only, no bf16)",
        ),
        _device(
            "v100-32", "NVIDIA V100 SXM2 32 GB", 32, 15.7, 0, 900,
            "NVIDIA V100 Tensor Core GPU data sheet, specifications, column SXM2 (tensor cores for fp16 only, no bf16)",
        ),
        _device(
            "t4", "NVIDIA T4", 16, 8.1, 0, 320,
            "NVIDIA T4 Tensor Core GPU data sheet, specifications (tensor cores for fp16 and integers only, no bf16)",
        ),
        _device(
            "3090", "NVIDIA GeForce RTX 3090", 24, 35.6, 71, 936,
            "NVIDIA Ampere GA102 GPU Architecture white paper, GeForce RTX 3090 (BF16 with FP32 accumulate 71, 142 sparse)",
        ),
        _device(
            "4090", "NVIDIA GeForce RTX 4090", 24, 82.6, 165.2, 1008,
            "NVIDIA Ada GPU Architecture white paper, GeForce RTX 4090 (BF16 with FP32 accumulate 165.2, 330.4 sparse)",
        ),
        _device(
            "5090", "NVIDIA GeForce RTX 5090", 32, 104.8, 209.5, 1792,
            "NVIDIA RTX Blackwell GPU Architecture white paper, GeForce RTX 5090 (BF16 with FP32 accumulate 209.5, 419 sparse)",
        ),
        _device(
            "mi300x", "AMD Instinct MI300X", 192, 163.4, 1307.4, 5300,
            "AMD Instinct MI300X Accelerator data sheet, peak performance (bfloat16 1,307.4, 2,614.9 with sparsity)",
        ),
    )
}  # fmt: skip
"""Every device that can be planned for, by what a person types."""


def find_device(key: str) -> Device:
    """The device of this key, in capitals or not.

    Raises:
        ConfigError: none of that key is known; the message names those that are near.
    """
    device = DEVICES.get(key.strip().lower())
    if device is None:
        near = difflib.get_close_matches(key.strip().lower(), DEVICES, n=3, cutoff=0.4)
        hint = f"Did you mean {' or '.join(f'`{n}`' for n in near)}?" if near else f"Known: {', '.join(DEVICES)}."
        raise ConfigError(f"the published figures of a device {key!r} are not known here. {hint}")
    return device


def published_passport(key: str) -> Passport:
    """A passport of a device that is not here, made of published ceilings.

    Raises:
        ConfigError: none of that key is known.
    """
    device = find_device(key)
    return Passport(
        device="cuda",  # what PyTorch calls AMD's devices too
        name=f"{device.name} (published ceilings, not measured)",
        threads=0,
        memory_bytes=device.memory_bytes,
        torch="-",
        python=platform.python_version(),
        budgetlm=budgetlm.__version__,
        system="-",
        fp32_gflops=device.fp32_tflops * 1000,
        bf16_gflops=device.bf16_tflops * 1000,
    )
