"""The precision that a benchmark trains in: by default the one that calibration would take on this machine."""

import argparse
from dataclasses import replace
from pathlib import Path

from budgetlm.commands.options import cache_folder
from budgetlm.passport import take_passport
from budgetlm.train.config import Precision, RunConfig


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Give a benchmark the option."""
    text = "what is trained in; `auto` is bf16 where its matrix products are faster here"
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help=text)


def precision_of(wanted: str) -> Precision:
    """What the option says, measured where it leaves that open."""
    if wanted != "auto":
        return "bf16" if wanted == "bf16" else "fp32"
    passport = take_passport("cpu", Path(cache_folder()))  # the highest figures of this machine, as a search has them
    return "bf16" if passport.bf16_gflops > passport.fp32_gflops else "fp32"


def computed_in(config: RunConfig, precision: Precision) -> RunConfig:
    """The run in a precision, with Muon's products likewise, and attention as calibration has it there."""
    halved = precision == "bf16"
    up_to = config.model.context_length if halved else 0
    return replace(config, precision=precision, bf16_is_fast=halved, products_up_to=up_to)
