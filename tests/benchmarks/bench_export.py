"""How nearly an exported model computes and writes what ours does, for each option of the architecture: what README and docs/LOG.md say of exports.

With `--fresh DIR` a decoder and an encoder are also loaded in a new virtual environment there, which has PyTorch and transformers and nothing of budgetlm: greedy tokens, logits, the
pipelines for text and for gaps.

    python -m tests.benchmarks.bench_export
    python -m tests.benchmarks.bench_export --fresh fresh-venv
"""

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models

from budgetlm.commands.options import cache_folder
from budgetlm.compress.apply import Compression
from budgetlm.compress.artefact import load_artefact, make_artefact, save_artefact
from budgetlm.data.config import DataConfig
from budgetlm.data.corpus import prepare_corpus
from budgetlm.data.tokens import prepare_tokens
from budgetlm.export import export
from budgetlm.model.export import save_model
from budgetlm.model.fill import fill
from budgetlm.model.generate import generate
from budgetlm.model.size import ModelConfig
from budgetlm.model.transformer import LanguageModel, build

SHAPES = {
    "plain": {},
    "tied, no norm after the embedding": {"tie_embeddings": True, "norm_embedding": False},
    "untied": {"tie_embeddings": False},
    "query heads in groups of 2": {"kv_groups": 2},
    "two layers share a block": {"share_layers": 2},
    "embedding of rank 32": {"embedding_rank": 32},
}
TOKENS = 64
PROMPTS = ("def main(", "import os", "class Reader:", "    for name in", "The quick brown fox")
SENTENCES = (
    "import[MASK]",
    "    def[MASK](self):",
    "for i in[MASK](len(names)):",
    "    raise[MASK]('bad value')",
    "if name is[MASK] None:",
)
THERE = """
import importlib.util, json, sys
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, pipeline
from transformers.utils import logging

logging.set_verbosity_error()
decoder, encoder, prompts, sentences, tokens = json.loads(sys.argv[1])
model, tokenizer = AutoModelForCausalLM.from_pretrained(decoder), AutoTokenizer.from_pretrained(decoder)
greedy, logits = [], []
for prompt in prompts:
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    made = model.generate(ids, max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0)
    greedy.append(made[0, ids.shape[1]:].tolist())
    with torch.no_grad():
        logits.append(model(ids).logits[0, -1].tolist())
write = pipeline("text-generation", model=decoder)
written = write(list(prompts), max_new_tokens=8, do_sample=False, batch_size=2)
gaps = pipeline("fill-mask", model=AutoModelForMaskedLM.from_pretrained(encoder), tokenizer=AutoTokenizer.from_pretrained(encoder))
filled = [gaps(sentence)[0]["token"] for sentence in sentences]
print(json.dumps({
    "greedy": greedy, "logits": logits, "filled": filled, "written": [one[0]["generated_text"] for one in written],
    "ours": importlib.util.find_spec("budgetlm") is not None,
}))
"""


