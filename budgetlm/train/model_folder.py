"""A trained network as the folder that is deployed."""

from dataclasses import asdict, replace
from pathlib import Path

from budgetlm.compress.artefact import save_artefact
from budgetlm.data.tokens import Tokens
from budgetlm.files import new_folder, write_json
from budgetlm.model.export import save_model, weights_bytes
from budgetlm.records import RunRecord
from budgetlm.train.loop import Trained


def write_model(folder: Path, trained: Trained, tokens: Tokens) -> RunRecord:
    """Write a finished run's model, whole or not at all. Returns its record, with what the weights weigh there."""
    with new_folder(folder) as new:
        parts = (trained.network, tokens.tokenizer_file, tokens.facts.end_of_text)
        if trained.artefact:
            save_artefact(new, trained.artefact, *parts)
        else:
            save_model(new, *parts)
        record = replace(trained.record, artefact_bytes=weights_bytes(new))
        write_json(new / "recipe.json", asdict(record))
    return record
