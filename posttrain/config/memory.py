"""What a process holds in memory at once: arithmetic on the widths of a model and the settings of a stage.

    states      = masters + moments + gradients + fixed weights           of this process's share
    activations = tokens × bytes a token and layer; with checkpointing layers' inputs, and one whole layer
    peak        = the largest of: in the vision tower, at the head, in the last layers and the first ones

The bytes of a token follow from what autograd keeps of transformers' layers, operation by operation; measured
on real layers they agree within a percent. The rest is checked by `scripts/bench_memory.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from posttrain.config.lora import LoraConfig
from posttrain.config.shapes import Shape, Tower, named_shape

BYTES = {"float32": 4, "bfloat16": 2}
#: Bytes of a parameter that bitsandbytes holds, with the scales of its blocks.
QUANTIZED = {"nf4": 0.53, "int8": 1.01}
#: Positions whose logits exist at the same time (see `posttrain.models.logprobs`).
CHUNK = 512
#: The same of divergences between two models (see `posttrain.models.divergences`).
DIVERGENCE_CHUNK = 128
#: Most bytes of logits that an engine holds at once of given tokens, which it scores or reads.
GIVEN_LOGITS = 1.0 * 2**30
#: Bytes that one of them takes: in float32, as a log-prob, as whether it exceeds the token's, and where a CPU
#: counts these. In bfloat16, and on a GPU, it takes less.
GIVEN_LOGIT = 17
#: What a GPU's process takes besides tensors: CUDA's context, NCCL's and cuBLAS's buffers, holes.
CUDA_OVERHEAD = 1.5 * 2**30
#: The same of an engine, with its activations and CUDA graphs.
ENGINE_OVERHEAD = 3.0 * 2**30
#: What an engine keeps of a GPU while it sleeps: CUDA's context, NCCL's buffers and CUDA graphs.
ENGINE_ASLEEP = 2.0 * 2**30


@dataclass(frozen=True)
class Cards:
    """The GPUs that a run is to fit on.

    Attributes:
        count: How many there are.
        memory: Bytes of each; None where that is not known.
    """

    count: int = 0
    memory: float | None = None


def card_memory(sold: float) -> float:
    """Return the bytes of a GPU that is sold with so many GB: of 80 there are about 79 GiB, of 141 139."""
    return 0.985 * sold * 2**30


@dataclass(frozen=True)
class ModelLoad:
    """A run's model, as stages hold it.

    Attributes:
        shape: Its widths.
        width: Bytes of a parameter in the model's own type.
        tower_trained: Whether the vision tower is trained.
        mergers_trained: Whether the projections from vision to text are trained.
    """

    shape: Shape
    width: int
    tower_trained: bool = False
    mergers_trained: bool = True

    @property
    def trained(self) -> int:
        """Number of parameters that a stage without adapters trains."""
        tower = self.shape.tower.parameters if self.shape.tower is not None else 0
        fixed = tower * (not self.tower_trained) + self.shape.mergers * (not self.mergers_trained)
        return self.shape.parameters - fixed


def served_beside(model: ModelLoad, name: str | None) -> ModelLoad | None:
    """Return a model that a run's engines serve beside its own, by name; None if its widths are not known.

    Args:
        model: The run's own, whose type it has.
        name: Hugging Face id or local directory; None for a model like the run's own.
    """
    shape = model.shape if name is None else named_shape(name)
    return None if shape is None else ModelLoad(shape, model.width)


@dataclass(frozen=True)
class LearnerLoad:
    """What a process of a stage that trains computes at once, and what it keeps.

    Attributes:
        tokens: Most tokens of a micro-batch.
        rows: Rows that these are in, padded to the longest; several take a mask.
        accumulates: Whether a step has more micro-batches than one.
        shards: Processes that share weights, gradients and moments.
        held: Bytes of a trained parameter: its weight, its gradient, and the optimiser's states.
        checkpointing: Whether activations are computed twice.
        offloading: Whether the inputs of layers are kept in the host's memory.
        reference: Whether a fixed copy of the model is kept.
        teaches: Whether distributions over the whole vocabulary are compared with a teacher's.
        teacher: Its widths, where it is no copy of the model, and they are known.
        sees_images: Whether the micro-batch may hold images.
        lora: The adapters that are trained in place of the weights.
    """

    tokens: int
    rows: int = 1
    accumulates: bool = False
    shards: int = 1
    held: tuple[float, float, float] = (4, 4, 8)
    checkpointing: bool = False
    offloading: bool = False
    reference: bool = False
    teaches: bool = False
    teacher: Shape | None = None
    sees_images: bool = True
    lora: LoraConfig | None = None

    @property
    def padded(self) -> bool:
        """Whether attention takes a mask."""
        return self.rows > 1


@dataclass(frozen=True)
class Memory:
    """The bytes of a process.

    Attributes:
        certain: What is held whatever the data are, by name.
        activations: What is kept of a micro-batch from the forward pass to the backward pass.
        peak: The most that is held at once.
    """

    certain: Mapping[str, float]
    activations: float
    peak: float

    @property
    def least(self) -> float:
        """Bytes without which nothing can be computed."""
        return sum(self.certain.values())


def learner_memory(model: ModelLoad, load: LearnerLoad) -> Memory:
    """Estimate what a process that trains holds."""
    if not load.sees_images:  # and then nothing of the vision tower is trained either
        model = replace(model, tower_trained=False, mergers_trained=False)
    trained = adapters(model.shape, load.lora.rank) if load.lora is not None else model.trained
    weights, gradients, moments = (size * trained / load.shards for size in load.held)
    held = weights + moments
    fixed = _fixed(model, load)
    activations = saved_activations(model, load)
    kept = held + fixed + (gradients if load.accumulates else 0)
    ends, layer = _gathered(model, load)
    passes = (
        kept + tower_pass(model, load),
        kept + activations + ends + head_pass(model, load),
        kept + activations + ends + layer + layer_pass(model, load),
        held + fixed + gradients + ends + layer + max(layer_pass(model, load), _reduced(model, load)),
    )
    certain = {
        "weights": weights,
        "moments": moments,
        "gradients": gradients,
        "fixed weights": fixed,
    }
    return Memory(certain, activations, max(passes))


def adapters(shape: Shape, rank: int) -> int:
    """Count the parameters of adapters for all linear layers of the language model."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = 2 * (shape.hidden + queries) + 2 * (shape.hidden + keys)
    return rank * shape.layers * (attention + max(1, shape.experts) * 3 * (shape.hidden + shape.inner))


