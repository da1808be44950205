"""How large a model is, by its `config.json` or its name: widths, and the parameters that follow."""

from dataclasses import dataclass, replace
from typing import Any

from posttrain.config.model import ModelConfig, read_model_config


@dataclass(frozen=True)
class Tower:
    """The widths of a vision tower.

    Attributes:
        depth: Number of blocks.
        width: Width of a patch.
        inner: Width within a block's feed-forward part.
        patch: Values that a patch is made of.
        merge: Patches that become one token, along each side.
        gated: Whether the feed-forward part has a gate, and three matrices.
        mergers: Number of projections to the language model, DeepStack's included.
    """

    depth: int
    width: int
    inner: int
    patch: int = 3 * 2 * 14 * 14
    merge: int = 2
    gated: bool = False
    mergers: int = 1

    @property
    def patches(self) -> int:
        """Patches of a token."""
        return self.merge**2

    @property
    def parameters(self) -> int:
        """Number of its parameters, without norms, biases and position embeddings."""
        inner = (3 if self.gated else 2) * self.inner
        return self.depth * self.width * (4 * self.width + inner) + self.patch * self.width


@dataclass(frozen=True)
class Shape:
    """The widths of a model.

    Attributes:
        layers: Number of decoder layers.
        hidden: Width of the hidden states.
        heads: Number of attention heads.
        kv_heads: Number of heads of keys and values.
        head_dim: Width of a head.
        inner: Width within the feed-forward part; of mixtures of experts that of one expert.
        vocabulary: Number of tokens.
        tied: Whether input and output embeddings are the same.
        head_norms: Whether queries and keys are normalised.
        experts: Number of experts of a layer; 0 without.
        active: Number of experts that a token goes to.
        tower: The vision tower; None of a text model.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocabulary: int
    tied: bool = False
    head_norms: bool = False
    experts: int = 0
    active: int = 0
    tower: Tower | None = None

    @property
    def layer(self) -> int:
        """Parameters of a decoder layer."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        feed_forward = 3 * self.hidden * self.inner
        return attention + max(1, self.experts) * feed_forward + self.experts * self.hidden

    @property
    def embedding(self) -> int:
        """Parameters of one embedding, of input or output."""
        return self.vocabulary * self.hidden

    @property
    def mergers(self) -> int:
        """Parameters of the projections from vision to text."""
        if self.tower is None:
            return 0
        merged = self.tower.width * self.tower.patches
        return self.tower.mergers * merged * (merged + self.hidden)

    @property
    def parameters(self) -> int:
        """Number of all parameters, without norms and biases."""
        tower = self.tower.parameters if self.tower is not None else 0
        embeddings = self.embedding * (1 if self.tied else 2)
        return embeddings + self.layers * self.layer + tower + self.mergers


_TOWER_2 = Tower(depth=32, width=1280, inner=5120)
_TOWER_2_5 = Tower(depth=32, width=1280, inner=3420, gated=True)
_TOWER_3 = Tower(depth=24, width=1024, inner=4096, patch=1536, mergers=4)
_TOWER_3_LARGE = Tower(depth=27, width=1152, inner=4304, patch=1536, mergers=4)
_QWEN_7B = Shape(28, 3584, 28, 4, 128, 18944, 152064, tower=_TOWER_2)
_QWEN_72B = Shape(80, 8192, 64, 8, 128, 29568, 152064, tower=_TOWER_2)
_QWEN3_8B = Shape(36, 4096, 32, 8, 128, 12288, 151936, head_norms=True, tower=_TOWER_3_LARGE)
#: The published models, by how their names begin.
KNOWN: dict[str, Shape] = {
    "qwen2-vl-2b": Shape(28, 1536, 12, 2, 128, 8960, 151936, tied=True, tower=_TOWER_2),
    "qwen2-vl-7b": _QWEN_7B,
    "qwen2-vl-72b": _QWEN_72B,
    "qwen2.5-vl-3b": Shape(36, 2048, 16, 2, 128, 11008, 151936, tied=True, tower=_TOWER_2_5),
    "qwen2.5-vl-7b": replace(_QWEN_7B, tower=_TOWER_2_5),
    "qwen2.5-vl-32b": Shape(64, 5120, 40, 8, 128, 27648, 152064, tower=replace(_TOWER_2_5, inner=3456)),
    "qwen2.5-vl-72b": replace(_QWEN_72B, tower=replace(_TOWER_2_5, inner=3456)),
    "qwen3-vl-2b": Shape(28, 2048, 16, 8, 128, 6144, 151936, tied=True, head_norms=True, tower=_TOWER_3),
    "qwen3-vl-4b": Shape(36, 2560, 32, 8, 128, 9728, 151936, tied=True, head_norms=True, tower=_TOWER_3),
    "qwen3-vl-8b": _QWEN3_8B,
    "qwen3-vl-32b": replace(_QWEN3_8B, layers=64, hidden=5120, heads=64, inner=25600),
    "qwen3-vl-30b-a3b": replace(
        _QWEN3_8B, layers=48, hidden=2048, kv_heads=4, inner=768, experts=128, active=8
    ),
    "qwen3-vl-235b-a22b": replace(
        _QWEN3_8B, layers=94, heads=64, kv_heads=4, inner=1536, experts=128, active=8
    ),
}


def model_shape(model: ModelConfig) -> Shape | None:
    """Return the widths of a run's model; None if it is not known.

    They come from a local `config.json`, or else from the model's name.
    """
    return None if model.name_or_path is None else named_shape(model.name_or_path)


def named_shape(name_or_path: str) -> Shape | None:
    """Return the widths of a model by its name or directory; see `model_shape`."""
    local = read_model_config(name_or_path)
    if local:
        return shape_of(local)
    name = name_or_path.rpartition("/")[2].lower()
    known = max((key for key in KNOWN if name.startswith(key)), key=len, default=None)
    return None if known is None else KNOWN[known]


def shape_of(config: dict[str, Any]) -> Shape | None:
    """Read the widths in the `config.json` of a Qwen-VL or a language model; None if some are missing."""
    text = config.get("text_config", config)
    try:
        hidden, heads = text["hidden_size"], text["num_attention_heads"]
        experts = text.get("num_experts") or text.get("num_local_experts") or 0
        return Shape(
            layers=text["num_hidden_layers"],
            hidden=hidden,
            heads=heads,
            kv_heads=text.get("num_key_value_heads", heads),
            head_dim=text.get("head_dim") or hidden // heads,
            inner=text["moe_intermediate_size" if experts else "intermediate_size"],
            vocabulary=text["vocab_size"],
            tied=config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)),
            head_norms="qwen3" in config.get("model_type", ""),
            experts=experts,
            active=text.get("num_experts_per_tok", 0),
            tower=_tower_of(config) if "vision_config" in config else None,
        )
    except (KeyError, TypeError):
        return None


def _tower_of(config: dict[str, Any]) -> Tower:
    """Read the widths of the vision tower."""
    vision = config["vision_config"]
    width = vision.get("embed_dim") or vision["hidden_size"]
    channels = vision.get("in_channels") or vision.get("in_chans") or 3
    return Tower(
        depth=vision["depth"],
        width=width,
        inner=vision.get("intermediate_size") or int(vision.get("mlp_ratio", 4) * width),
        patch=channels * vision.get("temporal_patch_size", 2) * vision.get("patch_size", 14) ** 2,
        merge=vision.get("spatial_merge_size", 2),
        gated=config.get("model_type") == "qwen2_5_vl",
        mergers=1 + len(vision.get("deepstack_visual_indexes", ())),
    )
