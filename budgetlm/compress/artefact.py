"""The artefact: what would be deployed, written, read again, and only then scored.

A folder as of any Hugging Face model. Dense and smaller models are a plain Qwen3; 8 bits are what transformers writes with torchao
(`TorchAoConfig`), and it loads them. For two forms nothing in use has a reader, so theirs is our own: 4 bits, packed as
compressed-tensors packs them but embedding and all, which its reader refuses (torchao's own want a GPU); and pruned weights, for each matrix
`.bits`, a bit for each weight, the first in the lowest, and `.kept`, the weights whose bit is set. Nor has a Qwen3 shared layers or an
embedding in two factors: pruned or in fewer bits they are stored as they are. All of these are read by
budgetlm, and `model.export.save_model` makes a plain folder of what was read.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load, save
from tokenizers import Tokenizer
from torch import Tensor, nn

from budgetlm.compress.apply import Compression
from budgetlm.compress.layout import group_of, stored_form
from budgetlm.compress.prune import prunable
from budgetlm.compress.quantize import INT4, quantised, torchao_tensors
from budgetlm.errors import StudyError
from budgetlm.files import read_json, write_json
from budgetlm.model.export import CONFIG, OWN, TOKENIZER, WEIGHTS, exported, load_model, model_from, own_weights, save_model
from budgetlm.model.size import ModelConfig, plain_form
from budgetlm.model.transformer import LanguageModel, tied_names

PRUNED, BITS = "budgetlm_pruned", "budgetlm_bits"
"""Keys in `config.json`: that pruned weights are left out, and of how many bits the packed ones are."""
NIBBLES, OFFSET = 8, 8
"""4-bit numbers in an int32, lowest first, and what is added to make them positive (compressed-tensors, `pack-quantized`)."""


@dataclass(frozen=True)
class Artefact:
    """A model as it would be deployed."""

    weights: bytes
    """The file `model.safetensors`."""
    config: dict[str, Any]
    """What `config.json` says beside the shape."""
    model: ModelConfig

    def network(self) -> LanguageModel:
        """The model again, from these bytes alone."""
        return _read(self.model, load(self.weights), _metadata(self.weights), self.config)


def make_artefact(network: LanguageModel, compression: Compression) -> Artefact:
    """What would be deployed of a network whose training is over, already pruned or smaller where that was asked for."""
    form, option = stored_form(network.config, compression), compression.quantised
    plain = exported(network, form)
    config: dict[str, Any] = {}
    metadata = {"format": "pt"}
    if option is None:
        tensors = own_weights(plain)
    elif option.bits == 4:
        tensors, config = _packed(quantised(plain, option)), {BITS: 4}
    else:
        tensors, noted = _flattened(quantised(plain, option))
        metadata |= noted
        config = {"quantization_config": _torchao_config(option.rounds_activations)}
    if compression.prunes:
        sparse = [_dense_name(name, tensors) for name in prunable(plain)]
        tensors, config = _without_zeros(tensors, sparse, prunable(plain)), {PRUNED: True, **config}
    if form != plain_form(form):
        config |= {"tie_word_embeddings": form.tie_embeddings, **{f"budgetlm_{name}": getattr(form, name) for name in OWN}}
    return Artefact(save(tensors, metadata=metadata), config, plain.config)


def save_artefact(folder: Path, artefact: Artefact, network: LanguageModel, tokenizer: Path, end_of_text: int) -> None:
    """Write an artefact, its config and its tokenizer into an existing folder.

    Args:
        network: the one that the artefact was made of.
    """
    save_model(folder, network, tokenizer, end_of_text)
    (folder / WEIGHTS).write_bytes(artefact.weights)
    write_json(folder / CONFIG, {**read_json(folder / CONFIG), **artefact.config})


def load_artefact(folder: Path) -> tuple[LanguageModel, Tokenizer, int]:
    """A model that `save_artefact` or `save_model` wrote, its tokenizer, and its end-of-text id.

    Raises:
        StudyError: the folder is not one, is damaged, or needs a package that is missing.
    """
    try:
        config = read_json(folder / CONFIG)
        if not isinstance(config, dict) or not {"quantization_config", BITS, PRUNED} & config.keys():
            return load_model(folder)
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
            metadata = file.metadata() or {}
        network = _read(model_from(config), tensors, metadata, config)
        return network, Tokenizer.from_file(str(folder / TOKENIZER)), config["eos_token_id"]
    except StudyError:
        raise
    except ImportError as error:
        raise StudyError(
            f"{folder} holds a quantised model, which needs torchao: pip install 'budgetlm[compress]'."
        ) from error
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise StudyError(
            f"{folder} does not hold a model of budgetlm ({type(error).__name__}: {error}). Give the `model` folder of a "
            "final, or train one with `budgetlm final`."
        ) from error


def _read(model: ModelConfig, tensors: dict[str, Tensor], metadata: dict[str, str], config: dict[str, Any]) -> LanguageModel:
    if PRUNED in config:
        tensors = _with_zeros(tensors, model)
    if "quantization_config" in config:
        from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

        tensors, left = unflatten_tensor_state_dict(tensors, metadata)
        assert not left, list(left)
    elif BITS in config:
        tensors = _unpacked(tensors, model)
    # Factors are small, and multiplied in both directions, which torchao's tensors are not made for.
    tensors |= {name: value.dequantize() for name, value in tensors.items() if name.endswith("factor.weight")}
    tensors |= {second: tensors[first] for second, first in tied_names(model).items()}
    with torch.device("meta"):
        network = LanguageModel(model)
    missing = network.load_state_dict({n: nn.Parameter(t, requires_grad=False) for n, t in tensors.items()}, assign=True)
    assert not missing.missing_keys, missing
    network.model.fill_positions()
    return network.eval()


def _metadata(weights: bytes) -> dict[str, str]:
    """What a safetensors file notes beside its tensors."""
    length = int.from_bytes(weights[:8], "little")
    noted: dict[str, str] = json.loads(weights[8 : 8 + length]).get("__metadata__", {})
    return noted


# --- 8 bits, as torchao and transformers have them -------------------------------------------------------------------


def _flattened(network: LanguageModel) -> tuple[dict[str, Tensor], dict[str, str]]:
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    tensors, noted = flatten_tensor_state_dict(own_weights(network))
    return {name: value.contiguous() for name, value in tensors.items()}, noted


def _torchao_config(dynamic: bool) -> dict[str, Any]:
    """What tells transformers to expect torchao's tensors; of each of them the file itself says what it is."""
    from torchao.core.config import config_to_dict
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig

    kind: Any = Int8WeightOnlyConfig()
    if dynamic:
        kind = Int8DynamicActivationInt8WeightConfig(reduce_range=torchao_tensors().should_reduce_range(torch.device("cpu")))
    return {
        "quant_method": "torchao",
        "quant_type": {"default": config_to_dict(kind)},
        "include_input_output_embeddings": True,
    }


