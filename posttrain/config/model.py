"""The model that is trained, and the machine or cluster that trains it."""

import json
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from posttrain.config.base import MisfitError, Natural, Positive, PositiveFloat, Section
from posttrain.config.packages import PackageUse
from posttrain.config.paths import ModelPath
from posttrain.types import Family, ModelFamily, ToolFormat

AttnImplementation = Literal["sdpa", "flash_attention_2", "flash_attention_3"]
FusedLayers = Literal["none", "liger"]

#: What installs kernels that are no part of PyTorch.
_KERNELS: dict[str, PackageUse] = {
    "flash_attention_2": PackageUse(
        ("attn_implementation",),
        "flash_attn",
        "flash-attention",
        "pip install --no-build-isolation 'posttrain[flash-attention]'",
    ),
    "flash_attention_3": PackageUse(
        ("attn_implementation",),
        "flash_attn_interface",
        "",
        "build it from the folder hopper of github.com/Dao-AILab/flash-attention",
    ),
    "liger": PackageUse(("fused_layers",), "liger_kernel", "liger"),
}

#: Precedes its generation's number in the name of every published checkpoint.
_FAMILY_NAMES: dict[str, Family] = {
    r"qwen2-vl": "qwen2_vl",
    r"qwen2\.5-vl": "qwen2_5_vl",
    r"qwen3-vl": "qwen3_vl",
}


def read_model_config(checkpoint: Path | str) -> dict:
    """Read a local checkpoint's `config.json`; {} if there is none that can be read."""
    return _read_json(Path(base_model(checkpoint)) / "config.json")


def base_model(checkpoint: Path | str) -> Path | str:
    """Return the model that a checkpoint of adapters belongs to; any other checkpoint itself."""
    return _read_json(Path(checkpoint) / "adapter_config.json").get("base_model_name_or_path") or checkpoint


def _read_json(path: Path) -> dict:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def kernel_packages(attn_implementation: AttnImplementation, fused_layers: FusedLayers) -> list[PackageUse]:
    """List the optional packages of kernels, each with its key in the section of the model."""
    return [_KERNELS[name] for name in (attn_implementation, fused_layers) if name in _KERNELS]


def infer_family(checkpoint: Path | str) -> ModelFamily | None:
    """Find the family of a checkpoint by its `config.json`, or else by its name; None if neither says."""
    config = read_model_config(checkpoint)
    model_type = str(config.get("model_type", "")).removesuffix("_moe")
    name = str(base_model(checkpoint))
    for pattern, family in _FAMILY_NAMES.items():
        if model_type == family or (not model_type and re.search(pattern, name, re.IGNORECASE)):
            return family
    is_causal = any(str(each).endswith("ForCausalLM") for each in config.get("architectures") or ())
    return "text" if is_causal else None


#: How a model samples videos.
VIDEO_KEYS = ("video_fps", "video_max_frames", "video_max_tokens", "video_max_pixels")


