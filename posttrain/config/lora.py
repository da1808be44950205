"""Low-rank adapters."""

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from posttrain.config.base import MisfitError, NaturalFloat, Positive, Section
from posttrain.config.lora_targets import misread

#: Forms in which bitsandbytes holds fixed weights.
Quantization = Literal["nf4", "int8"]


class LoraConfig(Section):
    """Low-rank adapters (arXiv 2106.09685) in the language model; all other weights stay fixed.

    A stage's checkpoints then hold adapters only, which PEFT, transformers and vLLM load over the checkpoint
    that the stage began with. What follows the stage begins with a copy into which they are merged.
    """

    rank: Positive = Field(default=16, description="Rank of the adapters.")
    alpha: Positive = Field(
        default=32, description="Scale of the adapters: their product is multiplied by alpha / rank."
    )
    dropout: NaturalFloat = Field(default=0.0, lt=1, description="Dropout before the adapters.")
    quantization: Quantization | None = Field(
        default=None,
        description="Hold the fixed weights of the language model's linear layers in 4 bits (nf4, QLoRA) or "
        "in 8; needs `pip install 'posttrain[qlora]'`. Adapters are merged into the weights as they were.",
    )
    target_modules: Annotated[list[str], Field(min_length=1)] | str | None = Field(
        default=None,
        description="Names of the language model's linear layers to adapt, such as [q_proj, v_proj]; all of "
        "them if absent, or all-linear. Any other string is a regular expression over whole module names, "
        "which may reach the merger and the vision tower where the model section does not freeze them.",
    )

    @model_validator(mode="after")
    def _check(self) -> "LoraConfig":
        if isinstance(self.target_modules, str):
            if remedy := misread(self.target_modules):
                reason = f"{self.target_modules!r} is the whole name of no layer"
                raise MisfitError("target_modules", reason, remedy)
            try:
                re.compile(self.target_modules)
            except re.error as error:
                raise MisfitError(
                    "target_modules",
                    f"{self.target_modules!r} is no regular expression ({error})",
                    "correct it, or write a list of names, such as [q_proj, v_proj]",
                ) from None
        return self
