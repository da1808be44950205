"""Trajectories are dealt to packed rows and ranks: each to one, loads are equal, groups stay together."""

from hypothesis import given
from hypothesis import strategies as st

from posttrain.config import Sapo
from posttrain.training.on_policy.objectives import Objective, SapoTerm
from posttrain.training.on_policy.rows import ALL, Share, mini_batches, share_of, with_signal
from posttrain.types import ImageRef, Trajectory, TrajectoryImage

COUNTING = Objective([SapoTerm(Sapo(name="sapo"))])
FILLER = Trajectory("", "", -1, 0, token_ids=[0, 0])


def trajectory(group: int, episode: int, tokens: int, advantage: float, image: bool) -> Trajectory:
    shown = [TrajectoryImage(ImageRef(f"/{group}.png", f"{group}"), 0, 1)] if image else []
    made = Trajectory(f"s{group}", "t", group, episode, token_ids=[0] * tokens, images=shown)
    made.advantage = advantage
    return made


groups = st.lists(
    st.tuples(st.lists(st.integers(2, 500), min_size=1, max_size=6), st.booleans(), st.booleans()),
    min_size=1,
    max_size=12,
)


@given(drawn=groups, capacity=st.integers(500, 2000), ranks=st.integers(1, 5))
def test_every_trajectory_is_in_one_row_and_loads_are_alike(
    drawn: list[tuple[list[int], bool, bool]], capacity: int, ranks: int
) -> None:
    batch = [
        trajectory(group, episode, tokens, 0.5 if signal else 0.0, image)
        for group, (lengths, signal, image) in enumerate(drawn)
        for episode, tokens in enumerate(lengths)
    ]
    shares = [share_of(batch, capacity, FILLER, rank, ranks, COUNTING) for rank in range(ranks)]
    learned = {(t.group, t.episode) for t in batch if drawn[t.group][1]}
    assert len({len(share.rows) for share in shares}) == 1  # they exchange gradients with each
    assert all(share.sequences == len(batch) for share in shares)
    rows = [row for share in shares for row in share.rows]
    found = [(t.group, t.episode) for row in rows if row.counts for t in row.trajectories]
    assert sorted(found) == sorted(learned)
    assert all(row.trajectories == [FILLER] for row in rows if not row.counts)
    assert all(sum(len(t.token_ids) for t in row.trajectories) <= capacity for row in rows)
    loads = [tokens_of(share) for share in shares]
    largest = max((len(t.token_ids) for t in batch), default=0)
    assert max(loads) - min(loads) <= 2 * largest + sum(loads) / ranks / 2


def tokens_of(share: Share) -> int:
    return sum(len(t.token_ids) for row in share.rows if row.counts for t in row.trajectories)


def test_a_group_that_shares_an_image_stays_in_one_row_where_it_fits() -> None:
    batch = [trajectory(group, episode, 100, 1.0, True) for episode in range(4) for group in range(6)]
    whole = share_of(batch, 900, FILLER, 0, 1, COUNTING).rows
    assert [len({t.group for t in row.trajectories}) for row in whole] == [2, 2, 2]
    halves = [row for rank in range(2) for row in share_of(batch, 900, FILLER, rank, 2, COUNTING).rows]
    # Cut once, or the ranks could not be given the same.
    assert sum(len({t.group for t in row.trajectories}) for row in halves) <= 2 * 6
    assert sum(len(row.trajectories) for row in halves[: len(halves) // 2]) == 12


def test_a_group_teaches_if_one_of_its_advantages_does() -> None:
    batch = [
        trajectory(0, 0, 5, 0.0, False),
        trajectory(1, 0, 5, 0.0, False),
        trajectory(1, 1, 5, 1.0, False),
    ]
    assert [(t.group, t.episode) for t in with_signal(batch, COUNTING)] == [(1, 0), (1, 1)]
    assert share_of(batch[:1], 10, FILLER, 0, 2, COUNTING) == Share([], 1, 0)


def test_what_is_masked_is_not_run_and_its_tokens_do_not_count() -> None:
    batch = [trajectory(group, episode, 5, 1.0, False) for group in range(2) for episode in range(3)]
    for each in batch:
        each.sampled = [False] * 2 + [True] * 3
        each.stop_reason = "answer"
    batch[1].stop_reason, batch[2].stop_reason = "max_tokens", "max_turns"
    for each in batch[3:]:
        each.advantage = 0.0
    masking = Objective([SapoTerm(Sapo(name="sapo"))], mask_truncated=True)
    assert [(t.group, t.episode) for t in with_signal(batch, masking)] == [(0, 0)]
    assert [(t.group, t.episode) for t in with_signal(batch, COUNTING)] == [(0, 0), (0, 1), (0, 2)]
    assert len(with_signal(batch, ALL)) == 6
    share = share_of(batch, 100, FILLER, 0, 1, masking)
    assert (share.sequences, share.tokens) == (6, 12)  # as in TRL: they count as sequences, not as tokens
    batch[0].stop_reason = "max_tokens"
    assert share_of(batch, 100, FILLER, 0, 1, masking).rows == []


def test_mini_batches_keep_groups_whole() -> None:
    batch = [trajectory(group, episode, 5, 1.0, False) for episode in range(2) for group in range(5)]
    parts = mini_batches(batch, 2)
    assert [sorted({t.group for t in part}) for part in parts] == [[0, 1, 2], [3, 4]]
    assert len(mini_batches(batch, 9)) == 5
