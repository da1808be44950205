"""A whole sample in tokens: with its tools, and both replies where it is a preference pair."""

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

from posttrain.plugins import resolve
from posttrain.rendering.rendering import Rendered, Renderer
from posttrain.types import Message, Sample, ToolSpec


class SampleTokens:
    """Counts the tokens of a sample as a stage renders it; a `TokenCounter`.

    Attributes:
        identity: Differs where the template, the tokenizer or the sizes of images differ.
    """

    def __init__(self, renderer: Renderer):
        self._renderer = renderer.counting()
        processor = renderer.processor
        tokenizer = renderer.tokenizer.backend_tokenizer.to_str()
        seen = ("", "")
        if renderer.family != "text":
            seen = (processor.image_processor.to_json_string(), renderer.videos.identity)
        parts = (processor.chat_template, tokenizer, *seen)
        self.identity = hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()

    def __call__(self, sample: Sample) -> int:
        """Tokens of the dialogue; of a preference pair, of both.

        Raises:
            RenderError: If the sample cannot be shown to the model.
            ImageError: If an image cannot be read.
        """
        return sum(len(rendered.token_ids) for _, rendered in renderings(sample, self._renderer))


def renderings(sample: Sample, renderer: Renderer) -> list[tuple[str, Rendered]]:
    """A sample as stages render it: its dialogue, or of a preference pair one for each reply.

    Returns:
        (name, dialogue), the name being `chosen`, `rejected` or "".

    Raises:
        RenderError: If the sample cannot be shown to the model.
        ImageError: If an image cannot be read.
        PluginError: If a tool that it names cannot be found.
    """
    tools = tool_specs(sample)
    dialogues: list[tuple[str, Sequence[Message]]] = [("", sample.messages)]
    if sample.chosen:
        replies = (("chosen", sample.chosen), ("rejected", sample.rejected))
        dialogues = [(name, (*sample.messages, *reply)) for name, reply in replies]
    return [(name, renderer.render(messages, tools=tools)) for name, messages in dialogues]


def tool_specs(sample: Sample) -> list[ToolSpec]:
    """What the model is told of a sample's tools; those named only are looked up.

    Raises:
        PluginError: If one cannot be found.
    """
    return [tool if isinstance(tool, ToolSpec) else _declared_spec(tool) for tool in sample.tools]


@functools.cache
def _declared_spec(name: str) -> ToolSpec:
    tool: Any = resolve(name, "posttrain.tools", object)
    return (tool() if isinstance(tool, type) else tool).spec
