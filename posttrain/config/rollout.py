"""How episodes are generated."""

from typing import Literal

from pydantic import Field, model_validator

from posttrain.config.base import MisfitError, Natural, NaturalFloat, Positive, PositiveFloat, Section


class EngineConfig(Section):
    """Memory and batch size of an engine (vLLM)."""

    gpu_memory_utilization: PositiveFloat = Field(
        default=0.85, le=1, description="Share of a GPU's memory that the engine may take."
    )
    kv_cache_gb: PositiveFloat | None = Field(
        default=None, description="Memory for keys and values in GiB; what is left of the engine's if absent."
    )
    max_num_seqs: Positive = Field(default=256, description="Most sequences decoded at once.")
    image_memory_gb: PositiveFloat | None = Field(
        default=None,
        description="Host memory for the pixels of images and videos in an engine's requests, in GiB: 3 "
        "bytes a pixel. Turns whose images find no room wait. If absent, an eighth of the machine's, shared "
        "by its engines.",
    )
    tensor_parallel_size: Positive = Field(
        default=1, description="Number of GPUs that an engine spans; on a CPU, of processes."
    )
    enforce_eager: bool = Field(
        default=False, description="Skip CUDA graphs: starts faster, generates slower. A CPU always does."
    )


class RolloutConfig(Section):
    """Number of engines and lengths of episodes.

    Training samples from the whole distribution: top-p and top-k would leave tokens out, and the
    probabilities of the others would not be the policy's.
    """

    actors: Positive = Field(default=1, description="Number of engines.")
    max_new_tokens: Positive = Field(default=1024, description="Most tokens of one turn of the model.")
    max_length: Positive = Field(
        default=8192,
        description="Most tokens of an episode: prompt, images, turns and observations. A prompt that leaves "
        "no room for an answer is left out: training takes the next in its place, an evaluation counts it.",
    )
    max_failed_share: NaturalFloat = Field(
        default=0.1,
        le=1,
        description="Largest share of a step's episodes, or an evaluation's, that tools and environments may "
        "fail (a dead server, an overrun deadline) before the run stops and names the tool. Fewer are left "
        "out and counted; each is played twice before it counts as failed.",
    )
    engine: EngineConfig = Field(default_factory=EngineConfig, description="Settings of each engine.")

    @property
    def scores(self) -> bool:
        """Whether its engines score given tokens, as those do whose publishes are proved."""
        return False

    @model_validator(mode="after")
    def _check(self) -> "RolloutConfig":
        if self.max_new_tokens >= self.max_length:
            raise MisfitError(
                "max_new_tokens",
                f"one turn of {self.max_new_tokens} tokens leaves no room for a prompt "
                f"in max_length = {self.max_length}",
                "lower it, or raise max_length",
            )
        return self


class OnPolicyRolloutConfig(RolloutConfig):
    """Engines and episodes of an rl stage, and how its engines follow the policy that is learned.

    Step k is learned at version k − 1 of the policy, and its prompts may start as soon as the engines serve
    version k − 1 − max_staleness. So no token is older than that, and no episode is discarded for being slow.
    """

    temperature: PositiveFloat = Field(
        default=1.0,
        description="Sampling temperature. Policy, ratios, entropy and engines' log-probabilities are all "
        "those of the distribution at this temperature, so that what is learned is what samples; evaluations "
        "have a temperature of their own.",
    )
    max_staleness: Natural = Field(
        default=0,
        description="Most versions of the policy by which a token may be older than the weights that learn "
        "from it. At 0 engines and learners take turns. At 1 or 2 the engines play the next steps' prompts "
        "while the learners are at work, so that both are busy.",
    )
    on_publish: Literal["recompute", "keep"] = Field(
        default="recompute",
        description="What happens to answers that are half sampled when new weights arrive, where "
        "max_staleness is above 0. `recompute`: the new weights read them again, and log-probs are exact. "
        "`keep`: they go on from what the old weights computed; the log-probs that follow are approximate, "
        "and marked so.",
    )
    publish: Literal["adapter", "merged"] | None = Field(
        default=None,
        description="How engines get adapters (LoRA): as an `adapter` beside the base weights, little to "
        "send, or `merged` into them, which is faster to sample from on a CPU. If absent, merged on a CPU "
        "and where lora.quantization is set, and else as an adapter.",
    )

    @property
    def scores(self) -> bool:
        """Whether its engines score given tokens."""
        return True

    @property
    def adapter_versions(self) -> int:
        """Most versions of adapters in an engine: the newest, those of turns in flight, one being loaded."""
        return self.max_staleness + 2

    @model_validator(mode="after")
    def _check_pacing(self) -> "OnPolicyRolloutConfig":
        if self.on_publish == "keep" and not self.max_staleness:
            raise MisfitError(
                "on_publish",
                "keep changes nothing at max_staleness = 0, where no answer is under way at a publish",
                "remove it, or raise max_staleness",
            )
        return self
