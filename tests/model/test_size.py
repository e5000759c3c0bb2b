import pytest

from budgetlm.errors import ConfigError
from budgetlm.model.size import body_parameters, compute_parameters, flops_per_token, parameters, training_bytes
from budgetlm.model.transformer import LanguageModel
from tests.conftest import tiny_model

SHAPES = [
    tiny_model(),
    tiny_model(tie_embeddings=False),
    tiny_model(width=128, kv_groups=4, depth=3),
    tiny_model(width=64, mlp_ratio=2.5, kv_groups=2, tie_embeddings=False),
    tiny_model(width=512, depth=1, vocab_size=1000),
]


@pytest.mark.parametrize("model", SHAPES)
def test_counted_parameters_are_those_of_the_built_model(model):
    network = LanguageModel(model)
    assert parameters(model) == sum(p.numel() for p in network.parameters())
    embeddings = {"model.embed_tokens.weight", "lm_head.weight"}
    assert body_parameters(model) == sum(p.numel() for n, p in network.named_parameters() if n not in embeddings)
    matrices = sum(
        p.numel() for n, p in network.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n
    )
    assert compute_parameters(model) == matrices + model.vocab_size * model.width


def test_flops_are_six_per_computing_parameter_plus_attention():
    model = tiny_model(depth=3, width=64, context_length=128)
    assert flops_per_token(model) == 6 * compute_parameters(model) + 12 * 3 * 64 * 128


def test_memory_grows_with_batch_model_and_optimizer():
    model = tiny_model()
    assert training_bytes(model, 64) < training_bytes(model, 128) < training_bytes(tiny_model(width=64), 128)
    assert training_bytes(model, 64, optimizer_slots=1) < training_bytes(model, 64, optimizer_slots=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"width": 40}, "multiple of 16. Use 32"), ({"depth": 0}, "at least 1"), ({"kv_groups": 3}, "groups of 3")],
)
def test_impossible_shapes_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny_model(**changes)
