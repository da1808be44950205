"""The judge's rewards against a real server: the contract, what the judge is shown, rubrics and pairs."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from posttrain.types import Block, ImageRef, Message, RewardInput, Score, text_message
from rewards.builtin.judge import judge, judge_accuracy, judge_pairwise, multi_turn_reasoning
from rewards.judge import JudgeError, Rubric, load_rubric, scoring
from rewards.judge.rubric import RUBRICS
from rewards.sdk import RewardError

HONEST = {"model": "j", "cache_dir": None}
QUESTION = (text_message("user", "What does the sign say?"),)


def episode(answer: str, gold: Any = "PUSH", prompt: tuple[Message, ...] = QUESTION) -> RewardInput:
    return RewardInput(prompt, (text_message("assistant", f"Reading. {answer}"),), answer, gold)


def score(reward: Any, x: RewardInput, **params: Any) -> Score:
    scored = reward(x, **(HONEST | params))
    assert scored is not None
    return scored


# The contract of every reward


@pytest.mark.parametrize("gold", ["PUSH", 4, ["a", "PUSH"], "The sign says PUSH.", ":", "Solution"])
def test_gold_is_full_marks_and_empty_the_minimum_without_the_judge(gold: Any, judge_server: Any) -> None:
    answer = str(gold[-1] if isinstance(gold, list) else gold)
    for reward in (judge, judge_accuracy):
        assert score(reward, episode(f"  {answer}\n", gold)).value == 1
        assert score(reward, episode(" \n", gold)).value == 0
    assert score(judge_accuracy, episode(f"So <answer>{answer}</answer>", gold)).value == 1
    assert score(multi_turn_reasoning, episode("", gold)).value == 0
    assert judge_server.asked == []


def test_without_ground_truth_or_steps_they_do_not_apply(judge_server: Any) -> None:
    assert judge(episode("PUSH", None), **HONEST) is None
    assert judge_accuracy(episode("PUSH", None), **HONEST) is None
    assert multi_turn_reasoning(RewardInput(QUESTION, (), "PUSH", "PUSH"), **HONEST) is None
    assert judge_pairwise.judge([episode("a", None), episode("b", None)], HONEST) == [None, None]
    assert judge_pairwise.judge([episode("a")], HONEST) == [None]
    assert judge_server.asked == []


@pytest.mark.parametrize("gold", ["", [], {"a": 1}])
def test_a_degenerate_ground_truth_is_a_fault_of_the_dataset(gold: Any, judge_server: Any) -> None:
    for reward in (judge, judge_accuracy, multi_turn_reasoning):
        with pytest.raises(ValueError, match="ground_truth"):
            reward(episode("PUSH", gold), **HONEST)


@given(
    st.lists(st.integers(0, 10), min_size=4, max_size=4),
    st.lists(st.floats(0.1, 1e6), min_size=4, max_size=4),
)
def test_the_value_is_the_weighted_mean_of_the_parts(scores: list[int], weights: list[float]) -> None:
    rubric = load_rubric("general").with_weights(
        dict(zip(load_rubric("general").aspects, weights, strict=False))
    )
    aspects = rubric.asked(set())
    verdict = {"reason": "Two\nlines.", "scores": dict(zip(aspects, scores, strict=True))}
    scored = scoring._score(verdict, rubric, aspects)
    mean = sum(s * w for s, w in zip(scores, weights, strict=True)) / sum(weights) / 10
    assert scored.value == pytest.approx(mean)
    assert 0 <= scored.value <= 1
    assert list(scored.parts.values()) == [s / 10 for s in scores]
    assert scored.note == "Two lines."


def test_white_space_around_an_answer_changes_nothing_that_is_asked(judge_server: Any) -> None:
    for answer in ("PULL", " \nPULL\t\n"):
        assert score(judge, episode(answer)).value == 1
    one, other = (judge_server.section(request) for request in judge_server.asked)
    assert one == other == "PULL"


def test_parameters_are_checked_before_anything_is_scored() -> None:
    for reward in (judge, judge_accuracy, multi_turn_reasoning, judge_pairwise):
        reward.check(
            {"model": "j", "base_url": "http://h/v1", "timeout_s": 1, "cache_dir": None, "images": 0}
        )
        assert reward.is_async
        with pytest.raises(RewardError, match="model"):
            reward.check({})
        with pytest.raises(RewardError, match="api_key"):
            reward.check({"model": "j", "api_key": "sk-1"})


# What the judge is shown


def test_the_judge_sees_question_reference_answer_and_aspects(judge_server: Any) -> None:
    history = (
        text_message("system", "You are a policy."),
        text_message("user", "Look."),
        text_message("assistant", "Yes?"),
        text_message("user", "What does it say?"),
    )
    scored = score(judge, episode("PULL", ["PUSH", "push it"], history), weights={"clarity": 0})
    (request,) = judge_server.asked
    assert (
        judge_server.section(request, "QUESTION")
        == "user:\nLook.\n\nassistant:\nYes?\n\nuser:\nWhat does it say?"
    )
    assert judge_server.section(request, "REFERENCE") == "Any one of these is right:\n- PUSH\n- push it"
    assert judge_server.section(request) == "PULL"
    assert set(scored.parts) == {"correctness", "completeness", "helpfulness"}
    assert "clarity" not in request["messages"][0]["content"]
    assert request["temperature"] == 0
    assert request["model"] == "j"


@pytest.fixture
def picture(tmp_path: Path) -> Block:
    path = tmp_path / "wide.png"
    Image.new("RGB", (4000, 1000), "red").save(path)
    return Block("image", image=ImageRef(str(path)))


def test_images_are_made_smaller_and_capped_in_number(judge_server: Any, picture: Block) -> None:
    prompt = (Message("user", (picture, Block("text", text="or"), picture, picture)),)
    assert "visual_evidence" in score(judge, episode("PULL", prompt=prompt), images=2).parts
    parts = judge_server.asked[0]["messages"][1]["content"]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    image = Image.open(io.BytesIO(base64.b64decode(urls[0].removeprefix("data:image/jpeg;base64,"))))
    assert image.size == (2048, 512)
    assert len(urls) == 2
    assert judge_server.section(judge_server.asked[0], "QUESTION") == "[image 1]\nor\n[image 2]\n[image 3]"
    assert "visual_evidence" not in score(judge, episode("PULL", prompt=prompt), images=0).parts
    with pytest.raises(ValueError, match="cannot be used"):
        score(
            judge, episode("PULL", prompt=(Message("user", (Block("image", image=ImageRef("/none.png")),)),))
        )


def test_reasoning_shows_every_turn_and_asks_about_results_where_there_are_any(
    judge_server: Any, picture: Block
) -> None:
    turns = (
        text_message("assistant", '<think>I zoom.</think><tool_call>{"name": "zoom"}</tool_call>'),
        Message("tool", (Block("text", text="crop"), picture)),
        text_message("assistant", "<think>It is red.</think>PUSH"),
    )
    x = RewardInput((Message("user", (picture, Block("text", text="What?"))),), turns, "PUSH", "PUSH")
    assert set(score(multi_turn_reasoning, x).parts) == {"reading", "coherence", "conclusion"}
    seen = judge_server.section(judge_server.asked[0], "TRANSCRIPT")
    assert "I zoom." in seen
    assert "tool:\ncrop\n[image 2]" in seen
    no_tool = RewardInput(x.prompt, (turns[2],), "PUSH", "PUSH")
    assert set(score(multi_turn_reasoning, no_tool).parts) == {"coherence", "conclusion"}


# Rubrics


@pytest.mark.parametrize("path", sorted(RUBRICS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_rubrics_load(path: Path) -> None:
    assert load_rubric(path.stem) == load_rubric(str(path))
    assert load_rubric(path.stem).asked({"images", "tool_results"})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("instructions: [", "not YAML, line 1"),
        ("instructions: x", "aspects: Field required"),
        ("instructions: x\naspects: {}", "aspects"),
        ("instructions: x\naspects: {a: {question: q}}\nscael: 5", "scael: Extra"),
        ("instructions: x\naspects: {a: {question: q, weight: -1}}", "aspects.a.weight"),
        ("instructions: x\naspects: {a: {question: q, weight: .nan}}", "aspects.a.weight"),
        ("instructions: x\naspects: {'a b': {question: q}}", "aspects"),
        ("instructions: x\nscale: true\naspects: {a: {question: q}}", "scale"),
        ("!!python/object/apply:os.system [ls]", "not YAML"),
        ("- 1", "the file"),
        ("x" * 70_000, "bytes"),
    ],
)
def test_a_rubric_that_is_none_is_refused(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=says):
        load_rubric(str(path))


def test_a_rubric_of_ones_own_needs_no_reference(judge_server: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    aspects = {"tone": {"question": "Is it polite?"}, "wit": {"question": "Is it funny?", "weight": 3}}
    own = {"instructions": "Judge {the} ANSWER.", "scale": 5, "needs_reference": False, "aspects": aspects}
    path.write_text(yaml.safe_dump(own))
    judge_server.verdict = lambda aspect: 5 if aspect == "wit" else 1
    scored = score(judge, episode("PULL", None), rubric=str(path))
    assert scored.value == pytest.approx(0.8)
    assert scored.parts == {"tone": 0.2, "wit": 1.0}
    path.write_text(yaml.safe_dump(own | {"scale": 10}))
    assert score(judge, episode("PULL", None), rubric=str(path)).value == pytest.approx(0.4)


def test_unknown_rubrics_and_weights_are_refused(judge_server: Any, tmp_path: Path) -> None:
    for rubric in ("generl", "/etc/passwd", "../x", str(tmp_path / "none.yaml"), str(tmp_path)):
        with pytest.raises(ValueError, match="general"):
            score(judge, episode("PULL"), rubric=rubric)
    for weights in ({"charm": 1}, {"clarity": -1}, {"clarity": float("inf")}, {"clarity": True}):
        with pytest.raises(ValueError, match="weights"):
            score(judge, episode("PULL"), weights=weights)
    with pytest.raises(ValueError, match="no aspect"):
        score(judge, episode("PULL"), weights=dict.fromkeys(load_rubric("general").aspects, 0))
    assert Rubric.model_validate({"instructions": "x", "aspects": {"a": {"question": "q"}}}).scale == 10


# Pairs


def by_number(judge_server: Any, lean: str = "") -> Any:
    """Prefers the larger number, or whatever stands at the position `lean`."""

    def behave(request: dict[str, Any]) -> Any:
        a, b = (int(judge_server.section(request, f"ANSWER {side}")) for side in "AB")
        winner = lean or ("A" if a > b else "B" if b > a else "tie")
        return judge_server.say(
            json.dumps({"reason": "", "nonce": judge_server.nonce(request), "winner": winner})
        )

    return behave


def shares(answers: list[str], **params: Any) -> list[float]:
    scored = judge_pairwise.judge([episode(answer) for answer in answers], HONEST | params)
    return [one.value for one in scored if one is not None]


def test_the_better_answers_win_more(judge_server: Any) -> None:
    judge_server.behave = by_number(judge_server)
    assert shares(["1", "2", "3", "4"], max_pairs=6) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert len(judge_server.asked) == 12
    assert shares(["5", "5"]) == [0.5, 0.5]
    assert shares(["5", "", "6"]) == [0.5, 0, 1]


def test_a_preference_for_a_position_cancels_out(judge_server: Any) -> None:
    for lean in "AB":
        judge_server.behave = by_number(judge_server, lean)
        assert shares(["1", "2", "3"]) == [0.5] * 3


def test_pairs_are_bounded_and_everyone_meets_as_many(judge_server: Any) -> None:
    judge_server.behave = by_number(judge_server)
    for count, max_pairs, pairs in ((8, 16, 16), (8, 100, 28), (5, 5, 5), (5, 1, 5), (2, 16, 1), (3, 16, 3)):
        judge_server.asked.clear()
        assert len(shares([str(i) for i in range(count)], max_pairs=max_pairs)) == count
        assert len(judge_server.asked) == 2 * pairs
        seen = [judge_server.section(request, "ANSWER A") for request in judge_server.asked]
        assert len({seen.count(str(i)) for i in range(count)}) == 1


def test_a_missing_comparison_is_an_error_of_the_group(judge_server: Any) -> None:
    honest, asked = by_number(judge_server), []

    def behave(request: dict[str, Any]) -> Any:
        asked.append(request)
        return judge_server.send(b"", 500) if len(asked) == 3 else honest(request)

    judge_server.behave = behave
    with pytest.raises(JudgeError, match="in 1 attempts"):
        shares(["1", "2", "3"], max_attempts=1)
