"""Talk to a checkpoint: transformers' generate on this machine, word by word, with tools if it has some."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TextStreamer

from posttrain.config.model import infer_family
from posttrain.files.nearest import did_you_mean
from posttrain.joints import Environment, Tool
from posttrain.models.lora import load_merged
from posttrain.rendering.collation import collate
from posttrain.rendering.rendering import Renderer
from posttrain.types import Block, EnvironmentReply, ImageRef, Message, Sample

HELP = "/image FILE shows an image with the next question, /new begins anew, /quit ends"


class ChatError(ValueError):
    """A checkpoint or an image that nothing can be asked about."""


def check_image(image: Path) -> None:
    """Refuse an image that is no file, which a question need not wait for."""
    if not image.is_file():
        near = did_you_mean(image.name, [path.name for path in image.parent.glob("*")])
        raise ChatError(f"there is no image {image}{near and '; '}{near}")


class Chat:
    """A dialogue with a checkpoint.

    Args:
        checkpoint: Directory of a model or of adapters, or a Hugging Face id.
        write: Takes each piece of an answer as it comes.
        max_new_tokens: Most tokens of a turn.
        temperature: 0 is greedy.
        tools: Offered to the model in every turn.
        new_environment: Makes the environment in which the calls of one answer are run.

    Raises:
        ChatError: If the checkpoint does not tell its family.

    Example:
        chat = Chat("runs/zoom/sft/checkpoint-200", sys.stdout.write)
        chat.ask("Which letter is on the red marker?", Path("scene.png"))
    """

    def __init__(
        self,
        checkpoint: Path | str,
        write: Callable[[str], object],
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        tools: Sequence[Tool] = (),
        new_environment: Callable[[], Environment] | None = None,
    ) -> None:
        family = infer_family(checkpoint)
        if family is None:
            raise ChatError(f"{checkpoint} tells by neither config.json nor its name which Qwen-VL it is")
        self._renderer = Renderer.from_pretrained(checkpoint, family)
        self._model: Any = load_merged(checkpoint)  # transformers mixes generate in where it is loaded
        self._model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self._write = write
        self._tools = [tool.spec for tool in tools]
        self._new_environment = new_environment
        self._sampling: dict[str, float] = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0}
        if temperature > 0:
            self._sampling |= {"temperature": temperature, "top_p": 1.0, "top_k": 0}
        self.messages: list[Message] = []

    def ask(self, question: str, image: Path | None = None) -> str:
        """Add a question to the dialogue, and the model's turns up to its answer.

        Args:
            question: What is asked.
            image: Shown before the question.

        Returns:
            The answer, which `write` has been given already, as all that led to it.

        Raises:
            ChatError: If the image is no file.
            RenderError: If the question cannot be shown to the model.
        """
        if image is not None:
            check_image(image)
        shown = (Block("image", image=ImageRef(str(image.absolute()))),) if image is not None else ()
        messages = [*self.messages, Message("user", (*shown, Block("text", text=question)))]
        environment = self._new_environment() if self._new_environment else None
        try:
            if environment is not None:
                environment.start(Sample("chat", tuple(messages)))
            while True:
                answer = self._turn(messages)
                messages.append(Message("assistant", (Block("text", text=answer),)))
                reply = environment.step(answer) if environment is not None else None
                if reply is not None:
                    self._tell(reply)
                if reply is None or not reply.messages:
                    break
                messages += reply.messages
        finally:
            if environment is not None:
                environment.close()
        self.messages = messages
        return answer

    def _turn(self, messages: Sequence[Message]) -> str:
        """Return the model's next turn, written as it comes."""
        prompt = self._renderer.render(messages, self._tools, add_generation_prompt=True)
        stops = self._renderer.stops if self._tools else ()
        with torch.inference_mode():
            made = self._model.generate(
                **collate([prompt], self._renderer, self._model.device),
                **self._sampling,
                eos_token_id=self._renderer.end_token_id,
                **({"stop_strings": [*stops], "tokenizer": self._renderer.tokenizer} if stops else {}),
                pad_token_id=self._renderer.pad_token_id,
                suppress_tokens=self._renderer.banned_token_ids,
                streamer=_Pieces(self._renderer.tokenizer, self._write),
            )
        sampled = made[0, len(prompt.token_ids) :].tolist()
        return self._renderer.decode(sampled, continues=messages[-1].role == "tool")

    def _tell(self, reply: EnvironmentReply) -> None:
        """Write what was called, and what came back: the paths of images, and texts."""
        for call in reply.calls:
            arguments = json.dumps(call.arguments, ensure_ascii=False)
            self._write(f"  → {call.name} {arguments}" + ("" if call.ok else f": {call.error}") + "\n")
        for block in (block for message in reply.messages for block in message.content):
            shown = block.image.path if block.image is not None else block.text
            self._write(f"  ← {shown}\n")


class _Pieces(TextStreamer):
    """Hands on each piece of text as soon as it is certain."""

    def __init__(self, tokenizer: Any, write: Callable[[str], object]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._take = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Take a piece of text from generate."""
        self._take(text + ("\n" if stream_end else ""))


def converse(
    chat: Chat, lines: Iterable[str], write: Callable[[str], object], image: Path | None = None
) -> None:
    """Answer line after line, until they end or say /quit.

    Args:
        chat: Keeps the dialogue.
        lines: Questions and commands (see HELP).
        write: Takes what is to be said besides the answers.
        image: Shown with the first question.
    """
    for line in map(str.strip, lines):
        command, _, argument = line.partition(" ")
        if command == "/quit":
            return
        if command == "/new":
            chat.messages, image = [], None
        elif command == "/image":
            image = Path(argument).expanduser()
        elif line.startswith("/"):
            write(f"{HELP}\n")
        elif line:
            try:
                chat.ask(line, image)
                image = None
            except ValueError as error:  # of the question or the image: the dialogue goes on
                write(f"{error}\n")
