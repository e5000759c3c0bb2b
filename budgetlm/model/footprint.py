"""How much memory training and evaluation of a model of a given shape take, and its files on the disk. Arithmetic only, no torch.

An estimate, for refusing what could never fit, held against what the allocator gives out (`tests/model/test_size.py`).
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from budgetlm.model import kinds
from budgetlm.model.kinds import BF16, FP32
from budgetlm.model.size import (
    ModelConfig,
    block_matrices,
    body_parameters,
    end_matrices,
    end_products,
    parameters,
    plain_form,
)

LOGIT_BYTES_BEFORE_CHUNKING = 256 * 2**20
"""Above this much memory for bf16's logits, the loss is computed in chunks that never hold them all at once."""
LOGIT_ROWS = 512
"""Tokens whose logits exist at once in fp32: few enough for a CPU's cache, enough for its matrix product (docs/LOG.md)."""
EVALUATION_TOKENS = 2_048
"""Tokens in one forward pass of an evaluation, at least: without gradients there is room for more than in training."""


class Moment(NamedTuple):
    """What training holds at a moment, in bytes by purpose."""

    weights: int
    """The fp32 parameters."""
    gradients: int
    """Those that have been computed at that moment, and those that wait to be added to them."""
    optimizer: int
    """Moments of the gradients."""
    activations: int
    """What the forward pass keeps for the backward pass, the backward pass's own, and bf16 copies of weights."""
    logits: int
    """The scores of all tokens of the vocabulary, their logarithms of probabilities, and the gradients of both."""
    update: int = 0
    """What the optimizer's update computes with."""

    @property
    def peak(self) -> int:
        """All of it."""
        return sum(self)


@dataclass(frozen=True)
class TrainingMemory:
    """What training needs, in two counts: of an allocator that reuses whatever was freed, and of one that hardly can."""

    fullest: Moment
    """The moment at which most is held."""
    apart: Moment
    """The most of each kind, whenever that was: what a heap comes to that finds no use for the blocks of another kind."""

    @property
    def peak(self) -> int:
        """Bytes at the fullest moment."""
        return self.fullest.peak


