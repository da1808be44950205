"""The families' chat templates for training, and the choice of the one that a checkpoint is rendered with.

The published templates are written for inference: Qwen2-VL's and Qwen2.5-VL's know no tools (they write a
literal `<|im_start|>tool`), and Qwen3-VL-Thinking's removes the thinking of earlier turns, so that a
dialogue's tokens change when a turn is added. The templates in `posttrain/rendering/templates` write the same
text as the published ones for every prompt that these can express; they also announce tools, and keep every
turn as it was written.
"""

import logging
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Literal

from jinja2 import TemplateError

from posttrain.rendering.processors import TemplateProcessor
from posttrain.rendering.rendered import RenderError
from posttrain.types import Block, Message, ModelFamily

logger = logging.getLogger(__name__)

TemplateName = Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_thinking"]

#: Qwen2-VL and Qwen2.5-VL were published with one and the same template.
_FILES: dict[TemplateName, str] = {
    "qwen2_vl": "qwen2_vl",
    "qwen2_5_vl": "qwen2_vl",
    "qwen3_vl": "qwen3_vl",
    "qwen3_vl_thinking": "qwen3_vl",
}
_OF_FAMILY: dict[ModelFamily, tuple[TemplateName, ...]] = {
    "qwen2_vl": ("qwen2_vl",),
    "qwen2_5_vl": ("qwen2_5_vl",),
    "qwen3_vl": ("qwen3_vl", "qwen3_vl_thinking"),
    "text": (),  # each text model has its own
}
#: A thinking checkpoint's prompt ends with the first line of the answer.
_OPENS_THINKING = "{%- if add_generation_prompt %}{{- '<think>\\n' }}{%- endif %}\n"

_SYSTEM = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
_QUESTION = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}
_ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}
_THINKING = "<think>\nfur\n</think>\n\nA cat."
_THOUGHT = {"role": "assistant", "content": [{"type": "text", "text": _THINKING}]}
_RESULT = {"role": "tool", "content": [{"type": "image"}, {"type": "text", "text": "crop"}]}
_TOOL_NAME = "probe_of_the_template"
_TOOL = {"type": "function", "function": {"name": _TOOL_NAME, "parameters": {}}}

#: Prompts for which every template of a family should write the same text.
_PROMPTS = ([_QUESTION], [_SYSTEM, _QUESTION], [_SYSTEM, _QUESTION, _ANSWER, _QUESTION])


def chat_template(name: TemplateName) -> str:
    """Read a training template that ships with the package.

    Tests compare these with the published `qwen2_5_vl`, `qwen3_vl`, `qwen2_5` (tools) and `qwen3` (thinking)
    templates, of which TRL has copies. No copy of Qwen3-VL-Thinking's own template was available:
    `qwen3_vl_thinking` is Qwen3-VL's with the `<think>` line that the thinking checkpoints' prompts end with.
    """
    path = files("posttrain") / "rendering" / "templates" / f"{_FILES[name]}.jinja"
    text = path.read_text(encoding="utf-8")
    return text + _OPENS_THINKING if name == "qwen3_vl_thinking" else text


def training_template(processor: TemplateProcessor, family: ModelFamily) -> str:
    """Choose the template to train a checkpoint with: its own if that is fit, else one of the family's.

    Its own template is fit if it announces tools, shows their results and keeps the thinking of earlier
    turns. If it is not, a template of the family takes its place, provided that both write the same text for
    ordinary prompts. A template of another format is kept, and `Renderer` refuses what it cannot express.

    Args:
        processor: The checkpoint's processor.
        family: Its family.

    Raises:
        ValueError: If neither the checkpoint nor its family has a template.
    """
    own = processor.chat_template
    shipped = [(name, chat_template(name)) for name in _OF_FAMILY[family]]
    if not (own or shipped):
        raise ValueError("the checkpoint has no chat template; add one to its tokenizer_config.json")
    if not own:
        name, template = shipped[0]
        logger.warning("the checkpoint has no chat template; it is rendered with %s", name)
        return template
    if _keeps_everything(processor, own):
        return own
    expected = _write_prompts(processor, own)
    for name, template in shipped:
        if expected == _write_prompts(processor, template):
            logger.info(
                "the checkpoint's chat template lacks tools or drops thinking; training uses %s", name
            )
            return template
    return own


def without_earlier_thinking(messages: Sequence[Message]) -> list[Message]:
    """Remove the thinking before the last user message, as Qwen3's published templates do.

    A turn that is changed gets `train: false`, unless it says `train: true` itself.
    """
    last = max((index for index, message in enumerate(messages) if message.role == "user"), default=0)
    kept = list(messages)
    for index, message in enumerate(messages[:last]):
        _, end, answer = message.text.rpartition("</think>")
        if message.role == "assistant" and end:
            others = (block for block in message.content if block.type != "text")
            content = (Block("text", text=answer.lstrip("\n")), *others)
            kept[index] = Message("assistant", content, train=message.train is True)
    return kept


def _keeps_everything(processor: TemplateProcessor, template: str) -> bool:
    """Tell whether a template writes tools, their results and earlier thinking."""
    dialogue = [_QUESTION, _THOUGHT, _RESULT, _ANSWER, _QUESTION]
    written = _write(processor, template, dialogue, [_TOOL])
    needed = (_TOOL_NAME, _THINKING, "<tool_response>")
    return all(text in written for text in needed)


def _write_prompts(processor: TemplateProcessor, template: str) -> list[str]:
    """Return the texts that a template writes for the probe prompts."""
    return [_write(processor, template, prompt) for prompt in _PROMPTS]


def _write(
    processor: TemplateProcessor,
    template: str,
    dialogue: Sequence[Mapping[str, object]],
    tools: Sequence[Mapping[str, object]] = (),
) -> str:
    """Return the text of a dialogue with the header of the next turn; "" if the template refuses it."""
    try:
        return processor.apply_chat_template(
            list(dialogue),
            tools=list(tools) or None,
            chat_template=template,
            add_generation_prompt=True,
            tokenize=False,
        )
    except (TemplateError, TypeError):  # TypeError: a template for plain strings got blocks
        return ""


def check_text_kept(rendered: str, messages: Sequence[Message]) -> None:
    """Refuse a rendering in which the template silently dropped a text, such as a late system message.

    Args:
        rendered: The text that the template wrote.
        messages: The messages, in order.

    Raises:
        RenderError: If a text is missing; the message quotes it.
    """
    position = 0
    for message in messages:
        for block in message.content:
            text = block.text.strip()
            found = rendered.find(text, position)
            if found < 0:
                raise RenderError(
                    f"the chat template drops the {message.role} text {text[:60]!r}; most templates allow a"
                    " system message at the start only"
                )
            position = found + len(text)
