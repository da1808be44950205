"""The games that ship: fair, solvable, shown as they are, and rewarded by their state alone."""

import itertools
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from posttrain.data.formats import read_canonical
from posttrain.types import Sample, text_message
from tools_env.kit.hostile import TURNS
from tools_env.play.cards import Blackjack, EzPoint, NumberLine, Point24, hand, point, solve, value_of
from tools_env.play.maze import CELL, STEPS, Maze
from tools_env.play.rows import GAMES, write
from tools_env.play.table import Game, read_turn

SHIPPED = {name: made_of for name, made_of in GAMES.items() if issubclass(made_of, Game)}
ALL = pytest.mark.parametrize("made_of", SHIPPED.values(), ids=SHIPPED.keys())


def dealt(made_of: type[Game], seed: object, **params: Any) -> Game:
    game = made_of(**params)
    game.start(Sample("row", (text_message("user", "?"),), columns={"seed": seed}))
    return game


@ALL
def test_the_same_row_deals_the_same_and_others_differ(made_of: type[Game]) -> None:
    deals = [tuple(dealt(made_of, seed).seen()) for seed in range(20)]
    assert deals == [tuple(dealt(made_of, seed).seen()) for seed in range(20)]
    assert len(set(deals)) > 8
    pictures = [dealt(made_of, 3).picture().tobytes() for _ in range(2)]
    assert pictures[0] == pictures[1]


@ALL
def test_good_moves_win_what_can_be_won(made_of: type[Game]) -> None:
    for seed in range(25):
        game = dealt(made_of, seed)
        for _ in range(30):
            if game.step(game.moves()[0][0]) is None:
                break
        assert game.solved or made_of is Blackjack
        assert set(game.rewards()) >= {"solved", "ocr"}
        assert all(0 <= value <= 1 for value in game.rewards().values())


@ALL
def test_what_is_seen_is_asked_for_and_counted(made_of: type[Game]) -> None:
    game = dealt(made_of, 1)
    assert game.step(f"[{', '.join(game.seen())}] nothing of the kind") is not None
    assert game.rewards()["ocr"] == 1.0
    if game.step(f"[{', '.join(game.seen())}, 7] {game.moves()[1][0]}") is not None:
        game.step(game.moves()[1][0])
        assert game.rewards()["ocr"] == pytest.approx(1 / 3)


@ALL
@pytest.mark.parametrize("view", ["image", "text", "both"])
def test_a_view_shows_the_picture_or_says_it(made_of: type[Game], view: Any) -> None:
    game = made_of(view=view)
    shown = game.start(Sample("row", (text_message("user", "?"),), columns={"seed": 5}))
    parts = [shown] if isinstance(shown, str) else list(shown)  # pyright: ignore[reportArgumentType]
    assert [isinstance(part, Image.Image) for part in parts] == {
        "image": [True],
        "text": [False],
        "both": [True, False],
    }[view]
    with pytest.raises(ValueError, match="is none of image"):
        made_of(view="sound")  # pyright: ignore[reportArgumentType]


@ALL
@settings(max_examples=20, deadline=None)
@given(turns=st.lists(st.text() | st.sampled_from(TURNS) | st.sampled_from([*STEPS, "hit", "+", "1+"])))
def test_whatever_a_model_says_it_goes_on(made_of: type[Game], turns: list[str]) -> None:
    game = dealt(made_of, 2)
    for turn in turns:
        if game.step(turn) is None:
            break
    assert all(0 <= value <= 1 for value in game.rewards().values())


def test_a_turn_is_read() -> None:
    assert read_turn("[3, K] Hit.") == (("3", "k"), "hit")
    assert read_turn("stand") == (None, "stand")
    assert read_turn("[] +") == (("",), "+")
    assert read_turn("x" * 10**6)[1] == "x" * 2000


def test_number_line_stays_within_its_ends() -> None:
    game = NumberLine(highest=1)
    game.deal(random.Random(0))
    for move in ("-", "-", "+", "+", "+"):
        game.move(move)
        assert 0 <= game.current <= 1


def best(cards: list[str]) -> int:
    """A hand's value by trying an ace as 1 and as 11."""
    choices = [(1, 11) if card[:-1] == "A" else (point(card),) for card in cards]
    totals = [sum(values) for values in itertools.product(*choices)]
    return max([total for total in totals if total <= 21], default=min(totals))


@given(st.lists(st.sampled_from(["A♥", "2♠", "9♦", "10♣", "K♥", "5♣"]), min_size=1, max_size=6))
def test_a_hand_counts_as_well_as_it_can(cards: list[str]) -> None:
    assert hand(cards) == best(cards)


def test_blackjack_is_won_by_the_better_hand() -> None:
    for own, dealer, solved, score in [
        (["K♥", "9♥"], ["K♠", "8♠"], True, 1.0),
        (["K♥", "8♥"], ["K♠", "8♦"], False, 0.5),
        (["K♥", "7♥"], ["K♠", "8♦"], False, 0.0),
    ]:
        game = Blackjack()
        game.deal(random.Random(0))
        game.own, game.dealer = own, dealer
        assert game.move("stand") is None
        assert (game.solved, game.rewards()["score"]) == (solved, score)