def layer_bytes(shape: Shape, width: int, padded: bool) -> int:
    """Return the bytes that autograd keeps of a token in one decoder layer.

    Two norms keep their input in float32 and its normalised form, linear layers their inputs, attention its
    queries, keys, values and result, and the feed-forward part four vectors of its inner width. A mask makes
    copies of the keys and values for every head.
    """
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    norms = 2 * (4 + width) * shape.hidden + 2 * width * shape.hidden
    head_norms = (4 + width) * (queries + keys) if shape.head_norms else 0
    attended = 2 * queries if padded else 2 * keys
    attention = width * (2 * queries + attended) + 4 * shape.heads
    experts = max(1, shape.active)
    feed_forward = 4 * width * shape.inner * experts
    if shape.experts:  # each expert has its own copy of the token, and of what it gives
        feed_forward += 2 * width * shape.hidden * experts
    return norms + head_norms + attention + feed_forward


def tower_bytes(tower: Tower, width: int) -> int:
    """Return the bytes that autograd keeps of a patch in one block of the vision tower."""
    inner = (4 if tower.gated else 2) * tower.inner
    return width * (9 * tower.width + inner)


def saved_activations(model: ModelLoad, load: LearnerLoad) -> float:
    """Return the bytes that are kept from the forward pass to the backward pass."""
    shape, width = model.shape, model.width
    inputs = 0 if load.offloading else width * shape.hidden
    layer = inputs if load.checkpointing else layer_bytes(shape, width, load.padded)
    ends = (4 + 3 * width) * shape.hidden  # embeddings, last norm, input of the head
    text = load.tokens * (shape.layers * layer + ends)
    return text + _saved_by_vision(model, load)


def _saved_by_vision(model: ModelLoad, load: LearnerLoad) -> float:
    """Return what the tower and its mergers keep, where every token may be part of an image."""
    tower, width = model.shape.tower, model.width
    if tower is None or not load.sees_images:
        return 0
    patches = load.tokens * tower.patches
    pixels = 4 * tower.patch * patches
    kept = 0.0
    if load.lora is None and (model.mergers_trained or model.tower_trained):
        kept += tower.mergers * patches * width * 4 * tower.width
    if load.lora is None and model.tower_trained:
        block = width * tower.width if load.checkpointing else tower_bytes(tower, width)
        kept += patches * tower.depth * block
    return pixels + kept


def tower_pass(model: ModelLoad, load: LearnerLoad) -> float:
    """Return what the vision tower needs at once, beside what is kept."""
    tower, width = model.shape.tower, model.width
    if tower is None or not load.sees_images:
        return 0
    patches = load.tokens * tower.patches
    # Of its blocks the rotation of queries and keys takes most; copies in another type come on top.
    copies = 8 * tower.width + width * tower.patch if width < 4 else 0
    within = patches * (20 * tower.width + 6 * width * tower.width + copies)
    return _saved_by_vision(model, load) + within


