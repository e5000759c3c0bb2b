import multiprocessing

import numpy as np
import pytest
import torch

from budgetlm.train import peak
from budgetlm.train.peak import PeakMemory

MIB = 2**20


def touched(mib: int) -> torch.Tensor:
    return torch.ones(mib * MIB // 4)


def peak_of_what_is_freed_again() -> int:
    held_before = touched(64)
    measurement = PeakMemory.begin("cpu")
    large = touched(128)
    del large
    assert len(touched(16)) + len(held_before)
    return measurement.bytes()


def peak_of_reading_a_file(path: str) -> int:
    measurement = PeakMemory.begin("cpu")
    mapped = np.memmap(path, dtype="uint8", mode="r")
    assert mapped[::4096].sum() == 0
    return measurement.bytes()


def peak_where_marks_cannot_be_reset() -> int:
    peak.CLEAR_REFS = peak.CLEAR_REFS / "missing"
    peak.STATUS = peak.STATUS / "missing"
    measurement = PeakMemory.begin("cpu")
    highest_so_far = peak.resource.getrusage(peak.resource.RUSAGE_SELF).ru_maxrss // 1024
    large = touched(highest_so_far + 128)
    del large
    return measurement.bytes()


def in_own_process(function, *arguments):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def test_the_peak_is_the_most_that_was_held_above_what_was_there_before():
    assert in_own_process(peak_of_what_is_freed_again) == pytest.approx(128 * MIB, rel=0.1)


def test_where_marks_cannot_be_reset_only_a_new_highest_one_is_seen():
    assert in_own_process(peak_where_marks_cannot_be_reset) >= 128 * MIB


def test_pages_of_mapped_files_are_not_counted(tmp_path):
    (tmp_path / "tokens").write_bytes(bytes(64 * MIB))
    assert in_own_process(peak_of_reading_a_file, str(tmp_path / "tokens")) < 8 * MIB
