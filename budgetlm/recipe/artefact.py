"""What a recipe's artefact would be: how many bytes on the disk, how long for a token. Arithmetic only, before anything is trained."""

from budgetlm.model.size import FP32, ModelConfig, compute_parameters, exported_bytes
from budgetlm.recipe.recipe import Recipe
from budgetlm.train.throughput import SpeedModel

FORWARD = 1 / 3
"""Share of a step that is its forward pass."""
BYTES_OF_AN_UPDATE = 28
"""AdamW reads a weight, its gradient and two moments, and writes all but the gradient, in fp32: what a byte of memory costs is read off that."""


def artefact_bytes(model: ModelConfig, recipe: Recipe) -> int:  # noqa: ARG001
    """Bytes of the weights that would be deployed of a model of this shape, trained by this recipe."""
    return exported_bytes(model)


def token_milliseconds(model: ModelConfig, recipe: Recipe, speed: SpeedModel) -> float:
    """Milliseconds in which the artefact would write one token, alone and from nothing.

    Nothing of it is measured: by the prices of the throughput model it is a forward pass of one token through every block, for which all
    weights are read once. It is for telling recipes of one study apart; a final's own latency is another figure.
    """
    prices, count = speed.prices, compute_parameters(model)
    begun = FORWARD * prices.passes * (model.depth + 1)
    reading = prices.updates / BYTES_OF_AN_UPDATE * artefact_bytes(model, recipe) * count / (exported_bytes(model) / FP32)
    return 1e3 * (begun + max(reading, 2 * count * prices.products))
