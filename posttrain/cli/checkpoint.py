"""Commands about one checkpoint: `eval` measures it, `chat` talks to it, `export` gives it away."""

import argparse
import datetime
import sys
import tempfile
from pathlib import Path
from typing import Any

from posttrain.cli.commands import add_command, load_checked
from posttrain.config import Document
from posttrain.config.model import read_model_config
from posttrain.gpus import visible_gpus
from posttrain.joints import Environment

EVAL = """\
examples:
  posttrain eval runs/quickstart/rl/checkpoint-40 --data markers_test --tools image_zoom_in --max-turns 3
  posttrain eval Qwen/Qwen3-VL-8B-Instruct --data my_questions.yaml --num-gpus 1 --max-new-tokens 512
  posttrain eval my-model --data my_questions.yaml --rewards answer_accuracy my_rewards.py:brevity
  posttrain eval my-model --data my_questions.yaml --samples-per-prompt 8 --temperature 1     mean@8, pass@k
"""

EXPORT = """\
Writes a model that transformers and vLLM load as it is: adapters merged, what only resuming needs left out,
no path of this machine in it. Its README.md is a model card: base model, licences, data, results, settings.

example:
  posttrain export runs/quickstart/rl/checkpoint-40 --output my-model
"""

CHAT = """\
examples:
  posttrain chat runs/quickstart/rl/checkpoint-40 --image scene.png
  posttrain chat runs/quickstart/rl/checkpoint-40 --image scene.png --tools image_zoom_in
  posttrain chat Qwen/Qwen3-VL-2B-Instruct --image scene.png --prompt "Which letter is on the red marker?"
"""


class CheckpointError(ValueError):
    """A directory that was named for a checkpoint and is none; the message says which are."""


def check_checkpoint(directory: Path) -> None:
    """Refuse the directory of a run or of a stage, and name the checkpoints that lie below it."""
    below = [*directory.glob("checkpoint-*"), *directory.glob("*/checkpoint-*")]
    if below and not read_model_config(directory):
        newest = max(below, key=lambda path: path.stat().st_mtime)
        raise CheckpointError(f"{directory} is no checkpoint, but holds {len(below)}; the newest is {newest}")


def add_checkpoint_commands(commands: Any) -> None:
    """Add `eval`, `export` and `chat` to the command line."""
    _add_eval_options(add_command(commands, "eval", eval_command, "measure a checkpoint", EVAL))

    export = add_command(commands, "export", export_command, "merge adapters and write a model card", EXPORT)
    export.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a directory, best within a run")
    export.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="where the model goes: new or empty"
    )
    export.add_argument(
        "--licence", default="", metavar="ID", help="of the weights: apache-2.0, … (default: the base's)"
    )
    export.add_argument(
        "--base-model", default="", metavar="NAME", help="on the hub, where the run does not know it"
    )

    chat = add_command(commands, "chat", chat_command, "talk to a checkpoint", CHAT)
    chat.add_argument("checkpoint", metavar="CHECKPOINT", help="a directory, or a model of the hub")
    chat.add_argument("--image", type=Path, metavar="FILE", help="shown with the first question")
    chat.add_argument(
        "--tools",
        nargs="+",
        default=[],
        metavar="TOOL",
        help="tools offered to the model: names, or file.py:attribute",
    )
    chat.add_argument(
        "--max-turns", type=int, default=4, metavar="N", help="of an answer with tools (default: 4)"
    )
    chat.add_argument("--prompt", metavar="TEXT", help="ask this, print the answer and end")
    chat.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="of a turn (default: 512)")
    chat.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy, the default")