@given(st.lists(st.integers(1, 10), min_size=1, max_size=4), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_a_solution_is_right_and_is_found_where_there_is_one(numbers: list[int], target: int) -> None:
    formula = solve(numbers, target)
    if formula:
        assert value_of(formula) == target
    reachable = {Fraction(number) for number in numbers} if len(numbers) == 1 else reach(numbers)
    assert bool(formula) == (target in reachable)


def reach(numbers: list[int]) -> set[Fraction]:
    """Everything that numbers can make, by splitting them in two in every way."""
    if len(numbers) == 1:
        return {Fraction(numbers[0])}
    found: set[Fraction] = set()
    for mask in range(1, 2 ** len(numbers) - 1):
        left = reach([n for i, n in enumerate(numbers) if mask >> i & 1])
        right = reach([n for i, n in enumerate(numbers) if not mask >> i & 1])
        for a, b in itertools.product(left, right):
            found |= {a + b, a - b, a * b} | ({a / b} if b else set())
    return found


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        ("1+2*3", 7),
        ("(1+2)*3", 9),
        ("8/3*3", 8),
        ("2-3-4", -5),
        ("8/(3-3)", None),
        ("2**3", None),
        ("(1", None),
        ("1)", None),
        ("", None),
        ("1 2", None),
        ("__import__('os')", None),
        ("(" * 60, None),
    ],
)
def test_a_formula_is_computed_and_nothing_else_is(formula: str, value: int | None) -> None:
    assert value_of(formula) == value


@pytest.mark.parametrize(
    ("made_of", "cards", "formula", "solved"),
    [
        (EzPoint, ["3♥", "4♥"], "3*4=", True),
        (EzPoint, ["2♥", "K♥"], "2+10=", True),
        (EzPoint, ["3♥", "4♥"], "12=", False),
        (EzPoint, ["3♥", "4♥"], "3*4*1=", False),
        (EzPoint, ["6♥", "6♣"], "6+6", False),
        (Point24, ["6♥", "4♣", "A♣", "A♥"], "6*4*1/1=", True),
        (Point24, ["6♥", "4♣", "A♣", "A♥"], "6*4*1=", False),
        (Point24, ["K♥", "K♣", "4♣", "Q♥"], "(10*10-4)/10=", False),
    ],
)
def test_a_formula_uses_each_card_once(made_of: Any, cards: list[str], formula: str, solved: bool) -> None:
    whole, spelled = dealt(made_of, 0), dealt(made_of, 0)
    whole.cards = spelled.cards = cards  # pyright: ignore[reportAttributeAccessIssue]
    whole.step(formula)
    for symbol in formula:
        spelled.step(symbol)
    assert whole.solved == spelled.solved == solved


@pytest.mark.parametrize("size", [2, 5, 12])
def test_a_maze_has_one_way_and_its_walls_are_drawn(size: int) -> None:
    for seed in range(5):
        game = dealt(Maze, seed, size=size)
        assert isinstance(game, Maze)
        assert len(game.passages) == size**2 - 1
        image, (x, y) = game.picture(), game.place
        for dx, dy in STEPS.values():
            wall = (2 + x * CELL + CELL // 2 + dx * CELL // 2, 2 + y * CELL + CELL // 2 + dy * CELL // 2)
            is_open = frozenset((game.place, (x + dx, y + dy))) in game.passages
            assert (image.getpixel(wall) == (255, 255, 255)) == is_open
        way = game.moves()[0][0].split()
        assert game.step(" ".join(way[:-1]) or "nowhere") is not None
        assert game.rewards()["progress"] == pytest.approx((len(way) - 1) / len(way))
        assert game.step(way[-1]) is None
        assert game.rewards()["progress"] == game.rewards()["solved"] == 1.0


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("kind", ["prompt", "played"])
def test_rows_are_canonical_and_splits_differ(tmp_path: Path, game: str, kind: Any) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        write(tmp_path / split, game=game, kind=kind, count=5, split=split)
    train, test = (list(read_canonical(tmp_path / split / "data.jsonl")) for split in ("train", "test"))
    assert len({sample.id for sample in train + test}) == 10
    for sample in train:
        ends = "assistant" if kind == "played" else "user"
        assert sample.messages[-1].role == ends
        assert ("seed" in sample.columns) == (kind == "prompt")
    with pytest.raises(ValueError, match="none of number_line"):
        write(tmp_path, game="chess")


def test_the_datasets_of_the_games_are_what_the_environments_play() -> None:
    folder = Path(__file__).parents[3] / "datasets_cfg"
    for game in GAMES:
        assert f"game: {game}," in (folder / f"{game}.yaml").read_text()
