"""Text from a model, token by token.

Shapes: L length, V vocabulary.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from budgetlm.model.reader import Reader
from budgetlm.model.transformer import LanguageModel


@torch.no_grad()
def generate(
    network: LanguageModel,
    prompt: list[int],
    most_tokens: int,
    *,
    temperature: float = 0.8,
    top_k: int = 50,
    top_p: float = 1.0,
    seed: int = 0,
    end_of_text: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[int]:
    """Sample tokens after a prompt, until `end_of_text`, `most_tokens` or a request to stop.

    Args:
        prompt: token ids, at least one.
        temperature: above 1 is wilder; 0 always takes the likeliest token.
        top_k: sample among so many likeliest tokens only; 0 for all.
        top_p: of these, among the fewest likeliest that have this probability together (nucleus sampling, Holtzman et al. 2020, section 3.1,
            arXiv:1904.09751); 1 for all.
    """
    assert prompt, "an empty prompt leaves nothing to continue; begin with the end-of-text token"
    random = torch.Generator(device="cpu").manual_seed(seed)
    reader, ids = Reader(network), list(prompt)
    for _ in range(most_tokens):
        if should_stop():
            return
        logits_V = reader.logits(ids).float().cpu()
        if temperature == 0:
            token = int(logits_V.argmax())
        else:
            if 0 < top_k < len(logits_V):
                logits_V[logits_V < logits_V.topk(top_k).values[-1]] = -torch.inf
            chance_V = torch.softmax(logits_V / temperature, dim=0)
            if top_p < 1:
                chance_V = _nucleus(chance_V, top_p)
            token = int(torch.multinomial(chance_V, 1, generator=random))
        if token == end_of_text:
            return
        ids.append(token)
        yield token


def _nucleus(chance_V: Tensor, top_p: float) -> Tensor:
    """The probabilities, 0 but for the fewest likeliest tokens that reach `top_p` together; the likeliest is always among them."""
    ordered_V, token_V = chance_V.sort(descending=True, stable=True)
    before_V = ordered_V.cumsum(0) - ordered_V
    ordered_V[1:][before_V[1:] >= top_p] = 0
    return torch.zeros_like(chance_V).scatter(0, token_V, ordered_V)
