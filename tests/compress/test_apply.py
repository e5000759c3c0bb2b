import importlib.util

import pytest
import torch

from budgetlm.compress.apply import BY_NAME, Compression, canonical, check_compression, shrunk
from budgetlm.errors import ConfigError
from budgetlm.search import jobs
from tests.conftest import tiny_model


@pytest.mark.parametrize(
    ("typed", "applied"),
    [
        ("none", "none"),
        ("int8+prune", "prune+int8"),
        ("int8 + distil", "distil+int8"),
        ("int4-qat+shrink-hidden+shrink-heads", "shrink-heads+shrink-hidden+int4-qat"),
    ],
)
def test_options_are_applied_in_one_order_whatever_was_typed(typed, applied):
    assert canonical(typed) == applied
    assert Compression(option=typed) == Compression(option=applied)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("int7", "Did you mean `int8`"),
        ("zip", "Known: none, distil"),
        ("", "is not known"),
        ("none+int8", "`none` is no compression"),
        ("int8+int8", "names int8 twice"),
        ("int8+int4", "stored in one way, not in those of int8 and int4"),
        ("prune+prune24", "prune24 is a pattern of the zeros"),
        ("prune+shrink-heads", "two shares at once"),
        ("prune+int4", "packed zeros and all"),
        ("prune24+int4-qat", r"Use prune24\+int8, or int4-qat alone"),
        ("tie_embeddings", r"choice of the architecture: write `tie_embeddings = …`"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(typed, said):
    with pytest.raises(ConfigError, match=said):
        Compression(option=typed)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sparsity": 1.0}, "something must be left"),
        ({"scope": "row"}, "Use layer or global"),
        ({"start": 1.5}, "prune_start is 1.5"),
        ({"qat_share": -0.1}, "qat_share is -0.1"),
        ({"distil_temperature": 0.0}, "must be above 0"),
    ],
)
def test_impossible_numbers_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        Compression(**changes)


def test_what_this_device_or_study_lacks_is_said_with_the_remedy(monkeypatch):
    with pytest.raises(ConfigError, match=r"needs a teacher. Set `train\.teacher`"):
        check_compression("distil", "cpu")
    check_compression("distil", "cpu", teacher="somewhere")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: "there")
    with pytest.raises(ConfigError, match=r"capability 8\.0, but this one has 7\.5. Use int8"):
        check_compression("int8-dynamic", "cuda", capability=(7, 5))
    check_compression("int8-dynamic", "cuda", capability=(8, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    check_compression("prune", "cpu")
    for name in (name for name, option in BY_NAME.items() if option.kind == "bits"):
        with pytest.raises(ConfigError, match=r"pip install 'budgetlm\[compress\]'"):
            check_compression(name, "cpu")


def test_what_is_left_of_a_shape_is_the_share_asked_for_in_whole_parts():
    model = tiny_model(depth=4, width=256, kv_groups=2)
    half = shrunk(model, Compression(option="shrink-layers+shrink-heads+shrink-hidden"))
    assert (half.depth, half.hidden) == (2, model.hidden // 2)
    assert (half.heads, half.kv_heads) == (model.heads // 2, model.kv_heads // 2)
    assert shrunk(model, Compression(option="prune", sparsity=0.9)) == model
    least = shrunk(model, Compression(option="shrink-layers+shrink-heads+shrink-hidden", sparsity=0.99))
    assert (least.depth, least.kv_heads, least.hidden) == (1, 1, 16)


def test_a_gpu_that_cannot_multiply_eight_bits_is_refused_when_a_search_looks_at_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(jobs, "pick_device", lambda *_: "cuda")
    asked = jobs.IdentifyJob("auto", 1, compressions=("none", "int8", "int8-dynamic"))
    with pytest.raises(ConfigError, match=r"7\.5\. Use int8"):
        asked.work(desk=None)  # which is what charges
