"""The ledger takes what happened and refuses what cannot have happened."""

import copy
from collections.abc import Callable

import pytest

from posttrain.inference.engine import Completion
from posttrain.rendering.rendering import Rendered
from posttrain.rollout.ledger import (
    LedgerError,
    append_observation,
    append_prompt,
    append_turn,
    check_ledger,
)
from posttrain.types import (
    ImageRef,
    Trajectory,
    TrajectoryImage,
    TrajectoryVideo,
    VideoRef,
    text_message,
)

PAD, FRAME = 9, 10


def turn(token_ids: list[int], logprobs: list[float]) -> Completion:
    """Make a turn that an engine of policy version 7 sampled."""
    count = len(token_ids)
    return Completion(
        id="a",
        token_ids=token_ids,
        logprobs=logprobs,
        finish_reason="stop",
        versions=[7] * count,
        approximate=[False] * count,
    )


@pytest.fixture
def ledger() -> Trajectory:
    """Make a ledger of a prompt with an image, a turn, a reply with an image, and a turn."""
    trajectory = Trajectory("scene-1", "markers", group=0, episode=2)
    image = TrajectoryImage(ImageRef("/a.png", "aa"), offset=1, num_tokens=2)
    prompt = Rendered([1, PAD, PAD, 2], [False] * 4, [image])
    reply = Rendered([5, PAD, PAD, 6], [False] * 4, [image])
    append_prompt(trajectory, prompt, (text_message("user", "?"),))
    append_turn(trajectory, turn([3, 4], [-0.1, -0.2]), text_message("assistant", "x"))
    append_observation(trajectory, reply, text_message("tool", "y"))
    append_turn(trajectory, turn([8], [-0.3]), text_message("assistant", "z"))
    return trajectory


def test_what_is_appended_lines_up(ledger: Trajectory) -> None:
    check_ledger(ledger, (PAD, FRAME), max_length=11)
    assert ledger.token_ids == [1, PAD, PAD, 2, 3, 4, 5, PAD, PAD, 6, 8]
    assert [t for t, s in zip(ledger.token_ids, ledger.sampled, strict=True) if s] == [3, 4, 8]
    assert [p for p in ledger.logprobs if p] == [-0.1, -0.2, -0.3]
    assert [v for v in ledger.versions if v >= 0] == [7, 7, 7]
    assert [image.offset for image in ledger.images] == [1, 7]
    assert [message.role for message in ledger.response] == ["assistant", "tool", "assistant"]


def _sampled_placeholder(ledger: Trajectory) -> None:
    ledger.token_ids[4] = PAD


def _cut_placeholder(ledger: Trajectory) -> None:
    ledger.token_ids[8] = 0


def _overlapping_images(ledger: Trajectory) -> None:
    ledger.images.append(ledger.images[0])


def _no_hash(ledger: Trajectory) -> None:
    ledger.images[0].ref = ImageRef("/a.png")


def _no_version(ledger: Trajectory) -> None:
    ledger.versions[4] = -1


def _mask_too_wide(ledger: Trajectory) -> None:
    ledger.sampled[3] = True


def _logprob_on_context(ledger: Trajectory) -> None:
    ledger.logprobs[0] = -1.0


def _impossible_logprob(ledger: Trajectory) -> None:
    ledger.logprobs[4] = 0.5


def _nan_logprob(ledger: Trajectory) -> None:
    ledger.logprobs[4] = float("nan")


def _lost_token(ledger: Trajectory) -> None:
    del ledger.token_ids[0]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_sampled_placeholder, "image placeholders"),
        (_cut_placeholder, "the first that differs is token 8"),
        (_overlapping_images, "image placeholders"),
        (_no_hash, "no hash"),
        (_no_version, "version -1"),
        (_mask_too_wide, "sampled = True"),
        (_logprob_on_context, "log-prob -1.0"),
        (_impossible_logprob, "another distribution"),
        (_nan_logprob, "not finite"),
        (_lost_token, "lengths"),
    ],
)
def test_damage_is_refused_by_name(
    ledger: Trajectory, damage: Callable[[Trajectory], None], says: str
) -> None:
    damaged = copy.deepcopy(ledger)
    damage(damaged)
    with pytest.raises(LedgerError, match=says) as caught:
        check_ledger(damaged, (PAD, FRAME), max_length=11)
    assert "episode 2 of sample 'scene-1'" in str(caught.value)


def test_placeholders_of_videos_are_those_of_their_runs() -> None:
    video = TrajectoryVideo(VideoRef(("/a.mp4",), "bb"), offset=1, runs=[(2, 2), (5, 1)])
    shown = Rendered([1, 7, FRAME, FRAME, 7, FRAME, 2], [False] * 7, [], [video])
    ledger = Trajectory("film", "films", group=0, episode=2)
    append_prompt(ledger, shown, (text_message("user", "?"),))
    append_turn(ledger, turn([3], [-0.1]), text_message("assistant", "x"))
    append_observation(ledger, shown, text_message("tool", "y"))
    assert [(each.offset, each.runs) for each in ledger.videos] == [
        (1, [(2, 2), (5, 1)]),
        (9, [(10, 2), (13, 1)]),
    ]
    check_ledger(ledger, (PAD, FRAME), max_length=15)
    ledger.token_ids[12] = FRAME
    with pytest.raises(LedgerError, match=r"video placeholders for 6 video features; the first.* token 12"):
        check_ledger(ledger, (PAD, FRAME), max_length=15)
    ledger.videos[0].ref = VideoRef(("/a.mp4",))
    with pytest.raises(LedgerError, match=r"a\.mp4.* has no hash"):
        check_ledger(ledger, (PAD, FRAME), max_length=15)


def test_an_episode_over_budget_is_refused(ledger: Trajectory) -> None:
    with pytest.raises(LedgerError, match="max_length = 10"):
        check_ledger(ledger, (PAD, FRAME), max_length=10)


def test_only_the_first_append_may_be_the_prompt(ledger: Trajectory) -> None:
    with pytest.raises(LedgerError, match="must come first"):
        append_prompt(ledger, Rendered([1], [False], []), ())


@pytest.mark.parametrize("logprobs", [[], [-0.1, -0.2]])
def test_a_turn_needs_a_logprob_for_every_token(ledger: Trajectory, logprobs: list[float]) -> None:
    with pytest.raises(LedgerError, match="every token a log-prob"):
        append_turn(ledger, turn([3], logprobs), text_message("assistant", "x"))
