"""How nearly an exported model computes and writes what ours does, for each option of the architecture: what README and docs/LOG.md say of exports.

python -m tests.benchmarks.bench_export
"""

import tempfile
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models

from budgetlm.export import export
from budgetlm.model.export import save_model
from budgetlm.model.generate import generate
from budgetlm.model.size import ModelConfig
from budgetlm.model.transformer import build

SHAPES = {
    "plain": {},
    "tied, no norm after the embedding": {"tie_embeddings": True, "norm_embedding": False},
    "untied": {"tie_embeddings": False},
    "query heads in groups of 2": {"kv_groups": 2},
    "two layers share a block": {"share_layers": 2},
    "embedding of rank 32": {"embedding_rank": 32},
}
TOKENS = 64


def main() -> None:
    """Compare, and print a row for each option."""
    transformers.logging.set_verbosity_error()
    print("| option | largest difference of a logit | greedy tokens alike |\n|---|---|---|")
    for name, changes in SHAPES.items():
        model = ModelConfig(vocab_size=512, depth=4, width=128, context_length=128, **changes)
        network = build(model, seed=1).eval()
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "model"
            folder.mkdir()
            words = {f"t{number}": number for number in range(512)}
            given = Path(place) / "tokenizer.json"
            Tokenizer(models.WordLevel(words, unk_token="t0")).save(str(given))
            save_model(folder, network, given, 0)
            theirs = transformers.AutoModelForCausalLM.from_pretrained(export(folder, Path(place) / "out", "hf", None))
        ids = torch.randint(0, 512, (4, TOKENS), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            apart = (theirs(ids).logits - network(ids)).abs().max()
        ours = list(generate(network, ids[0, :8].tolist(), TOKENS, temperature=0.0))
        made = theirs.generate(ids[:1, :8], max_new_tokens=TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0)
        alike = sum(a == b for a, b in zip(ours, made[0, 8:].tolist(), strict=True))
        print(f"| {name} | {apart:.1e} | {alike} of {TOKENS} |")


if __name__ == "__main__":
    main()