def head_pass(model: ModelLoad, load: LearnerLoad) -> float:
    """Return what the log-probs need at once: a chunk, and the gradients of hidden states and head."""
    shape, width = model.shape, model.width
    logits = min(CHUNK, load.tokens) * shape.vocabulary
    hidden = width * load.tokens * shape.hidden
    forward = 8 * logits
    if load.teaches:  # the teacher's head and states, and a chunk of both distributions
        teacher = load.teacher or shape
        hidden += width * (load.tokens * teacher.hidden + (load.shards > 1) * teacher.embedding)
        forward = max(forward, 8 * 4 * min(DIVERGENCE_CHUNK, load.tokens) * shape.vocabulary)
    if load.lora is not None:
        return hidden + forward
    copied = width if width < 4 else 0  # gradients are computed in the model's type, and added up in float32
    return hidden + max(forward, (4 + copied) * (logits + shape.embedding))


def layer_pass(model: ModelLoad, load: LearnerLoad) -> float:
    """Return what the backward pass of one layer needs beside what is kept."""
    shape, width = model.shape, model.width
    again = layer_bytes(shape, width, load.padded) if load.checkpointing else 0
    within = width * (2 * shape.inner * max(1, shape.active) + 4 * shape.hidden)
    gradients = 0 if load.lora is not None else width * shape.embedding + (4 + width) * shape.layer
    mask = (1 + width) * load.tokens**2 / load.rows if load.padded else 0  # as truths, and as numbers to add
    return load.tokens * (again + within) + mask + gradients


def _reduced(model: ModelLoad, load: LearnerLoad) -> float:
    """Return what the last sum over the ranks takes, of the gradients of embeddings and mergers."""
    return 0 if load.lora is not None else (4 + model.width) * _ends(model.shape)


def _fixed(model: ModelLoad, load: LearnerLoad) -> float:
    """Return the bytes of weights that are not trained, and of a reference."""
    shape, width = model.shape, model.width
    tower = shape.tower.parameters if shape.tower is not None else 0
    if load.lora is None:
        apart = tower * (not model.tower_trained)
        rest = shape.parameters - model.trained - apart
        fixed = width * (apart + rest / load.shards)
    else:
        layers = shape.layers * shape.layer
        inside = QUANTIZED.get(load.lora.quantization or "", width)
        outside = shape.parameters - layers - tower
        fixed = width * tower + (inside * layers + width * outside) / load.shards
    teacher = 0 if load.teacher is None else load.teacher.parameters
    beside = load.reference * shape.parameters + teacher
    return fixed + width * beside / load.shards


def _ends(shape: Shape) -> int:
    """Return the number of parameters that are in no layer: embeddings and mergers."""
    return shape.embedding * (1 if shape.tied else 2) + shape.mergers


def _gathered(model: ModelLoad, load: LearnerLoad) -> tuple[float, float]:
    """Return the bytes of weights that are whole while they compute: the ends, and a layer and the next."""
    if load.lora is not None and load.shards == 1:
        return 0, 0  # nobody shares them: they lie where they compute
    return model.width * _ends(model.shape), 2 * model.width * model.shape.layer


def given_at_once(vocabulary: int) -> int:
    """Return of how many given tokens an engine computes the logits at once (see `vllm_logits`)."""
    return max(1, int(GIVEN_LOGITS / (GIVEN_LOGIT * vocabulary)))


def given_logits(shape: Shape, max_length: int) -> float:
    """Return the bytes of logits of given tokens, beside all else that an engine needs.

    Args:
        shape: Widths of the model that it serves.
        max_length: Most tokens of a sequence.
    """
    return float(GIVEN_LOGIT * shape.vocabulary * min(max_length, given_at_once(shape.vocabulary)))


def engine_least(model: ModelLoad, max_length: int, gpus: int = 1) -> float:
    """Return what an engine needs of each GPU to serve one sequence.

    These are weights, keys and values, and what passes. Of several GPUs each has its part of the heads; heads
    of keys that are fewer than the GPUs are held more than once.

    Args:
        model: The model that it serves.
        max_length: Tokens of the sequence.
        gpus: Number of GPUs that it spans.
    """
    shape = model.shape
    cache = 2 * shape.layers * math.ceil(shape.kv_heads / gpus) * shape.head_dim * model.width
    return model.width * shape.parameters / gpus + cache * max_length + ENGINE_OVERHEAD
