"""`posttrain data …`: look at datasets, and rewrite them.

Heavy imports happen inside the commands.
"""

import argparse
from functools import partial
from pathlib import Path

from posttrain.cli.call_targets import add_call_targets, run_curation
from posttrain.cli.commands import add_command
from posttrain.config import load_dataset_config
from posttrain.config.curation import curation_names, load_curation
from posttrain.files.cache import cached_folder, default_cache

INSPECT = """\
Writes an HTML page with samples token by token, what is learned from them, their images, how long they are,
and which rows are broken: those that cannot be read, or cannot be shown to the model. Every row is looked at.
The exit code is 1 if more are broken than the dataset's max_bad_share, so that no run would start with it.

examples:
  posttrain data inspect markers_zoom
  posttrain data inspect my_photos.yaml --model Qwen/Qwen3-VL-8B-Instruct --output photos.html

a dataset's YAML (my_photos.yaml):
  name: my_photos
  description: Questions on photos, with answers.
  licence: CC-BY-4.0
  source: {path: photos.parquet}
  format: trl                # canonical, ms_swift, sharegpt, alpaca, llama_factory, openai, qwen, easyr1
  columns: {completion: answer}
  filters: [{column: response, max_length: 2000}]
"""

CONVERT = """\
Writes a dataset as JSON lines in the canonical form, rows that filters remove and broken ones left out.

example:
  posttrain data convert my_photos.yaml --output photos.jsonl
"""

CURATE = """\
Passes a dataset's rows through the filters of a recipe. Every dropped row is kept with its reason and scores,
and a table and a page say what each filter removed. Models are asked at OpenAI-compatible endpoints, or in
engines of our own where an endpoint is a `checkpoint`; no answer is asked for twice. A `pass_rate` step with
a `task` has a checkpoint play the task's episodes, tools included, so that RL gets what it can learn from.

examples:
  posttrain data curate offline                rules alone, on the dialogues of the quickstart
  posttrain data curate my_curation.yaml
  posttrain data curate my_curation.yaml --resume
"""

#: To be changed when `build_tiny` builds another model.
_TINY_FORMAT = "0.1.0"


def add_verbs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verbs of `posttrain data` to its parser.

    Args:
        verbs: The subparsers.
    """
    inspect = add_command(verbs, "inspect", inspect_command, "show a dataset as the model sees it", INSPECT)
    _add_dataset(inspect)
    inspect.add_argument(
        "--model",
        metavar="CHECKPOINT",
        help="whose tokens: a directory, or a model of the hub (default: a tiny Qwen3-VL, which needs no"
        " download; it takes more tokens for a text and fewer for an image)",
    )
    inspect.add_argument("--output", type=Path, metavar="FILE", help="the page (default: <name>.html here)")
    inspect.add_argument(
        "--num-samples", type=int, default=12, metavar="N", help="samples shown in full (default: 12)"
    )
    inspect.add_argument(
        "--measure", type=int, default=500, metavar="N", help="samples measured (default: 500)"
    )

    convert = add_command(
        verbs, "convert", convert_command, "rewrite a dataset in the canonical form", CONVERT
    )
    _add_dataset(convert)
    convert.add_argument("--output", type=Path, required=True, metavar="FILE", help="the JSONL file")

    curate = add_command(verbs, "curate", curate_command, "filter a dataset by rules and models", CURATE)
    recipes = ", ".join(curation_names())
    curate.add_argument("recipe", metavar="RECIPE|FILE", help=f"a YAML file, or one of {recipes}")
    curate.add_argument("--resume", action="store_true", help="go on where it was interrupted")
    add_call_targets(verbs)


def inspect_command(options: argparse.Namespace) -> int:
    """Run `posttrain data inspect`: write a page that shows a dataset as a model sees it."""
    from posttrain.config import ModelConfig
    from posttrain.data.sources import load_samples
    from posttrain.rendering.inspection import inspect_dataset
    from posttrain.rendering.rendering import Renderer
    from posttrain.rendering.row_checks import RenderCheck
    from posttrain.viewer.dataset_page import write_dataset_page

    config = load_dataset_config(options.dataset)
    model = options.model or "a tiny Qwen3-VL (--model names another)"
    checkpoint = Path(options.model).expanduser() if options.model else _tiny_checkpoint()
    name = str(checkpoint.absolute()) if checkpoint.is_dir() else options.model
    renderer = Renderer.from_config(name, ModelConfig(name_or_path=name))
    dataset = load_samples(config, Path(), max_bad_share=1.0, check=RenderCheck(renderer, None))
    found = inspect_dataset(config.name, dataset, model, renderer, options.num_samples, options.measure)
    print(write_dataset_page(found, options.output or Path(f"{config.name}.html")))
    print(found.summary())
    return 1 if len(found.broken) > config.max_bad_share * (found.rows + len(found.broken)) else 0


def convert_command(options: argparse.Namespace) -> int:
    """Run `posttrain data convert`: write a dataset's good rows in the canonical form."""
    from posttrain.data.formats import write_canonical
    from posttrain.data.sources import load_samples

    config = load_dataset_config(options.dataset)
    dataset = load_samples(config, Path())
    write_canonical((dataset[index] for index in range(len(dataset))), options.output)
    left_out = f"{len(dataset.broken):,} broken and {dataset.filtered:,} filtered rows left out"
    print(f"{options.output}: {len(dataset):,} samples, {left_out}")
    return 0


def curate_command(options: argparse.Namespace) -> int:
    """Run `posttrain data curate`: pass a dataset's rows through the filters of a recipe."""
    run_curation(load_curation(options.recipe), options.resume)
    return 0


def _tiny_checkpoint() -> Path:
    """Return the quickstart's model before it has learned anything, made once."""
    from posttrain.quickstart.tiny import build_tiny

    return cached_folder(default_cache() / f"tiny-qwen3_vl-{_TINY_FORMAT}", partial(build_tiny, "qwen3_vl"))


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="a dataset of datasets_cfg/, or a YAML file")
