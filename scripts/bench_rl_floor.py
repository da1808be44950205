"""The floor under a step, as a side of `bench_rl.py`: what vLLM and a model take for the same work.

At a turn it takes the episodes of a step of ours. Each of their turns is a request, with the same tokens,
images, seed-like settings and number of tokens to sample, all of a turn at once; images are made ready before
the clock starts. Then the rows that a learner would pack of them are run forward and backward by as many
processes as there are learners, one thread each, again with everything at hand.
"""

import argparse
import multiprocessing
import os
import pickle
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from bench_rl_tasks import LEARNERS, ROW, TASKS, Task
from bench_rl_turns import Turns
from PIL import Image

from posttrain.models.load import load_model
from posttrain.models.packed_attention import use_packed_attention
from posttrain.models.supervised_head import IGNORED, add_supervised_head
from posttrain.rendering.collation import collate_packed
from posttrain.rendering.rendering import Renderer
from posttrain.training.on_policy.rows import ALL, share_of
from posttrain.types import Trajectory


class Generation:
    """vLLM's own `LLM`, with the settings that suit it best here.

    Args:
        task: The task.
        folder: Where its model is.
        threads: Threads that it computes with.
    """

    def __init__(self, task: Task, folder: Path, threads: int) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm import LLM, RequestOutput, SamplingParams  # noqa: PLC0415 (not in processes that learn)

        torch.compiler.set_stance("force_eager")
        self._parameters, self._output = SamplingParams, RequestOutput
        self._llm = LLM(
            model=str(folder / "model"),
            dtype="float32",
            max_model_len=task.max_length,
            max_num_seqs=128,
            max_num_batched_tokens=8192,
            enforce_eager=True,
            kv_cache_memory_bytes=2**29,
            enable_prefix_caching=False,  # with seeds of requests, vLLM's CPU engine takes prompts whole
            enable_chunked_prefill=False,
            limit_mm_per_prompt={"image": 4, "video": 0} if task.with_tool else {},
            mm_processor_cache_gb=0,
            logprobs_mode="raw_logprobs",
            disable_log_stats=True,
        )
        self._renderer = Renderer.from_pretrained(folder / "model", task.family)

    def seconds(self, trajectories: Sequence[Trajectory], plain: bool) -> float:
        """Return what sampling the turns of episodes takes, those of a turn at once.

        Args:
            trajectories: The episodes.
            plain: Whether requests have neither seeds nor log-probs nor banned tokens.
        """
        taken = 0.0
        for turn in range(max(len(list(turns(each))) for each in trajectories)):
            requests = []
            for number, each in enumerate(trajectories):
                spans = list(turns(each))
                if turn < len(spans):
                    begin, end = spans[turn]
                    parameters = self._sampling(end - begin, number, plain)
                    requests.append((self._prompt(each, begin), parameters))
            inputs = self._llm._preprocess_cmpl([prompt for prompt, _ in requests])
            begun = time.perf_counter()
            for prompt, (_, parameters) in zip(inputs, requests, strict=True):
                self._llm._add_request(prompt, parameters)
            outputs = self._llm._run_engine(output_type=self._output, use_tqdm=False)
            taken += time.perf_counter() - begun
            sampled = [len(output.outputs[0].token_ids) for output in outputs]
            assert sum(sampled) == sum(parameters.max_tokens for _, parameters in requests)
        return taken

    def _sampling(self, count: int, seed: int, plain: bool) -> Any:
        """Make the settings of a request that samples so many tokens."""
        same: dict[str, Any] = {"max_tokens": count, "ignore_eos": True, "detokenize": False}
        if plain:
            return self._parameters(**same)
        bias = dict.fromkeys(self._renderer.banned_token_ids, float("-inf"))
        return self._parameters(**same, seed=seed, logprobs=0, flat_logprobs=True, logit_bias=bias)

    def _prompt(self, trajectory: Trajectory, end: int) -> Any:
        """Make a request's prompt: an image's placeholders are one token, which vLLM repeats."""
        ids, images, done = [], [], 0
        for image in trajectory.images:
            if image.offset < end:
                ids += trajectory.token_ids[done : image.offset + 1]
                done = image.offset + image.num_tokens
                with Image.open(image.ref.path) as opened:
                    images.append(opened.convert("RGB"))
        prompt: dict[str, Any] = {"prompt_token_ids": ids + trajectory.token_ids[done:end]}
        return prompt | ({"multi_modal_data": {"image": images}} if images else {})


def turns(trajectory: Trajectory) -> Iterator[tuple[int, int]]:
    """Yield where each turn of the model begins and ends."""
    place = 0
    for sampled, members in groupby(trajectory.sampled):
        begin, place = place, place + len(list(members))
        if sampled:
            yield begin, place


def learn(task: Task, folder: Path, index: int, connection: Connection) -> None:
    """Run the rows of a learner forward and backward whenever trajectories come; answer with the seconds."""
    torch.set_num_threads(1)
    renderer = Renderer.from_pretrained(folder / "model", task.family)
    model: Any = load_model(folder / "model", dtype="float32", freeze_vision_tower=task.family != "text")
    rope_index = getattr(model.base_model, "get_rope_index", None)
    add_supervised_head(model)
    use_packed_attention(model)
    model.train()
    while True:
        trajectories: list[Trajectory] = connection.recv()
        share = share_of(trajectories, ROW, trajectories[0], index, LEARNERS, ALL)
        batches = []
        for row in share.rows:
            batch = collate_packed(row.trajectories, renderer, rope_index, images_once=True)
            sampled = torch.tensor([flag for each in row.trajectories for flag in each.sampled])[None]
            batches.append((batch, batch["input_ids"].masked_fill(~sampled, IGNORED)))
        connection.send(None)
        connection.recv()
        begun = time.perf_counter()
        for batch, labels in batches:
            model(**batch, supervised_labels=labels).sum().backward()
        taken = time.perf_counter() - begun
        model.zero_grad()
        connection.send(taken)


class Learning:
    """Processes that run rows forward and backward.

    Args:
        task: The task.
        folder: Where its model is.
    """

    def __init__(self, task: Task, folder: Path) -> None:
        spawned = multiprocessing.get_context("spawn")
        self._connections: list[Connection] = []
        for index in range(LEARNERS):
            ours, theirs = spawned.Pipe()
            arguments = (task, folder, index, theirs)
            spawned.Process(target=learn, args=arguments, daemon=True).start()
            self._connections.append(ours)

    def seconds(self, trajectories: Sequence[Trajectory]) -> float:
        """Return what the rows of trajectories take, on all processes at once."""
        for connection in self._connections:
            connection.send(list(trajectories))
        for message in (None, "go"):
            if message:
                for connection in self._connections:
                    connection.send(message)
            answers = [connection.recv() for connection in self._connections]
        return max(answers)


def main() -> None:
    """Measure at each turn what the newest step of ours takes at the least."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=[*TASKS])
    parser.add_argument("folder", type=Path)
    parser.add_argument("address")
    options = parser.parse_args()
    task, folder = TASKS[options.task], options.folder
    learning = Learning(task, folder)
    generation = Generation(task, folder, threads=os.cpu_count() or 1)
    waiting = Turns(options.address)
    waiting.wait()
    while True:
        trajectories: list[Trajectory] = pickle.loads((folder / "trajectories.pickle").read_bytes())  # noqa: S301
        waiting.wait(
            {
                "generation": generation.seconds(trajectories, plain=False),
                "plain": generation.seconds(trajectories, plain=True),
                "learning": learning.seconds(trajectories),
            }
        )


if __name__ == "__main__":
    sys.exit(main())