def _add_eval_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a directory, or a model of the hub")
    parser.add_argument(
        "--data", required=True, metavar="NAME", help="a dataset of datasets_cfg/, or a YAML file"
    )
    parser.add_argument(
        "--tools",
        nargs="+",
        default=[],
        metavar="TOOL",
        help="tools offered to the model: names, or file.py:attribute",
    )
    parser.add_argument("--max-turns", type=int, metavar="N", help="most turns (default: 1, with tools 4)")
    parser.add_argument(
        "--rewards",
        nargs="+",
        default=["answer_accuracy"],
        metavar="REWARD",
        help="what is measured: names, or file.py:attribute; full marks of the first count as right",
    )
    parser.add_argument("--num-samples", type=int, default=256, metavar="N", help="prompts (default: 256)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 is greedy, the default"
    )
    parser.add_argument(
        "--samples-per-prompt",
        type=int,
        default=1,
        metavar="K",
        help="answers to each prompt, for mean@K and pass@k; above 1 with a --temperature",
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, metavar="N", help="of a turn (default: 256)"
    )
    parser.add_argument(
        "--max-length", type=int, default=4096, metavar="N", help="of an episode (default: 4096)"
    )
    parser.add_argument(
        "--num-gpus",
        type=int,
        metavar="N",
        help="engines, each on a GPU; 0 is the CPU (default: all there are)",
    )
    parser.add_argument(
        "--output-dir", default="runs", metavar="DIR", help="where results go (default: runs)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the sampling")


def eval_command(options: argparse.Namespace) -> int:
    """Measure a checkpoint by a run without stages: `posttrain eval`."""
    config = load_checked(Document(evaluation_run(options), "command line"), about_to_run=True)
    from posttrain.training import pipeline

    pipeline.run(config)
    return 0


def evaluation_run(options: argparse.Namespace) -> dict[str, Any]:
    """Make the settings of a run that only measures a checkpoint."""
    checkpoint = Path(options.checkpoint).expanduser()
    check_checkpoint(checkpoint)
    stored = read_model_config(checkpoint)
    dtype = stored.get("dtype", stored.get("torch_dtype"))
    gpus = len(visible_gpus()) if options.num_gpus is None else options.num_gpus
    actors = {"actors": gpus} if gpus else {}
    return {
        "name": f"eval-{datetime.datetime.now():%Y%m%d-%H%M%S}",
        "output_dir": options.output_dir,
        "base_dir": str(Path.cwd()),
        "seed": options.seed,
        "model": {
            "name_or_path": str(checkpoint.absolute()) if checkpoint.is_dir() else options.checkpoint,
            "dtype": "float32" if dtype == "float32" else "bfloat16",
        },
        "cluster": {"num_gpus": gpus},
        "stages": [],
        "evaluation": {
            "tasks": [
                {
                    "data": options.data,
                    "tools": options.tools,
                    "max_turns": options.max_turns or (4 if options.tools else 1),
                    "rewards": options.rewards,
                    "num_samples": options.num_samples,
                    "temperature": options.temperature,
                    "samples_per_prompt": options.samples_per_prompt,
                }
            ],
            "rollout": {"max_new_tokens": options.max_new_tokens, "max_length": options.max_length} | actors,
        },
    }


def export_command(options: argparse.Namespace) -> int:
    """Merge adapters and write a model card: `posttrain export`."""
    from posttrain.models.export import export

    check_checkpoint(options.checkpoint)
    export(options.checkpoint, options.output, options.licence, options.base_model)
    print(options.output)
    return 0


def chat_command(options: argparse.Namespace) -> int:
    """Ask a checkpoint once, or question after question: `posttrain chat`."""
    from posttrain.cli.chat import HELP, Chat, check_image, converse
    from posttrain.first_party import PLUGINS

    check_checkpoint(Path(options.checkpoint))
    if options.image is not None:  # before the weights are loaded, which takes minutes
        check_image(options.image)
    tools = PLUGINS.load_tools([{"name": name} for name in options.tools], Path.cwd())
    images = Path(tempfile.mkdtemp(prefix="posttrain-chat-")) if tools else Path()  # left for the user to see

    def write(text: str) -> None:
        print(text, end="", flush=True)

    def new_environment() -> Environment:
        return PLUGINS.make_environment(tools, options.max_turns, images)

    chat = Chat(
        options.checkpoint,
        write,
        options.max_new_tokens,
        options.temperature,
        tools,
        new_environment if tools else None,
    )
    if options.prompt is not None:
        chat.ask(options.prompt, options.image)
        return 0
    if sys.stdin.isatty():
        print(HELP)
    converse(chat, sys.stdin, write, options.image)
    return 0
