import pytest
import torch

from budgetlm.compress.apply import Compression
from budgetlm.compress.artefact import make_artefact
from budgetlm.model.reader import Reader
from tests.conftest import tiny_model
from tests.model.test_transformer import TOKENS_BL, trained_looking

TEXT = TOKENS_BL[0].tolist()
DOCUMENT_END = TEXT[20]


def passed(network):
    """Tokens that went through the embedding, a number for each pass."""
    counts = []
    network.model.embed_tokens.register_forward_hook(lambda _module, inputs, _output: counts.append(inputs[0].shape[1]))
    return counts


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"width": 64, "kv_groups": 2, "norm_embedding": True, "tie_embeddings": False},
        {"depth": 3, "share_layers": 2, "embedding_rank": 16},
        {"document_end": DOCUMENT_END},
        {"depth": 3, "window": 4},
        {"window": 4, "document_end": DOCUMENT_END},
    ],
)
def test_reading_on_gives_the_logits_of_the_whole_text_with_each_token_read_once(shape):
    network = trained_looking(tiny_model(**shape))
    whole_LV, counts = network(TOKENS_BL[:1])[0], passed(network)
    reader = Reader(network)
    for length in range(5, len(TEXT) + 1):
        assert torch.allclose(reader.logits(TEXT[:length]), whole_LV[length - 1], atol=1e-4)
    assert counts == [5] + [1] * (len(TEXT) - 5)


@pytest.mark.parametrize("option", ["int8", "int4"])
def test_a_compressed_model_reads_on_as_well(option):
    network = trained_looking(tiny_model(width=64))
    network = make_artefact(network, Compression(option=option)).network()
    whole_LV, reader = network(TOKENS_BL[:1])[0], Reader(network)
    for length in range(9, 17):
        assert torch.allclose(reader.logits(TEXT[:length]), whole_LV[length - 1], atol=1e-4)


@pytest.mark.parametrize("shape", [{}, {"document_end": DOCUMENT_END}, {"mixer": "conv"}])
def test_beyond_the_context_or_with_another_mixer_the_text_is_read_anew(shape):
    network = trained_looking(tiny_model(**{"context_length": 8, **shape}))
    reader = Reader(network)
    for length in range(1, len(TEXT) + 1):
        window = torch.tensor([TEXT[max(0, length - 8) : length]])
        assert torch.allclose(reader.logits(TEXT[:length]), network(window)[0, -1], atol=1e-4)
