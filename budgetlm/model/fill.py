"""Gaps filled by an encoder."""

import torch

from budgetlm.errors import BudgetlmError
from budgetlm.model.transformer import LanguageModel


@torch.no_grad()
def fill(network: LanguageModel, tokens: list[int]) -> list[int]:
    """The tokens with the likeliest in the place of each mask token: each on its own, whatever the others are.

    Raises:
        BudgetlmError: nothing is masked, or there are more tokens than the context has room for.
    """
    model = network.config
    if model.mask_token not in tokens:
        raise BudgetlmError(
            "this model is an encoder, which does not go on from a text but fills gaps in it: put [MASK] into the prompt."
        )
    if len(tokens) > model.context_length:
        raise BudgetlmError(
            f"the prompt has {len(tokens)} tokens, but this model sees {model.context_length} at once. Give less text."
        )
    token_1L = torch.tensor([tokens], device=next(network.parameters()).device)
    logits_LV = network(token_1L)[0].float()
    logits_LV[:, model.mask_token] = -torch.inf
    return [
        int(best) if token == model.mask_token else token for token, best in zip(tokens, logits_LV.argmax(-1), strict=True)
    ]
