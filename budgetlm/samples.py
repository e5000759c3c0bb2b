"""What a trained model writes: validation text gone on with by a decoder, its gaps filled by an encoder."""

from collections.abc import Callable

import numpy as np
from tokenizers import Tokenizer

from budgetlm.data.batches import validation_sample
from budgetlm.data.masks import EVALUATION_RATE, EVALUATION_SEED, hide
from budgetlm.data.tokens import Tokens
from budgetlm.model.fill import fill
from budgetlm.model.generate import generate
from budgetlm.model.transformer import LanguageModel

SAMPLES, SAMPLE_TOKENS, PROMPT_TOKENS = 3, 96, 12


def write_samples(network: LanguageModel, tokens: Tokens, should_stop: Callable[[], bool]) -> list[dict[str, str]]:
    """Continue the beginnings of a few validation windows."""
    tokenizer = Tokenizer.from_file(str(tokens.tokenizer_file))
    context = network.config.context_length
    windows = validation_sample(tokens, context, SAMPLES * context)
    samples: list[dict[str, str]] = []
    if network.config.encodes:
        return _filled(network, tokenizer, windows)
    for number, window in enumerate(windows):
        prompt = [int(t) for t in window[:PROMPT_TOKENS]]
        end = tokens.facts.end_of_text
        made = list(generate(network, prompt, SAMPLE_TOKENS, seed=number, end_of_text=end, should_stop=should_stop))
        samples.append({"prompt": tokenizer.decode(prompt), "continuation": tokenizer.decode(made)})
    return samples


def _filled(network: LanguageModel, tokenizer: Tokenizer, windows: np.ndarray) -> list[dict[str, str]]:
    """The beginnings of the windows with gaps, and as an encoder fills them."""
    samples, mask = [], network.config.mask_token
    assert mask is not None
    length = min(3 * PROMPT_TOKENS, network.config.context_length - 1)
    for marked in hide(windows[:, : length + 1], EVALUATION_RATE, EVALUATION_SEED)[:, :-1].tolist():
        prompt = [mask if token < 0 else token for token in marked]
        shown = tokenizer.decode(prompt, skip_special_tokens=False)
        samples.append({"prompt": shown, "continuation": tokenizer.decode(fill(network, prompt))})
    return samples
