"""Talk to a checkpoint: transformers' generate on this machine, word by word."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import TextStreamer

from posttrain.config.model import infer_family
from posttrain.models.lora import load_merged
from posttrain.rendering.collation import collate
from posttrain.rendering.rendering import Renderer
from posttrain.types import Block, ImageRef, Message

HELP = "/image FILE shows an image with the next question, /new begins anew, /quit ends"


class ChatError(ValueError):
    """A checkpoint or an image that nothing can be asked about."""


class Chat:
    """A dialogue with a checkpoint.

    Args:
        checkpoint: Directory of a model or of adapters, or a Hugging Face id.
        write: Takes each piece of an answer as it comes.
        max_new_tokens: Most tokens of an answer.
        temperature: 0 is greedy.

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
    ) -> None:
        family = infer_family(checkpoint)
        if family is None:
            raise ChatError(f"{checkpoint} tells by neither config.json nor its name which Qwen-VL it is")
        self._renderer = Renderer.from_pretrained(checkpoint, family)
        self._model: Any = load_merged(checkpoint)  # transformers mixes generate in where it is loaded
        self._model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self._write = write
        self._sampling: dict[str, float] = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0}
        if temperature > 0:
            self._sampling |= {"temperature": temperature, "top_p": 1.0, "top_k": 0}
        self.messages: list[Message] = []

    def ask(self, question: str, image: Path | None = None) -> str:
        """Add a question to the dialogue, and the model's answer.

        Args:
            question: What is asked.
            image: Shown before the question.

        Returns:
            The answer, which `write` has been given already.

        Raises:
            ChatError: If the image is no file.
            RenderError: If the question cannot be shown to the model.
        """
        if image is not None and not image.is_file():
            raise ChatError(f"there is no image {image}")
        shown = (Block("image", image=ImageRef(str(image.absolute()))),) if image is not None else ()
        asked = [*self.messages, Message("user", (*shown, Block("text", text=question)))]
        prompt = self._renderer.render(asked, add_generation_prompt=True)
        with torch.inference_mode():
            made = self._model.generate(
                **collate([prompt], self._renderer, self._model.device),
                **self._sampling,
                eos_token_id=self._renderer.end_token_id,
                pad_token_id=self._renderer.pad_token_id,
                suppress_tokens=self._renderer.banned_token_ids,
                streamer=_Pieces(self._renderer.tokenizer, self._write),
            )
        answer = self._renderer.decode(made[0, len(prompt.token_ids) :].tolist())
        self.messages = [*asked, Message("assistant", (Block("text", text=answer),))]
        return answer


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
