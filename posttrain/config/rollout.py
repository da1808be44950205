"""How episodes are generated."""

from pydantic import Field, model_validator

from posttrain.config.base import MisfitError, Positive, PositiveFloat, Section


class EngineConfig(Section):
    """Memory and batch size of an engine (vLLM)."""

    gpu_memory_utilization: PositiveFloat = Field(
        default=0.85, le=1, description="Share of a GPU's memory that the engine may take."
    )
    kv_cache_gb: PositiveFloat | None = Field(
        default=None, description="Memory for keys and values in GiB; what is left of the engine's if absent."
    )
    max_num_seqs: Positive = Field(default=256, description="Most sequences decoded at once.")
    tensor_parallel_size: Positive = Field(
        default=1, description="Number of GPUs that an engine spans; on a CPU, of processes."
    )
    enforce_eager: bool = Field(
        default=False, description="Skip CUDA graphs: starts faster, generates slower. A CPU always does."
    )


class RolloutConfig(Section):
    """Number of engines and lengths of episodes.

    Training samples at temperature 1 from the whole distribution: anything else would make the
    engine's log-probabilities those of another policy.
    """

    actors: Positive = Field(default=1, description="Number of engines.")
    max_new_tokens: Positive = Field(default=1024, description="Most tokens of one turn of the model.")
    max_length: Positive = Field(
        default=8192,
        description="Most tokens of an episode: prompt, images, turns and observations. A prompt that leaves "
        "no room for an answer is left out: training takes the next in its place, an evaluation counts it.",
    )
    engine: EngineConfig = Field(default_factory=EngineConfig, description="Settings of each engine.")

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
