import sys
from types import SimpleNamespace

import pytest
import torch

from budgetlm.train.energy import LOOK_SECONDS, Counter, EnergyMeter, boards, packages
from tests.conftest import tiny_run
from tests.train.parallel.gang import trained


def a_machine(folder, *joules, capacity=1000):
    """Packages that have counted so many joules, with a part of one and another kind beside them."""
    names = [*(f"package-{i}" for i in range(len(joules))), "psys"]
    for number, name in enumerate(names):
        zone = folder / f"intel-rapl:{number}"
        zone.mkdir(parents=True)
        (zone / "name").write_text(f"{name}\n")
        (zone / "max_energy_range_uj").write_text(f"{capacity * 10**6}\n")
        count(folder, number, [*joules, 77][number])
    core = folder / "intel-rapl:0:0"
    core.mkdir()
    (core / "name").write_text("core\n")
    return folder


def count(folder, number, joules):
    (folder / f"intel-rapl:{number}" / "energy_uj").write_text(f"{round(joules * 10**6)}\n")


def test_a_run_has_its_share_of_what_the_packages_took(tmp_path):
    a_machine(tmp_path, 100, 500)
    meter = EnergyMeter(packages(tmp_path), share=0.25)
    assert meter.joules() == 0
    count(tmp_path, 0, 140)
    count(tmp_path, 1, 600)
    assert meter.joules() == pytest.approx(35)
    assert meter.joules() == pytest.approx(35)


def test_a_counter_that_begins_anew_goes_on(tmp_path):
    a_machine(tmp_path, 990)
    meter = EnergyMeter(packages(tmp_path))
    count(tmp_path, 0, 5)
    meter.look(0.0)
    count(tmp_path, 0, 3)
    meter.look(LOOK_SECONDS - 1)  # too early to read it
    count(tmp_path, 0, 4)
    meter.look(LOOK_SECONDS)
    assert meter.joules() == pytest.approx(15 + 999)


@pytest.mark.parametrize("harm", ["energy_uj", "max_energy_range_uj", "name"])
def test_what_cannot_be_read_is_not_known(tmp_path, harm):
    a_machine(tmp_path, 1)
    assert len(packages(tmp_path)) == 1
    (tmp_path / "intel-rapl:0" / harm).unlink()
    assert packages(tmp_path) == packages(tmp_path / "nowhere") == []
    assert EnergyMeter([]).joules() == 0


def test_a_counter_that_is_lost_ends_nothing(tmp_path):
    a_machine(tmp_path, 1)
    meter = EnergyMeter(packages(tmp_path))
    count(tmp_path, 0, 3)
    meter.look(0.0)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert meter.joules() == pytest.approx(2)


def test_a_gpu_says_it_through_nvidias_library(monkeypatch):
    """The library's own names and units, on a machine without a GPU."""
    asked = []
    library = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda name: asked.append(name) or "board",
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: {"board": 2500 * len(asked)}[handle],
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="12-ab"))
    meter = EnergyMeter(boards())
    asked.append("more")
    assert meter.joules() == pytest.approx(2.5)
    assert asked[0] == "GPU-12-ab"

    def refuse():
        raise RuntimeError("driver not loaded")

    library.nvmlInit = refuse
    assert boards() == []


def test_a_record_has_what_its_run_took(tokens, monkeypatch):
    taken = iter(range(10, 10**6, 10))
    monkeypatch.setattr(EnergyMeter, "of", lambda _: EnergyMeter([Counter(lambda: next(taken))]))
    config = tiny_run(steps=2)
    assert trained(config, tokens).joules > 0
    monkeypatch.setattr(EnergyMeter, "of", lambda _: EnergyMeter([]))
    assert trained(config, tokens).joules == 0
