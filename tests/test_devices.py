import json
from dataclasses import asdict

import pytest

from budgetlm.devices import DEVICES, find_device, published_passport
from budgetlm.errors import ConfigError
from budgetlm.passport import Passport, identify
from budgetlm.search.sizing import suited_vocabulary


def test_every_device_says_where_its_figures_stand():
    for key, device in DEVICES.items():
        assert device.key == key == key.lower()
        assert any(word in device.source for word in ("data sheet", "white paper"))
        assert min(device.memory_bytes, device.fp32_tflops, device.bandwidth_gb_per_second) > 0


@pytest.mark.parametrize(
    ("key", "sparse"),
    [("h100", 1979), ("h100-pcie", 1513), ("h200", 1979), ("b200", 4500), ("a100", 624), ("l4", 242), ("mi300x", 2614.9)],
)
def test_bf16_is_half_of_what_the_sheet_quotes_with_sparsity(key, sparse):
    assert DEVICES[key].bf16_tflops == pytest.approx(sparse / 2, rel=1e-3)


def test_figures_are_no_peaks_that_memory_and_mathematics_forbid():
    """Orders of magnitude: a slip of a factor of 1000 or a swapped column is far outside."""
    for device in DEVICES.values():
        assert 14e9 < device.memory_bytes < 300e9
        assert 5 < device.fp32_tflops < 200
        assert device.bf16_tflops == 0 or 1.9 < device.bf16_tflops / device.fp32_tflops < 40
        assert 0.005 < device.bandwidth_gb_per_second / device.fp32_tflops / 1000 < 0.2


def test_cards_older_than_ampere_have_no_bf16():
    assert {key for key, device in DEVICES.items() if device.bf16_tflops == 0} == {"v100", "v100-32", "t4"}


def test_a_published_passport_says_that_it_was_not_measured_and_is_no_machines():
    passport = published_passport("H100")
    assert "published ceilings, not measured" in passport.name
    assert "published ceilings, not measured" in passport.summary()
    assert (passport.device, passport.fp32_gflops, passport.bf16_gflops) == ("cuda", 67_000, 989_500)
    assert passport.id != identify("cpu").id
    assert len({published_passport(key).id for key in DEVICES}) == len(DEVICES)
    assert Passport(**json.loads(json.dumps(asdict(passport)))) == passport  # a plan keeps it as JSON


def test_a_plan_can_be_made_from_it():
    assert suited_vocabulary(24 * 3600, published_passport("h100")) > suited_vocabulary(24 * 3600, published_passport("t4"))


@pytest.mark.parametrize(("wrong", "near"), [("h10", "`h100`"), ("rtx4090", "`4090`"), ("A-100", "`a100`")])
def test_an_unknown_device_is_refused_with_the_near_ones(wrong, near):
    with pytest.raises(ConfigError, match="not known here. Did you mean") as error:
        find_device(wrong)
    assert near in str(error.value)


def test_a_device_near_to_none_is_refused_with_all_of_them():
    with pytest.raises(ConfigError, match="Known: h100, h100-pcie, h200"):
        published_passport("tpu-v5p!")
