"""`posttrain rewards …`: list, write, check, try and serve rewards.

Heavy imports happen inside the commands.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from posttrain.cli.commands import add_command, json_object
from posttrain.plugins import declared
from rewards.sdk import RewardError
from rewards.serving.config import TOKEN_VARIABLE

SERVE = f"""\
Serves rewards over HTTP; each is a name, file.py:attribute or package.module:attribute. Clients send the
bearer token of the environment variable {TOKEN_VARIABLE}; without one, only loopback is served.

examples:
  posttrain rewards serve answer_accuracy my_rewards.py:neatness --port 8900
  curl -s localhost:8900/health
  posttrain rewards serve --config rewards.yaml --replicas 4 --host 0.0.0.0

a configuration (rewards.yaml) also fixes parameters that clients then cannot set:
  rewards:
    - math
    - name: judge
      params: {{model: Qwen3-VL-32B-Instruct, base_url: http://judge:8000/v1}}
  image_roots: [images]
  workers: 8
  judge_budget: {{ledger: judges.json, max_calls: 10000}}
"""

LIST = """\
example:
  posttrain rewards list
"""

NEW = """\
Writes NAME.py with a commented reward, NAME_samples.jsonl to try it on, and test_NAME.py.

example:
  posttrain rewards new neatness
"""

ROW = """\
A row, of which only what the reward reads is needed (for score also the answer):
  {"id": "17", "prompt": "Which letter?", "ground_truth": "K", "answer": "It is K"}
  prompt        a text, or a list of messages as in canonical data
  images        paths of the prompt's images, from the file's folder
  messages      in place of prompt: the whole dialogue; the assistant's last turn is the answer
  answer        what the model wrote
  ground_truth  the reference answer, of any JSON type
  columns       the sample's other columns: {"target_tool_calls": 1}; they may also stand in the row itself
  tool_calls    the calls it made: [{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [0, 0, 9, 9]},
                "ok": true, "error": "", "images": 1}]; images may also be a list of paths
  truncated     true where the episode ended at a limit
  completion_ids  the token ids of what the model wrote, for rewards that count tokens
"""

CHECK = f"""\
Checks that a reward keeps the contract that training relies on: right answers get full marks and empty ones
the least; values are finite, in range, in time, the same twice, and independent of order and white space; the
attack corpus does no harm. ✓ passed, ✗ failed, – not tried. The samples are JSON lines with right answers;
where a row has no `answer`, its ground truth is shown in its place. A group reward is given the samples of
one prompt together.

{ROW}
examples:
  posttrain rewards check neatness.py:neatness --data neatness_samples.jsonl
  posttrain rewards check math --data geometry.jsonl --params '{{"tolerance": 0.01}}'
"""

SCORE = f"""\
Scores the answers of a file and shows how the values are spread. Every row needs its `answer`.

{ROW}
example:
  posttrain rewards score neatness.py:neatness --data answers.jsonl --output scored.jsonl
"""


def add_verbs(verbs: Any) -> None:
    """Add the verbs of `posttrain rewards` to its parser.

    Args:
        verbs: The subparsers.
    """
    add_command(verbs, "list", list_command, "rewards that are installed", LIST)

    new = add_command(verbs, "new", new_command, "write a reward to start from", NEW)
    new.add_argument("name", metavar="NAME", help="what the reward is called")
    new.add_argument("--directory", type=Path, default=Path(), metavar="DIR", help="where to (default: here)")

    check = add_command(verbs, "check", check_command, "check that a reward keeps the contract", CHECK)
    _add_reward(check)
    check.add_argument(
        "--deadline", type=float, default=10.0, metavar="S", help="seconds a call may take (default: 10)"
    )

    score = add_command(verbs, "score", score_command, "score a file of answers", SCORE)
    _add_reward(score)
    score.add_argument("--output", type=Path, metavar="FILE", help="write a row a sample there")

    serve = add_command(verbs, "serve", serve_command, "serve rewards over HTTP", SERVE)
    serve.add_argument(
        "rewards", nargs="*", metavar="REWARD", help="references (default: every declared one)"
    )
    serve.add_argument("--config", type=Path, metavar="FILE", help="YAML: rewards, fixed parameters, limits")
    serve.add_argument(
        "--replicas",
        type=int,
        default=1,
        metavar="N",
        help="servers behind one address, by Ray Serve (default: 1)",
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: loopback)")
    serve.add_argument("--port", type=int, default=8900, help="port; 0 takes a free one (default: 8900)")
    serve.add_argument(
        "--image-root",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder below which images may be named by reference; may be repeated (default: none)",
    )
    serve.add_argument(
        "--judge-budget", type=Path, metavar="FILE", help="JSON: what judges may spend, as in a configuration"
    )
    serve.add_argument("--url-file", type=Path, metavar="FILE", help="write the address there once it serves")
    for parser in (check, score, serve):
        parser.add_argument(
            "--base-dir", type=Path, default=Path(), metavar="DIR", help="where file references start"
        )


def _add_reward(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reward", metavar="REWARD", help="a name, or file.py:attribute")
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="samples as JSON lines")
    parser.add_argument(
        "--params",
        type=json_object,
        default={},
        metavar="JSON",
        help="the reward's parameters as a JSON object",
    )


def list_command(_: argparse.Namespace) -> int:
    """Run `posttrain rewards list`."""
    from posttrain.plugins import PluginError
    from rewards.sdk import load_reward

    for name in declared("posttrain.rewards"):
        try:
            loaded = load_reward(name)
        except PluginError as error:  # an optional package is missing
            print(f"{name:<24} unavailable: {error}")
            continue
        kind = " of a group" if loaded.group else ""
        print(f"{name:<24} [{loaded.low:g}, {loaded.high:g}]{kind}  {loaded.summary}")
    return 0


def new_command(options: argparse.Namespace) -> int:
    """Run `posttrain rewards new`."""
    from rewards.kit.skeleton import write_skeleton

    written = write_skeleton(options.name, options.directory)
    print("\n".join(f"wrote {path}" for path in written))
    source, samples, test = written
    print(f"\n{test.name} needs pytest, which is not installed with this package: pip install pytest")
    print(f"now: posttrain rewards check {source}:{options.name} --data {samples}")
    return 0


def check_command(options: argparse.Namespace) -> int:
    """Run `posttrain rewards check`."""
    from rewards.kit.check import check_reward
    from rewards.kit.samples import read_samples

    samples = read_samples(options.data)
    if golds := sum(sample.gold for sample in samples):
        print(
            f"{golds} of {len(samples)} samples have no `answer`: their ground truth is taken for a right one"
        )
    report = check_reward(options.reward, samples, options.params, options.base_dir, options.deadline)
    for finding in report.findings:
        print(f"{finding.mark} {finding.check}{finding.note and f': {finding.note}'}")
        for line in finding.failures[:5]:
            print(f"    {line}")
        if finding.failures[5:]:
            print(f"    and {len(finding.failures) - 5} more")
    print(f"\n{'sample':<20} {'value':>7}  answer")
    for sample, result in report.scored[:20]:
        value = result.values.get(options.reward)
        shown = "error" if result.errors.get(options.reward) else "–" if value is None else f"{value:.3f}"
        print(f"{sample.id[:20]:<20} {shown:>7}  {' '.join(sample.x.answer.split())[:70]}")
    return 0 if report.passed else 1


def score_command(options: argparse.Namespace) -> int:
    """Run `posttrain rewards score`."""
    from rewards.kit.distribution import describe, score_samples
    from rewards.kit.samples import read_samples

    samples = read_samples(options.data, right=False)
    rows = score_samples(options.reward, samples, options.params, options.base_dir)
    if options.output:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(describe(rows))
    return 0


def serve_command(options: argparse.Namespace) -> int:
    """Run `posttrain rewards serve`."""
    from rewards.budget import read_budget
    from rewards.serving.config import ServerConfig, read_server_config
    from rewards.serving.server import serve

    if options.config:
        if options.rewards or options.image_root or options.judge_budget:
            raise RewardError(
                "rewards serve: name rewards, image roots and the judges' budget in --config, or here"
            )
        config = read_server_config(options.config)
    else:
        budget = read_budget(options.judge_budget) if options.judge_budget else None
        config = ServerConfig.model_validate(
            {
                "rewards": options.rewards or _loadable(),
                "base_dir": options.base_dir,
                "image_roots": options.image_root,
                "judge_budget": budget,
            }
        )
    where = {
        "host": options.host,
        "port": options.port,
        "token": os.environ.get(TOKEN_VARIABLE, ""),
        "url_file": options.url_file,
    }
    if options.replicas == 1:
        serve(config, **where)
        return 0
    try:
        from rewards.serving.replicas import serve_replicas
    except ImportError as error:
        raise RewardError(
            f"rewards serve --replicas: pip install 'posttrain[serve]' first ({error})"
        ) from None

    workers = config.workers or max(1, (os.cpu_count() or 1) // options.replicas)
    serve_replicas(config.model_copy(update={"workers": workers}), options.replicas, **where)
    return 0


def _loadable() -> list[str]:
    """List every declared reward whose packages are installed."""
    from posttrain.plugins import PluginError
    from rewards.sdk import load_reward

    names = []
    for name in declared("posttrain.rewards"):
        try:
            load_reward(name)
        except PluginError as error:
            print(f"not served: {error}", file=sys.stderr)
        else:
            names.append(name)
    return names