def evaluation_sequences(model: ModelConfig, micro_batch_sequences: int) -> int:
    """Sequences in one forward pass of an evaluation: no fewer than in training, unless their logits take too much."""
    wanted = max(micro_batch_sequences, EVALUATION_TOKENS // model.context_length)
    return max(1, min(wanted, LOGIT_BYTES_BEFORE_CHUNKING // (FP32 * model.vocab_size * model.context_length)))


def block_activation_bytes(model: ModelConfig, precision: str, products_length: int = 0) -> int:
    """Bytes that autograd keeps of one block for one token of a forward pass.

    In the order of the forward pass, W width, K key/value width, F hidden: each of the two norms the scaled input and one
    scale; what goes into the matrices; queries and keys scaled, with a scale each, and after the rotation; values; the attention's output
    and the logarithm of its sum for each head; and of the SwiGLU layer gate, its SiLU, the other half, and their product. Attention by
    products over `products_length` tokens keeps the weights of all of them in place of that logarithm.

    Held exactly to what autograd keeps on a CPU. A GPU's fused norms keep the input in place of the scaled one, in bf16 2 bytes of W more each.
    """
    if model.unusual:
        return kinds.block_activation_bytes(model, precision, products_length)
    c = FP32 if precision == "fp32" else BF16
    width, hidden, kv_width, queries = model.width, model.hidden, model.kv_heads * model.head_size, model.query_width
    norms = 2 * (2 * c * width + FP32)
    heads = c * (queries + kv_width) + FP32 * (model.heads + model.kv_heads)
    weights = model.heads * (c * products_length or FP32)
    return norms + heads + weights + 2 * c * (queries + kv_width) + 4 * c * hidden


def block_copy_bytes(model: ModelConfig, precision: str) -> int:
    """Bytes of the bf16 copies of all blocks' matrices that autocast makes and autograd keeps: one of each, however many layers share it."""
    return BF16 * model.blocks * sum(a * b for a, b in block_matrices(model)) if precision in ("bf16", "fp8") else 0


def loss_activation_bytes(model: ModelConfig, precision: str) -> int:
    """Bytes that autograd keeps for one token between the last block and the logits: the last norm, what comes out, and what a factor makes of it."""
    if model.encodes:
        return kinds.encoder_loss_activation_bytes(model, precision)
    c = FP32 if precision == "fp32" else BF16
    return c * (2 * model.width + model.embedding_rank) + FP32


def embedding_activation_bytes(model: ModelConfig, precision: str) -> int:
    """Bytes that autograd keeps for one token before the first block: of the embedding's factor and of the norm after it, if they are there.

    What an encoder's keeps its first block does without.
    """
    if model.encodes:
        return 0
    factor = (FP32 if precision == "fp32" else BF16) * model.embedding_rank
    return factor + model.norm_embedding * FP32 * (model.width + 1)


def mask_bytes(model: ModelConfig, sequences: int, precision: str) -> int:
    """Bytes of the masks that keep attention within documents and within a window, each one for all blocks; 0 where it sees all.

    An estimate: what they are made of for a moment is left out, and in bf16 a GPU does without any (`model/documents.py`).
    """
    one = (FP32 if precision == "fp32" else BF16) * model.context_length**2
    documents = 0 if model.document_end is None else sequences * one
    return documents + ((documents or one) if model.window else 0)


@lru_cache(4096)  # the shapes that a search weighs for a run are mostly those of the run before
def training_memory(
    model: ModelConfig,
    *,
    micro_batch_sequences: int,
    optimizer: str,
    precision: str,
    checkpoint_activations: bool,
    accumulates: bool,
    muon_in_bf16: bool = False,
    averaged: bool = False,
    products_length: int = 0,
    beside: int = 0,
    shards: int = 1,
    offload: bool = False,
    device: str = "cpu",
) -> TrainingMemory:
    """What training holds from the second step on.

    Args:
        micro_batch_sequences: sequences in one forward pass.
        optimizer: its name (`train/config.py`).
        precision: `fp32`, `bf16` for autocast over fp32 weights, `bf16-master` for bf16 weights beside them; `fp8` is counted as bf16.
        checkpoint_activations: whether only the input of each block is kept, and the rest computed again.
        accumulates: whether a step takes several forward passes, so that all but the first have gradients beside them.
        muon_in_bf16: whether Muon is torch's, a matrix at a time, or `MuonFloat32`, which takes all of one shape at once.
        averaged: whether a second set of weights holds their average.
        products_length: length of the longest sequences whose attention is computed by plain products; 0 for none.
        beside: bytes that are held all the time beside the model and its optimizer.
        device: `cpu` or `cuda`, whose loss in bf16 is another (`model/loss.py`).
        shards: devices that weights, gradients and optimizer state are spread over (`train/parallel/fsdp.py`); it is one's that is counted.
        offload: whether these wait in the processor's memory, which is not counted: only what is computed with just now is.
    """
    facts = (model, micro_batch_sequences, precision, checkpoint_activations, accumulates, products_length)
    state = optimizer_state_bytes(model, optimizer) + beside
    moments = _moments_of_a_pass(*facts, state, device)
    rounding = "bf16" if precision == "bf16-master" else precision  # an evaluation rounds the fp32 weights
    moments += _moments_of_an_evaluation(model, micro_batch_sequences, rounding, state, device)
    weights = FP32 * parameters(model)
    moments.append(Moment(weights, weights, state, 0, 0, _update_bytes(model, optimizer, muon_in_bf16)))
    if averaged:
        moments = [moment._replace(weights=2 * weights) for moment in moments]
    if precision == "bf16-master":
        halves = BF16 * model.blocks * sum(a * b for a, b in block_matrices(model))
        moments = [moment._replace(weights=moment.weights + halves) for moment in moments]
    if shards > 1 or offload:
        moments = [_sharded(moment, model, 0 if offload else 1 / shards) for moment in moments]
    apart = Moment(*map(max, zip(*moments, strict=True)))
    return TrainingMemory(max(moments, key=lambda moment: moment.peak), apart)


def _sharded(moment: Moment, model: ModelConfig, share: float) -> Moment:
    """What one of several devices holds at a moment, an estimate that was held against no GPU.

    That is its share of everything, none where that waits in the processor's memory; embedding and head, whole all through a pass; two blocks, the one that is computed and the next, which is
    gathered meanwhile; and of gradients those of embedding, head and one block.
    """
    block = FP32 * body_parameters(model) // model.blocks
    ends = FP32 * (parameters(model) - body_parameters(model))
    return moment._replace(
        weights=int(share * moment.weights) + ends + 2 * block,
        gradients=int(share * moment.gradients) + (ends + block if moment.gradients else 0),
        optimizer=int(share * moment.optimizer),
    )


def optimizer_state_bytes(model: ModelConfig, optimizer: str) -> int:
    """Bytes between steps, all fp32.

    Two numbers for a parameter that one of Adam's kind trains (moments, or schedule-free's base weights and second moment), one
    for SGD's momentum and for a matrix that Muon trains; Adafactor keeps one for each row and each column of a matrix.
    """
    matrices = block_matrices(model)
    if optimizer == "adafactor":
        ends = end_matrices(model)
        vectors = parameters(model) - model.blocks * sum(a * b for a, b in matrices) - sum(a * b for a, b in ends)
        return FP32 * (model.blocks * sum(a + b for a, b in matrices) + sum(a + b for a, b in ends) + vectors)
    once = {"sgd": parameters(model), "muon": model.blocks * sum(a * b for a, b in matrices)}.get(optimizer, 0)
    return FP32 * (2 * parameters(model) - once)


def host_bytes(model: ModelConfig) -> int:
    """Bytes of the processors' memory in which weights, gradients and two moments wait beside devices (some optimizers keep fewer)."""
    return 4 * FP32 * parameters(model)


def saved_bytes(model: ModelConfig, checkpoints: int = 1, *, exported: bool = False, averaged: bool = False) -> int:
    """Bytes on the disk: a checkpoint's weights, their average and two moments (some optimizers keep fewer), an exported model's."""
    return FP32 * (parameters(model) * (3 + averaged) * checkpoints + exported * parameters(plain_form(model)))


def _moments_of_a_pass(
    model: ModelConfig,
    sequences: int,
    precision: str,
    checkpointed: bool,
    accumulates: bool,
    products_length: int,
    state: int,
    device: str,
) -> list[Moment]:
    """The moments of a forward and backward pass at which memory may be fullest."""
    tokens = sequences * model.context_length
    c, rounded = (FP32, 0) if precision == "fp32" else (BF16, BF16)
    weights, head = FP32 * parameters(model), FP32 * model.vocab_size * model.embedding_width
    embedding = 0 if model.tie_embeddings else head
    features_gradient = FP32 * tokens * model.embedding_width
    residual = FP32 * tokens * model.width
    copies = block_copy_bytes(model, precision)
    block = tokens * block_activation_bytes(model, precision, products_length) + copies // model.blocks
    kept = residual if checkpointed else block
    kept_of_all = model.depth * residual if checkpointed else model.depth * (block - copies // model.blocks) + copies
    beside = mask_bytes(model, sequences, precision) + tokens * embedding_activation_bytes(model, precision)

    # Logits: all of them and, while the loss is computed, what they are rounded to and their logarithms of probabilities;
    # in the backward pass those, their gradient, and that of the logits.
    features = tokens * loss_activation_bytes(model, precision)
    head_copy = rounded * (model.vocab_size * model.embedding_width + 2 * model.width * model.embedding_rank)
    predicted = round(model.mask_rate * tokens) if model.encodes else tokens
    forward, backward = ((k * FP32 + r) * predicted * model.vocab_size for k, r in ((2, rounded), (3, 0)))
    before = weights if accumulates else 0
    made_early = 0
    if chunk := _chunk_bytes(
        model, predicted, precision, device
    ):  # the gradients of the head and of its input are made in the forward pass
        forward, backward, made_early = chunk + features_gradient, features_gradient, head
        head_copy -= rounded * model.vocab_size * model.embedding_width
    cached = copies if checkpointed else 0  # autocast keeps its copies until the forward pass is over

    # Of a block's backward pass the fullest moment is that of SwiGLU's product: its own gradient and its factors' have
    # been made, and of what was kept only the product is gone. A checkpointed block has just been computed again. In attention
    # by products it may be that of the softmax: gradients of weights and scores, when all that SwiGLU kept is gone.
    in_attention = 2 * model.heads * products_length - 4 * model.hidden
    passing = residual + c * tokens * max(2 * model.hidden, in_attention) + (block if checkpointed else 0)
    # The gradient of a tied head waits for that of the embedding; others join those before them as they come.
    waiting = head if accumulates and model.tie_embeddings else 0
    # A shared block's gradients are made by its last layer already.
    first_block = FP32 * (body_parameters(model) - model.width) // model.blocks if model.share_layers == 1 else 0
    after_head = before + waiting if accumulates else head
    after_blocks = before + waiting if accumulates else weights - embedding - first_block
    after_all = weights + waiting + (head if accumulates or model.tie_embeddings else 0)
    return [
        Moment(weights, before + made_early, state, beside + kept_of_all + features + head_copy + cached, forward),
        Moment(weights, before + made_early, state, beside + kept_of_all + features + head_copy, backward),
        Moment(weights, after_head, state, beside + kept_of_all + passing, 0),
        Moment(weights, after_blocks, state, beside + kept + passing, 0),
        Moment(weights, after_all, state, residual, 0),
    ]


def _moments_of_an_evaluation(
    model: ModelConfig, micro_batch_sequences: int, precision: str, state: int, device: str
) -> list[Moment]:
    """The moments of a forward pass without gradients at which memory may be fullest."""
    sequences = evaluation_sequences(model, micro_batch_sequences)
    tokens, mask = sequences * model.context_length, mask_bytes(model, sequences, precision)
    c, rounded = (FP32, 0) if precision == "fp32" else (BF16, BF16)
    weights, residual = FP32 * parameters(model), FP32 * tokens * model.width
    copies = block_copy_bytes(model, precision) + rounded * end_products(model)
    swiglu = 2 * residual + c * tokens * (
        model.width + 3 * model.hidden
    )  # what goes in, the SiLU, the other half, their product
    rows = min(LOGIT_ROWS, tokens) if precision == "fp32" or device == "cpu" else tokens
    logits = (2 * FP32 + rounded) * rows * model.vocab_size  # and the logarithms of probabilities
    return [
        Moment(weights, 0, state, mask + copies + swiglu, 0),
        Moment(weights, 0, state, copies + residual, logits),
    ]


def _chunk_bytes(model: ModelConfig, tokens: int, precision: str, device: str) -> int:
    """Bytes of the logits, and what is made of them, that the loss holds at once where it goes in chunks; 0 where it does not.

    Source for a GPU: `LinearCrossEntropyOptions`, `aspect_ratio:2` (torch/nn/modules/linear_cross_entropy_options.py).
    """
    if precision == "fp32":
        return 2 * FP32 * min(LOGIT_ROWS, tokens) * model.vocab_size
    if (
        device == "cpu"
    ):  # and another copy of them, the head's rounded copy, what a chunk adds to its gradient, and the features and theirs
        head = model.vocab_size * model.embedding_width
        return BF16 * (3 * min(LOGIT_ROWS, tokens) * model.vocab_size + 2 * head + 2 * tokens * model.embedding_width)
    if FP32 * tokens * model.vocab_size <= LOGIT_BYTES_BEFORE_CHUNKING:
        return 0
    rows = -(-tokens // -(-model.vocab_size // model.width))
    chunk = max(1, (1 << (rows - 1).bit_length()) // 2)
    return 2 * FP32 * min(chunk, tokens) * model.vocab_size


COPIES = {"adamax": (1, 0), "nadam": (2, 1), "adafactor": (1, 1), "schedulefree": (1, 1)}
"""Copies of a weight that an optimizer computes with, and those it still holds when it has come to the next weight. Optimizers
that are not named are fused, and need none."""


def _update_bytes(model: ModelConfig, optimizer: str, muon_in_bf16: bool) -> int:
    """Bytes that an optimizer computes with."""
    if optimizer == "muon":
        return _muon_bytes(model, one_at_a_time=muon_in_bf16)
    own, left = COPIES.get(optimizer, (0, 0))
    blocks = [a * b for a, b in block_matrices(model)] * min(2, model.blocks)
    ends = [a * b for a, b in end_matrices(model)]
    # Schedule-free AdamW goes through all weights in one function, the others through each group in one.
    in_a_row = [blocks + ends] if optimizer == "schedulefree" else [blocks, ends]
    return FP32 * max(left * before + own * now for row in in_a_row for before, now in zip([0, *row], row, strict=False))


def _muon_bytes(model: ModelConfig, *, one_at_a_time: bool) -> int:
    """Bytes that Muon computes with: updates, their orthogonalisation before and after an iteration, two Gram matrices."""
    return max(
        FP32 * (1 if one_at_a_time else count * model.blocks) * (3 * a * b + 2 * min(a, b) ** 2)
        for (a, b), count in Counter(block_matrices(model)).items()
    )
