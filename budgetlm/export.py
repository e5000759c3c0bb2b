"""A trained model for others: a folder that transformers loads without us, or a GGUF file, with a card that says where it comes from."""

import shutil
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from budgetlm.budget.clock import duration
from budgetlm.compress.artefact import load_artefact
from budgetlm.data.config import DataConfig
from budgetlm.data.sources import EMBEDDED
from budgetlm.errors import ConfigError, StudyError
from budgetlm.files import check_new, new_folder, read_json, write_json
from budgetlm.model.export import CONFIG, DECODER, OURS, TOKENIZER, save_model
from budgetlm.model.gguf import save_gguf
from budgetlm.receipts import Receipt, receipts
from budgetlm.records import RunRecord
from budgetlm.studies import PLAN, newest_final, open_config

FORMATS = ("hf", "gguf")
CARD = "README.md"


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from, as far as its study says."""

    name: str
    record: RunRecord
    receipt: Receipt | None
    data: str
    """Source and fingerprint of its text."""
    device: str


def model_of(study: str) -> tuple[Path, Provenance]:
    """The model folder of a study's newest finished final, and where it comes from.

    Raises:
        StudyError: there is none.
    """
    model, record = newest_final(study)
    receipt = next((r for r in receipts([study]).finals if r.final == record.run), None)
    config = open_config(study)
    plan = read_json(config.folder / PLAN)
    data = f"{told_source(config.data)} (fingerprint {plan['data']})"
    return model, Provenance(study, record, receipt, data, plan["passport"]["name"])


def told_source(data: DataConfig) -> str:
    """A study's text as a card may name it: paths and addresses are nobody else's business."""
    known = all(share.source in EMBEDDED or share.source.startswith("hf:") for share in data.shares)
    return data.source if known else "a text of one's own"


def export(model: Path, out: Path, to: str, origin: Provenance | None) -> Path:
    """Write a model so that others load it.

    Args:
        model: the folder of a final, or another that budgetlm wrote.
        out: the folder, or for `gguf` the file, to be made.
        to: `hf` or `gguf`.
        origin: for the card; None where only the folder is known.

    Raises:
        ConfigError: there is no such format, `out` is there already, or a package is missing.
        StudyError: `model` holds no model, or one that the format has no place for.
    """
    if to not in FORMATS:
        raise ConfigError(f"there is no format {to!r}. Use {' or '.join(FORMATS)}.")
    check_new(out)
    if not (model / CONFIG).exists():
        raise StudyError(f"{model} does not hold a model. Give the `model` folder of a final, or name a study.")
    kind = str(read_json(model / CONFIG).get("model_type"))
    if kind == OURS:
        raise StudyError(
            f"{model} holds a model whose mixer is no attention, and no other program has that architecture. `budgetlm generate --model {model}` reads it."
        )
    if to == "gguf":
        if kind != DECODER:
            raise StudyError(f"{model} holds a {kind}, which has no form in GGUF. Use `--to hf`.")
        network, _, end = load_artefact(model)
        save_gguf(out, network, model / TOKENIZER, end, origin.name if origin else model.name)
        return out
    with new_folder(out) as new:
        if kind == DECODER:  # a compressed one as the plain model that computes the same
            network, _, end = load_artefact(model)
            save_model(new, network, model / TOKENIZER, end)
            settings = read_json(new / "tokenizer_config.json")
            write_json(new / "tokenizer_config.json", {**settings, "pad_token": settings["eos_token"]})
        else:
            shutil.copytree(model, new, dirs_exist_ok=True)
        (new / CARD).write_text(card(origin, kind))
    return out


def plain_folder(model: Path, place: Path) -> Path:
    """The folder of a model that transformers loads: of one of ours a plain copy under `place`, whatever it is compressed to; any other as it is.

    Raises:
        StudyError: `model` holds no model, or one that no other program has the architecture of.
    """
    if not (model / CONFIG).exists():
        raise StudyError(f"{model} does not hold a model. Give a folder with a `{CONFIG}`, or name a study.")
    return export(model, place / "model", "hf", None) if "budgetlm_mlp_ratio" in read_json(model / CONFIG) else model


def card(origin: Provenance | None, kind: str) -> str:
    """A model card: front matter that the Hub reads, then what is known of the model."""
    task = "text-generation" if kind == DECODER else "fill-mask"
    loader = "AutoModelForCausalLM" if kind == DECODER else "AutoModelForMaskedLM"
    head = f"---\nlibrary_name: transformers\npipeline_tag: {task}\ntags: [budgetlm]\n---\n"
    lines = [head, "# A model trained under a budget", ""]
    if origin:
        record, receipt = origin.record, origin.receipt
        larger = "" if record.bpb_full is None else f" ({record.bpb_full:.4f} on a larger sample)"
        measure = "" if kind == DECODER else " of the pseudo-log-likelihood of hidden tokens"
        recipe = ", ".join(f"{name} {value}" for name, value in record.recipe.items())
        lines += [
            f"Found and trained by budgetlm, study `{origin.name}`, run `{record.run}`.",
            "",
            f"- **{record.bpb:.4f} bits per byte{measure}** on unseen text of its source{larger}",
            f"- {record.parameters / 1e6:,.2f} M parameters, {record.tokens / 1e6:,.1f} M tokens read, {record.epochs:.2f} epochs",
            f"- {duration(record.seconds)} on {origin.device}",
            f"- text: {origin.data}; under what licence it may be used nobody has told budgetlm",
        ]
        if record.config.get("init"):
            lines.append(
                "- begun from given weights; what these had read is not known here, and that text may have been among it"
            )
        if receipt and receipt.forecast is not None:
            inside = "inside" if receipt.inside else "outside"
            lines.append(
                f"- forecast before training: {receipt.forecast:.4f} (80 % interval {receipt.low:.4f} to {receipt.high:.4f}); it came out {inside}"
            )
        lines += [f"- recipe: {recipe}", ""]
    lines += [
        "```python",
        f"from transformers import AutoTokenizer, {loader}",
        "",
        'tokenizer = AutoTokenizer.from_pretrained(".")  # this folder',
        f'model = {loader}.from_pretrained(".")',
        "```",
    ]
    return "\n".join(lines) + "\n"


def push(folder: Path, repository: str, private: bool) -> str:
    """Upload an exported folder to the Hugging Face Hub, and return its address. Who may do so, the Hub's client knows (`hf auth login`).

    Raises:
        StudyError: the Hub, or the way to it, says no.
    """
    if find_spec("huggingface_hub") is None:
        raise ConfigError("pushing needs the package huggingface_hub: pip install huggingface_hub.")
    hub: Any = import_module("huggingface_hub")
    try:
        api = hub.HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=str(folder), commit_message="Exported by budgetlm"))
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0]
        raise StudyError(f"{folder} is exported, but not pushed to {repository}: {reason}") from error
