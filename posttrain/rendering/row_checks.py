"""Find out, before anything is learned, which rows of a dataset a checkpoint can be shown.

A row is written by the checkpoint's template and looked at as text. It is not tokenised, and no pixels are
made: that images can be used is known from the check of the data file, and of a video the header says what
is to be known.
"""

import functools
import hashlib
import importlib.metadata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from posttrain import __version__
from posttrain.config import ModelConfig
from posttrain.config.data import Use
from posttrain.config.model import base_model, infer_family
from posttrain.data.uses import prompt_of
from posttrain.files.cache import default_cache
from posttrain.files.durable import write_atomic
from posttrain.plugins import declared
from posttrain.rendering.tools import tool_specs
from posttrain.types import Message, Sample, ToolSpec, VideoRef, text_message

if TYPE_CHECKING:
    from posttrain.rendering.dialogue_text import DialogueText
    from posttrain.rendering.rendering import Renderer
    from posttrain.rendering.video_frames import VideoFrames

#: To be changed when rows are judged by other rules.
_RULES = 2
_TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
#: Videos whose headers are not read again.
PLANS_KEPT = 1024
#: Largest file of a checkpoint's directory that may be a part of its tokenizer, processor or template.
_MAX_FILE_BYTES = 64 << 20
_SUFFIXES = (".json", ".jinja", ".txt", ".model")


def local_checkpoint(model: ModelConfig) -> Path | None:
    """Find the model that a run starts from on this machine, in its directory or in the hub's cache.

    Returns:
        A directory with a tokenizer; None if there is none, or the run makes its model itself.
    """
    if model.name_or_path is None:
        return None
    folder = Path(base_model(model.name_or_path))
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415  (`validate` is to be quick)

        with suppress(ValueError):  # it is no name of the hub
            cached = try_to_load_from_cache(str(folder), "config.json")
            folder = Path(cached).parent if isinstance(cached, str) else folder
    needed = [_TOKENIZERS] if infer_family(folder) == "text" else [_TOKENIZERS, _PROCESSORS]
    return folder if all(any((folder / name).is_file() for name in names) for names in needed) else None


class KnownRenderer:
    """A checkpoint's renderer, loaded when it is first needed.

    Its identity is kept in the cache by the contents of the checkpoint's files, so that whoever only wants
    what is known of a dataset already need not load transformers.

    Args:
        checkpoint: A checkpoint's directory, or Hugging Face id.
        model: The run's model section.
    """

    def __init__(self, checkpoint: Path | str, model: ModelConfig) -> None:
        self._checkpoint, self._model = checkpoint, model
        self._lock = Lock()
        self._loaded: Renderer | None = None

    @property
    def renderer(self) -> "Renderer":
        """Load the renderer, once."""
        from posttrain.rendering.rendering import Renderer  # noqa: PLC0415  (it takes seconds to load)

        with self._lock:
            if self._loaded is None:
                self._loaded = Renderer.from_config(self._checkpoint, self._model)
            return self._loaded

    @property
    def text(self) -> "DialogueText":
        """Return what writes dialogues."""
        return self.renderer.text

    def with_regions(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Write the parts of images that messages name; see the renderer's method."""
        return self.renderer.with_regions(messages)

    @property
    def videos(self) -> "VideoFrames":
        """Return what samples videos; a text model has none."""
        return self.renderer.videos

    @functools.cached_property
    def identity(self) -> str:
        """Tell the renderer's identity; for a directory that was seen before it is not loaded."""
        if not Path(self._checkpoint).is_dir():
            return self.renderer.identity
        file = default_cache() / "renderers" / f"{self._digest()}.txt"
        with suppress(OSError):
            return file.read_text(encoding="utf-8")
        identity = self.renderer.identity
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, identity)
        return identity

    def _digest(self) -> str:
        """Hash everything that a renderer's identity follows from."""
        digest = hashlib.sha256(f"{__version__} {importlib.metadata.version('transformers')}".encode())
        settings = {"family", "min_pixels", "max_pixels", "earlier_thinking"}
        settings |= {f"video_{name}" for name in ("fps", "max_frames", "max_tokens", "max_pixels")}
        digest.update(self._model.model_dump_json(include=settings).encode())
        templates = files("posttrain") / "rendering" / "templates"
        for template in sorted(templates.iterdir(), key=lambda each: each.name):
            digest.update(template.read_bytes())
        for file in sorted(Path(self._checkpoint).iterdir()):
            if file.suffix in _SUFFIXES and file.is_file() and file.stat().st_size <= _MAX_FILE_BYTES:
                digest.update(file.name.encode())
                digest.update(hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()


class RenderCheck:
    """Tells whether a row can be shown to a checkpoint as it is used; a `RowCheck`.

    Attributes:
        identity: Of the renderer and the use, and of the tools that rows can name.

    Example:
        load_samples("chat", ".", use="dialogues", check=RenderCheck(KnownRenderer(path, model), "dialogues"))
    """

    def __init__(self, renderer: "Renderer | KnownRenderer", use: Use | None) -> None:
        """Judge by a renderer.

        Args:
            renderer: The checkpoint's.
            use: What the rows are used for; None judges each row by all that it holds.
        """
        self._renderer, self._use = renderer, use
        # Rows on one video often follow each other.
        self._plan = functools.lru_cache(PLANS_KEPT)(self._look_at_video)

    @property
    def identity(self) -> str:
        """Hash what the verdicts follow from."""
        parts = (_RULES, self._renderer.identity, self._use, declared("posttrain.tools"))
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def __call__(self, sample: Sample) -> None:
        """Look at a sample.

        Raises:
            ValueError: If it cannot be shown, with the reason.
        """
        text = self._renderer.text
        # Episodes announce the tools of their task.
        tools: Sequence[ToolSpec] = () if self._use == "episodes" else tool_specs(sample)
        videos: dict[VideoRef, None] = {}
        prompt: list[tuple[str, bool]] = []
        for messages, is_prompt in self._dialogues(sample):
            said = self._renderer.with_regions(messages)
            parts = text.write(said, tools, add_generation_prompt=is_prompt)
            if is_prompt:
                prompt = parts
            elif [piece for piece, _ in parts[: len(prompt)]] != [piece for piece, _ in prompt]:
                raise ValueError("the prompt is rendered otherwise where an answer follows it")
            videos |= dict.fromkeys(video for message in messages for video in message.videos)
        for video in videos:
            self._plan(video)

    def _look_at_video(self, video: VideoRef) -> None:
        """Raise VideoError if a video cannot be shown."""
        self._renderer.videos.plan(video)

    def _dialogues(self, sample: Sample) -> Iterator[tuple[Sequence[Message], bool]]:
        """Yield what is rendered of a sample, and for each whether it is a prompt."""
        if self._use in ("prompts", "episodes"):
            yield (sample.messages if self._use == "episodes" else prompt_of(sample)), True
        elif self._use == "dialogues" or not sample.chosen:
            yield sample.messages, False
        else:
            yield sample.messages, True
            yield (*sample.messages, *sample.chosen), False
            yield (*sample.messages, *sample.rejected), False


def tools_fault(renderer: "Renderer | KnownRenderer", tools: Sequence[ToolSpec]) -> str:
    """Return why the tools of a task cannot be announced; "" if they can."""
    try:
        renderer.text.write([text_message("user", "?")], tools, add_generation_prompt=True)
    except ValueError as error:
        return str(error)
    return ""