class ModelConfig(Section):
    """The model that a run starts from."""

    name_or_path: ModelPath | None = Field(
        default=None,
        min_length=1,
        description="Hugging Face id or local directory. Absent where the first stage is tiny_model.",
    )
    family: ModelFamily | None = Field(
        default=None,
        description="Set it where neither the name nor config.json tells the family; text is a causal "
        "language model with a chat template of its own, trained on dialogues without images.",
    )
    freeze_vision_tower: bool = Field(
        default=True, description="Keep the vision tower's weights fixed, as the Qwen-VL reports do."
    )
    freeze_merger: bool = Field(
        default=False, description="Keep the projections from vision to text fixed (DeepStack's included)."
    )
    min_pixels: Positive | None = Field(
        default=None, description="Least pixels an image is resized to; the checkpoint's own value if absent."
    )
    max_pixels: Positive | None = Field(
        default=None, description="Most pixels an image is resized to; the checkpoint's own value if absent."
    )
    video_fps: PositiveFloat = Field(default=2.0, description="Frames sampled from a second of video.")
    video_max_frames: int = Field(
        default=768, ge=2, description="Most frames of a video; longer videos are sampled at fewer a second."
    )
    video_max_tokens: Positive = Field(
        default=16384,
        description="Most tokens of a video: its frames are made smaller, then fewer, until they fit.",
    )
    video_max_pixels: Positive | None = Field(
        default=None, description="Most pixels of a video's frame; the checkpoint's own value if absent."
    )
    earlier_thinking: Literal["keep", "strip"] = Field(
        default="keep",
        description="What becomes of <think> blocks before the last user message: kept, so that a dialogue's "
        "tokens are a prefix of the longer dialogue's; or stripped, as Qwen3's own templates do, and then "
        "a turn so cut is not learned from unless its message says train: true.",
    )
    tool_format: ToolFormat | None = Field(
        default=None,
        description="How the model calls tools; as its family was trained to if absent. hermes is JSON in "
        "<tool_call> tags, which Qwen3-VL knows; qwen2_vl is *FUNCTION* and *ARGS* as in the report on "
        "Qwen2-VL, with the results in the same turn; qwen_agent is the same with the marks of Qwen-Agent.",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="bfloat16", description="Precision of the weights in the learner and in the engine."
    )
    attn_implementation: AttnImplementation = Field(
        default="sdpa",
        description="Kernels of attention in the learner, of the vision tower too: PyTorch's own, or "
        "FlashAttention's, which have to be installed, need GPUs and compute in bfloat16.",
    )
    fused_layers: FusedLayers = Field(
        default="none",
        description="Kernels of RMSNorm, SwiGLU and rotary positions in the learner: PyTorch's own, or the "
        "fused ones of Liger (extra `liger`), which need GPUs and hold fewer activations.",
    )

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise MisfitError(
                "min_pixels", f"{self.min_pixels} is more than max_pixels = {self.max_pixels}", "swap the two"
            )
        if self.attn_implementation != "sdpa" and self.dtype == "float32":
            raise MisfitError(
                "attn_implementation",
                f"{self.attn_implementation} has no float32, which dtype asks for",
                "set dtype: bfloat16, or remove it",
            )
        if self.name_or_path and self.name_or_path.startswith("/") and not Path(self.name_or_path).is_dir():
            raise MisfitError(
                "name_or_path",
                f"there is no directory {self.name_or_path}",
                "correct the path, or name a model of the hub, such as Qwen/Qwen3-VL-8B-Instruct",
            )
        if self.name_or_path and not self.family and infer_family(self.name_or_path) is None:
            raise MisfitError(
                "family",
                f"{self.name_or_path!r} does not tell its family",
                "set it to qwen2_vl, qwen2_5_vl, qwen3_vl or text",
            )
        return self

    @model_validator(mode="after")
    def _check_family(self) -> "ModelConfig":
        if self.name_or_path is None:
            return self
        told = infer_family(self.name_or_path)
        if self.family and told and read_model_config(self.name_or_path) and self.family != told:
            raise MisfitError("family", f"{self.name_or_path}/config.json tells of {told}", "remove it")
        if (self.family or told) == "qwen3_vl" and self.tool_format not in (None, "hermes"):
            raise MisfitError(
                "tool_format",
                f"Qwen3-VL's template shows no images within a turn, as {self.tool_format} needs it to",
                "remove it: hermes is what Qwen3-VL was trained on",
            )
        if (self.family or told) == "text":
            _refuse_vision_keys(self.model_fields_set)
        return self

    def packages(self) -> list[PackageUse]:
        """List the optional packages that the section's settings need."""
        return kernel_packages(self.attn_implementation, self.fused_layers)

    def family_of(self, checkpoint: Path | str) -> ModelFamily:
        """Return the family of a checkpoint of this run: the one that is set, else the checkpoint's own.

        Raises:
            ValueError: If neither is known.
        """
        family = self.family or infer_family(checkpoint)
        if family is None:
            raise ValueError(f"{checkpoint} does not tell its family; set model.family")
        return family


def _refuse_vision_keys(keys: set[str]) -> None:
    """Refuse keys that have no effect on a model that sees no images."""
    seeing = ("freeze_vision_tower", "freeze_merger", "min_pixels", "max_pixels")
    for key in (*seeing, *VIDEO_KEYS):
        if key in keys:
            raise MisfitError(key, "a text model has no vision tower and sees no images", "remove it")


class ClusterConfig(Section):
    """The Ray cluster that runs the stages."""

    num_cpus: Positive | None = Field(
        default=None, description="CPUs that a local cluster offers; all of the machine's if absent."
    )
    num_gpus: Natural | None = Field(
        default=None,
        description="GPUs that the run uses: if absent, those that nvidia-smi lists and CUDA_VISIBLE_DEVICES "
        "does not hide, or those of the joined cluster. 0 runs on the CPU and hides GPUs from every process.",
    )
    object_store_mb: int = Field(
        default=256, ge=80, description="Shared memory for a local cluster's objects, in MiB."
    )
    address: str | None = Field(
        default=None,
        description="Address of a running Ray cluster: `auto`, or host:port; a local one starts if absent.",
    )
    placement: Literal["separate", "shared"] = Field(
        default="separate",
        description="Whether the engines and the learners of an rl stage have GPUs of their own, or share "
        "one set: then they take turns, and the engines sleep and give their memory back while the learners "
        "work.",
    )
    environment: list[str] = Field(
        default_factory=list,
        description="Names of environment variables that the processes on every node of a joined cluster "
        "get, besides HF_*, NCCL_*, GLOO_*, VLLM_*, POSTTRAIN_CACHE and those of proxies. Whoever sees the "
        "cluster's dashboard sees their values.",
    )


def check_directory(key: str, model: str | None) -> None:
    """Check that a model that is named by a path is there; a name of the hub is taken as it is.

    Args:
        key: The key that names it, from its section.
        model: The path or name, if it has one.

    Raises:
        MisfitError: If it is not.
    """
    if model and model.startswith("/") and not Path(model).is_dir():
        raise MisfitError(
            key,
            f"there is no directory {model}",
            "correct the path, or name a model of the hub, such as Qwen/Qwen3-VL-32B-Instruct",
        )
