"""Count the tokens of whole samples: with their tools, and with both replies of a preference pair."""

from collections.abc import Sequence

from posttrain.rendering.rendering import Rendered, Renderer
from posttrain.rendering.tools import tool_specs
from posttrain.types import Message, Sample


class SampleTokens:
    """Counts the tokens of a sample as stages render it, without decoding images; a `TokenCounter`.

    Attributes:
        identity: The renderer's; counts under equal ones are the same.
    """

    def __init__(self, renderer: Renderer):
        self._renderer = renderer.counting()
        self.identity = renderer.identity

    def __call__(self, sample: Sample) -> int:
        """Count the tokens of a sample; of a preference pair, those of both dialogues together.

        Raises:
            RenderError: If the sample cannot be shown to the model.
            ImageError: If an image cannot be read.
        """
        return sum(len(rendered.token_ids) for _, rendered in renderings(sample, self._renderer))


def renderings(sample: Sample, renderer: Renderer) -> list[tuple[str, Rendered]]:
    """Render a sample as stages do: its dialogue, or one dialogue for each reply of a preference pair.

    Returns:
        (name, dialogue) pairs; the name is `chosen` or `rejected` in a preference pair, else "".

    Raises:
        RenderError: If the sample cannot be shown to the model.
        ImageError: If an image cannot be read.
        PluginError: If a tool that the sample names cannot be found.
    """
    tools = tool_specs(sample)
    dialogues: list[tuple[str, Sequence[Message]]] = [("", sample.messages)]
    if sample.chosen:
        replies = (("chosen", sample.chosen), ("rejected", sample.rejected))
        dialogues = [(name, (*sample.messages, *reply)) for name, reply in replies]
    return [(name, renderer.render(messages, tools=tools)) for name, messages in dialogues]