# --- 4 bits, packed as compressed-tensors packs them---------------------------------------------------------------------


def _packed(network: LanguageModel) -> dict[str, Tensor]:
    packed: dict[str, Tensor] = {}
    shifts = 4 * torch.arange(NIBBLES)
    for name, value in own_weights(network).items():
        if value.ndim < 2:
            packed[name] = value
            continue
        nibbles = (value.qdata.long() + OFFSET).reshape(value.shape[0], -1, NIBBLES) << shifts  # type: ignore[attr-defined]
        words = nibbles.sum(-1).numpy().astype(np.uint32).view(np.int32)
        packed[f"{name}_packed"] = torch.from_numpy(words)
        packed[f"{name}_scale"] = value.scale.contiguous()  # type: ignore[attr-defined]
        packed[f"{name}_shape"] = torch.tensor(value.shape)
    return packed


def _unpacked(tensors: dict[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    kind, shifts = torchao_tensors().IntxUnpackedToInt8Tensor, 4 * torch.arange(NIBBLES)
    unpacked = {name: value for name, value in tensors.items() if not name.endswith(("_packed", "_scale", "_shape"))}
    for name, words in tensors.items():
        if name.endswith("_packed"):
            nibbles = torch.from_numpy(words.numpy().view(np.uint32).astype(np.int64))[..., None] >> shifts & 0xF
            numbers = (nibbles - OFFSET).to(torch.int8).flatten(1)
            scale, plain = tensors[name.replace("_packed", "_scale")], name.removesuffix("_packed")
            zero = torch.zeros_like(scale, dtype=torch.int8)
            unpacked[plain] = kind(numbers, scale, zero, INT4, (1, group_of(model)), scale.dtype, None)
    return unpacked


# --- pruned ----------------------------------------------------------------------------------------------------------


def _dense_name(name: str, tensors: dict[str, Tensor]) -> str:
    """What holds a matrix's numbers in a file: itself, or its 8-bit form."""
    return name if name in tensors else f"{name.removesuffix('.weight')}._weight_qdata"


def _without_zeros(tensors: dict[str, Tensor], names: list[str], weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Of these matrices only the weights that were not pruned, and where they are. What rounding made zero is kept: it was not pruned."""
    sparse = {name: value for name, value in tensors.items() if name not in names}
    for name, weight in zip(names, weights.values(), strict=True):
        kept = (weight.detach() != 0).cpu()
        sparse[f"{name}.bits"] = torch.from_numpy(np.packbits(kept.flatten().numpy(), bitorder="little"))
        sparse[f"{name}.kept"] = tensors[name][kept]
    return sparse


def _with_zeros(tensors: dict[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        shapes = {_dense_name(n, {}): p.shape for n, p in prunable(LanguageModel(model)).items()}
        shapes |= {name: p.shape for name, p in prunable(LanguageModel(model)).items()}
    dense = {name: value for name, value in tensors.items() if not name.endswith((".bits", ".kept"))}
    for name, shape in shapes.items():
        if f"{name}.bits" in tensors:
            kept = np.unpackbits(tensors[f"{name}.bits"].numpy(), count=shape.numel(), bitorder="little").astype(bool)
            value = torch.zeros(shape.numel(), dtype=tensors[f"{name}.kept"].dtype)
            value[torch.from_numpy(kept)] = tensors[f"{name}.kept"]
            dense[name] = value.view(shape)
    return dense
