"""Models that answer questions: behind an endpoint, or in engines that the run starts itself."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationError, model_validator

from posttrain.config.base import Address, MisfitError, Name, Positive, PositiveFloat, Section
from posttrain.config.model import VIDEO_KEYS, ModelConfig
from posttrain.config.paths import ModelPath
from posttrain.config.rollout import EngineConfig
from posttrain.types import ModelFamily


class EndpointConfig(Section):
    """A model behind an OpenAI-compatible endpoint, with limits of requests and retries."""

    model: str = Field(min_length=1, description="Name under which the endpoint serves the model.")
    base_url: Address = Field(
        default="",
        description="Address up to and including /v1; that of the variable POSTTRAIN_ENDPOINT_URL if absent.",
    )
    concurrency: Positive = Field(default=16, description="Requests that are under way at once.")
    timeout_s: PositiveFloat = Field(default=300.0, description="Seconds for one attempt.")
    max_attempts: Positive = Field(default=6, description="Attempts for one answer, with growing pauses.")
    image_max_pixels: Positive = Field(
        default=1 << 21, description="Larger images are made smaller to so many pixels before they are sent."
    )
    request: dict[str, Any] = Field(
        default_factory=dict,
        description="More fields of every request, such as top_p; null takes a field out, such as seed.",
    )

    @model_validator(mode="after")
    def _check(self) -> "EndpointConfig":
        if owned := sorted({"model", "messages", "stream", "n"} & self.request.keys()):
            raise MisfitError("request", f"{owned[0]} cannot be changed there", "remove it")
        return self


class ServedConfig(Section):
    """How a model is served in engines that the run starts itself, and ends when no step needs them."""

    family: ModelFamily | None = Field(
        default=None, description="Set it where neither the name nor config.json tells the family."
    )
    dtype: Literal["float32", "bfloat16"] = Field(default="bfloat16", description="Precision of the weights.")
    max_pixels: Positive | None = Field(
        default=None, description="Most pixels an image is resized to; the checkpoint's own value if absent."
    )
    video_fps: PositiveFloat = Field(default=2.0, description="Frames sampled from a second of video.")
    video_max_frames: int = Field(default=768, ge=2, description="Most frames of a video.")
    video_max_tokens: Positive = Field(default=16384, description="Most tokens of a video.")
    video_max_pixels: Positive | None = Field(
        default=None, description="Most pixels of a video's frame; the checkpoint's own value if absent."
    )
    actors: Positive = Field(default=1, description="Number of engines.")
    max_length: Positive = Field(default=32768, description="Most tokens of a query with its answer.")
    engine: EngineConfig = Field(default_factory=EngineConfig, description="Settings of each engine.")

    @property
    def concurrency(self) -> int:
        """Number of queries that are answered at the same time."""
        return self.actors * self.engine.max_num_seqs


#: What a served model has in common with a run's.
_SHARED = {"family", "dtype", "max_pixels", *VIDEO_KEYS}


def shared_with(model: ModelConfig) -> dict[str, Any]:
    """Return what a run says of its model, as far as it is said of a served one."""
    return model.model_dump(include=_SHARED, exclude_unset=True)


class EarlierModelConfig(ServedConfig):
    """The model of an earlier stage of the run whose stage curates, in engines of its own."""

    stage: Name = Field(
        description="An earlier stage of the run, whose final checkpoint it is; only where a stage curates. "
        "Family, dtype, max_pixels and how videos are sampled are then the run's unless set."
    )

    def at(self, checkpoint: str, model: ModelConfig) -> "CheckpointConfig":
        """Return the same model once it is known where it is, as one of a run whose `model` this is."""
        how = shared_with(model)
        how |= {key: getattr(self, key) for key in self.model_fields_set if key != "stage"}
        return CheckpointConfig(checkpoint=checkpoint, **how)


class CheckpointConfig(ServedConfig):
    """A model in engines that the run starts itself, and ends when no step needs them."""

    checkpoint: ModelPath = Field(
        min_length=1,
        description="Hugging Face id, or a directory, relative to the YAML file; adapters are to be merged.",
    )

    @property
    def as_model(self) -> ModelConfig:
        """The same model as a model section of a run.

        Raises:
            ValueError: If its family is not known, or its directory does not exist.
        """
        settings = self.model_dump(include=_SHARED, exclude_none=True, exclude_unset=True)
        try:
            return ModelConfig.model_validate(settings | {"name_or_path": self.checkpoint})
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


def _kind_of_model(value: object) -> str:
    """Tell which class an entry of a recipe is: one with `checkpoint` or `stage` is our own."""
    for key, kind in (("checkpoint", CheckpointConfig), ("stage", EarlierModelConfig)):
        if isinstance(value, kind) or (isinstance(value, dict) and key in value):
            return kind.__name__
    return EndpointConfig.__name__


ModelEntry = Annotated[
    Annotated[EndpointConfig, Tag(EndpointConfig.__name__)]
    | Annotated[CheckpointConfig, Tag(CheckpointConfig.__name__)]
    | Annotated[EarlierModelConfig, Tag(EarlierModelConfig.__name__)],
    Discriminator(_kind_of_model),
]