def main() -> None:
    """Compare, and print a row for each option."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fresh", type=Path, help="where the new virtual environment lies, or is made")
    wanted = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if wanted.fresh:
        load_elsewhere(wanted.fresh)
        return
    print("| option | largest difference of a logit | greedy tokens alike |\n|---|---|---|")
    for name, changes in SHAPES.items():
        print(row_of(name, build(shape(**changes), seed=1).eval()))
    if find_spec("torchao"):
        print(row_of("int8, exported as the plain model that it stands for", build(shape(), seed=1).eval(), "int8"))


def shape(**changes: object) -> ModelConfig:
    return ModelConfig(vocab_size=512, depth=4, width=128, context_length=128, **changes)


def row_of(name: str, network: LanguageModel, compression: str = "") -> str:
    """Our network, or what its compressed form computes, beside the exported one."""
    with tempfile.TemporaryDirectory() as place:
        folder, given = Path(place) / "model", Path(place) / "tokenizer.json"
        folder.mkdir()
        Tokenizer(models.WordLevel({f"t{number}": number for number in range(512)}, unk_token="t0")).save(str(given))
        if compression:
            save_artefact(folder, make_artefact(network, Compression(option=compression)), network, given, 0)
            network = load_artefact(folder)[0]
        else:
            save_model(folder, network, given, 0)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(export(folder, Path(place) / "out", "hf", None))
    ids = torch.randint(0, 512, (4, TOKENS), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        apart = (theirs(ids).logits - network(ids)).abs().max()
    ours = list(generate(network, ids[0, :8].tolist(), TOKENS, temperature=0.0))
    made = theirs.generate(ids[:1, :8], max_new_tokens=TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0)
    alike = sum(a == b for a, b in zip(ours, made[0, 8:].tolist(), strict=True))
    return f"| {name} | {apart:.1e} | {alike} of {TOKENS} |"


def load_elsewhere(place: Path) -> None:
    """Write a decoder and an encoder (untrained, weights of a size that makes their choices clear), and load them in an environment without us."""
    python = (place / "bin" / "python").absolute()
    if not python.exists():
        venv.create(place, with_pip=True)
        pinned = [f"{name}=={version(name).split('+')[0]}" for name in ("torch", "transformers")]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *pinned], check=True)
    with tempfile.TemporaryDirectory() as there:
        kinds = {"decoder": {"kv_groups": 2}, "encoder": {}}
        loaded = {kind: _written(Path(there) / kind, kind == "encoder", changes) for kind, changes in kinds.items()}
        (decoder, words, _), (encoder, pieces, end) = loaded["decoder"], loaded["encoder"]
        asked = json.dumps([f"{there}/decoder/out", f"{there}/encoder/out", PROMPTS, SENTENCES, TOKENS])
        done = subprocess.run(
            [python, "-I", "-c", THERE, asked],
            capture_output=True,
            text=True,
            check=False,
            cwd=there,
            env={"HF_HUB_OFFLINE": "1"},
        )
        if done.returncode:
            sys.exit(done.stderr)
    said = json.loads(done.stdout.splitlines()[-1])
    alike, apart, right = 0, 0.0, 0
    for prompt, greedy, logits in zip(PROMPTS, said["greedy"], said["logits"], strict=True):
        ids = words.encode(prompt).ids
        ours = list(generate(decoder, ids, TOKENS, temperature=0.0))
        alike += sum(a == b for a, b in zip(ours, greedy, strict=True))
        with torch.no_grad():
            apart = max(apart, float((decoder(torch.tensor([ids]))[0, -1] - torch.tensor(logits)).abs().max()))
    for sentence, token in zip(SENTENCES, said["filled"], strict=True):
        ids = [end, *pieces.encode(sentence, add_special_tokens=False).ids, end]
        right += fill(encoder, ids)[ids.index(encoder.config.mask_token)] == token
    begun = sum(text.startswith(prompt) for prompt, text in zip(PROMPTS, said["written"], strict=True))
    print(f"budgetlm is there: {'yes' if said['ours'] else 'no'}")
    print(f"decoder: {alike} of {TOKENS * len(PROMPTS)} greedy tokens alike, largest difference of a logit {apart:.1e}")
    print(f"pipeline('text-generation'): {begun} of {len(PROMPTS)} prompts gone on with")
    print(f"pipeline('fill-mask'): {right} of {len(SENTENCES)} gaps filled alike")


def _written(folder: Path, masks: bool, changes: dict[str, int]) -> tuple[LanguageModel, Tokenizer, int]:
    data, cache = DataConfig(source="stdlib"), Path(cache_folder())
    tokens = prepare_tokens(data, prepare_corpus(data, cache), 1024, cache, masks=masks)
    facts = tokens.facts
    model = ModelConfig(
        vocab_size=facts.vocab_size,
        depth=4,
        width=128,
        context_length=128,
        mask_token=facts.mask if masks else None,
        **changes,
    )
    network = build(model, seed=1).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(2)
    (folder / "model").mkdir(parents=True)
    save_model(folder / "model", network, tokens.tokenizer_file, facts.end_of_text)
    export(folder / "model", folder / "out", "hf", None)
    return network, Tokenizer.from_file(str(tokens.tokenizer_file)), facts.end_of_text


if __name__ == "__main__":
    main()
