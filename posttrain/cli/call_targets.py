"""`posttrain data call-targets`: how many tool calls does each row of a dataset need?"""

import argparse
from pathlib import Path
from typing import Any

from posttrain.cli.checkpoint import check_checkpoint
from posttrain.cli.commands import add_command
from posttrain.config import ConfigError, Document
from posttrain.config.curation import CurationConfig, build_curation
from posttrain.config.errors import Problem
from posttrain.config.model import read_model_config

CALL_TARGETS = """\
Writes a dataset's rows with the column target_tool_calls, with which the reward `tool_calls` compares an
episode's calls. The target is the least number of calls with which a checkpoint solves the row, among its
episodes of a task with tools: calls that showed something, the same look twice as one. Or it is the estimate
of a model that is asked (--model). Rows that were never solved get no target, and are counted. This is a
curation of one step, `call_targets`, which a recipe may have among others.

examples:
  posttrain data call-targets looks_train --checkpoint my-agent --tools image_zoom_in
  posttrain data call-targets mine.yaml --checkpoint my-model --tools image_zoom_in --rewards math
  posttrain data call-targets mine.yaml --model gpt-5 --base-url https://example.com/v1 --tools image_zoom_in
"""


def add_call_targets(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `posttrain data call-targets` to the verbs of `posttrain data`."""
    parser = add_command(
        verbs, "call-targets", call_targets_command, "estimate how many tool calls rows need", CALL_TARGETS
    )
    parser.add_argument("dataset", metavar="DATASET", help="a dataset of datasets_cfg/, or a YAML file")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--checkpoint", metavar="CHECKPOINT", help="plays: a directory, or a model of the hub")
    who.add_argument("--model", metavar="NAME", help="is asked: its name at an OpenAI-compatible endpoint")
    parser.add_argument(
        "--base-url", default="", metavar="URL", help="of the endpoint (default: POSTTRAIN_ENDPOINT_URL)"
    )
    parser.add_argument(
        "--tools", nargs="+", required=True, metavar="TOOL", help="names, or file.py:attribute"
    )
    parser.add_argument(
        "--rewards",
        nargs="+",
        metavar="REWARD",
        help="of the episodes; full marks of the first make one right (default: answer_accuracy)",
    )
    parser.add_argument("--max-turns", type=int, metavar="N", help="of an episode (default: 6)")
    parser.add_argument(
        "--samples", type=int, metavar="K", help="episodes of a row (default: 16), or estimates (default: 1)"
    )
    parser.add_argument(
        "--min-solved-share",
        type=float,
        metavar="S",
        help="right ones of the episodes with so many calls: keeps lucky guesses out (default: 0)",
    )
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="of a turn (default: 1024)")
    parser.add_argument("--max-length", type=int, metavar="N", help="of an episode (default: 8192)")
    parser.add_argument(
        "--column", metavar="NAME", help="where targets are written (default: target_tool_calls)"
    )
    parser.add_argument("--output-dir", default="curated", metavar="DIR", help="default: curated")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the sampling")
    parser.add_argument("--resume", action="store_true", help="go on where it was interrupted")


def call_targets_command(options: argparse.Namespace) -> int:
    """Run `posttrain data call-targets`: a curation of one step."""
    run_curation(build_curation(Document(call_targets_recipe(options), "command line")), options.resume)
    return 0


def call_targets_recipe(options: argparse.Namespace) -> dict[str, Any]:
    """Make the recipe of a curation that only estimates targets."""
    keys = ("samples", "min_solved_share", "max_new_tokens", "column")
    step: dict[str, Any] = {"filter": "call_targets", "endpoint": "model"}
    step |= {key: value for key in keys if (value := getattr(options, key)) is not None}
    if options.checkpoint is None:
        entry: dict[str, Any] = {"model": options.model, "base_url": options.base_url}
        step["tools"] = options.tools
        for key in ("rewards", "max_turns", "max_length"):
            if getattr(options, key) is not None:
                raise _misfit(key, "is of episodes, and a model that is asked plays none")
    else:
        if options.base_url:
            raise _misfit("base_url", "is of a --model that is asked, and a checkpoint plays")
        entry = _checkpoint_entry(options)
        step |= {"max_new_tokens": options.max_new_tokens or 1024}
        step["task"] = {
            "tools": options.tools,
            "max_turns": options.max_turns or 6,
            "rewards": options.rewards or ["answer_accuracy"],
        }
    stem = Path(options.dataset).stem
    return {
        "name": f"{stem}-call-targets",
        "output_dir": options.output_dir,
        "base_dir": str(Path.cwd()),
        "data": options.dataset,
        "seed": options.seed,
        "endpoints": {"model": entry},
        "steps": [step],
    }


def _misfit(key: str, reason: str) -> ConfigError:
    return ConfigError([Problem("command line", f"--{key.replace('_', '-')}", reason, "remove it")])


def _checkpoint_entry(options: argparse.Namespace) -> dict[str, Any]:
    """Describe the checkpoint that plays, in the type in which it was written."""
    checkpoint = Path(options.checkpoint).expanduser()
    check_checkpoint(checkpoint)
    stored = read_model_config(checkpoint)
    dtype = stored.get("dtype", stored.get("torch_dtype"))
    return {
        "checkpoint": str(checkpoint.absolute()) if checkpoint.is_dir() else options.checkpoint,
        "dtype": "float32" if dtype == "float32" else "bfloat16",
        "max_length": options.max_length or 8192,
    }


def run_curation(recipe: CurationConfig, resume: bool) -> None:
    """Run a recipe, in engines where it has checkpoints, and print its funnel and its page's path."""
    from posttrain.curation.pipeline import curate
    from posttrain.first_party import PLUGINS
    from posttrain.viewer.curation_page import write_curation_page

    if recipe.has_checkpoints:
        from posttrain.curation.engines import EngineModels

        with EngineModels(recipe, PLUGINS) as models:
            report = curate(
                recipe,
                PLUGINS,
                resume=resume,
                open_checkpoint=models.open,
                open_episodes=models.open_episodes,
            )
    else:
        report = curate(recipe, PLUGINS, resume=resume)
    print(report.table())
    print(f"{report.directory}: {report.kept:,} rows in kept.jsonl, {report.dropped:,} in dropped.jsonl")
    print(write_curation_page(report.directory))
