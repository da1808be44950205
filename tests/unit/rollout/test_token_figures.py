"""Figures of an episode's tokens: the texts that they stand for are those of a real tokenizer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from posttrain.rollout.token_figures import TokenBytes, token_figures
from posttrain.types import Trajectory, text_message


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_checkpoint)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(turns=st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=3))
def test_characters_of_a_turn_are_those_of_its_tokens(tokenizer: Any, turns: list[str]) -> None:
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    texts = [text.encode("utf-8", "ignore").decode() or "a" for text in turns]
    episode = Trajectory("row", "task", 0, 0)
    for text in texts:
        ids = [*tokenizer.encode(text, add_special_tokens=False), end]
        said = tokenizer.decode(ids[:-1], clean_up_tokenization_spaces=False)
        episode.response += [text_message("assistant", said), text_message("tool", "seen")]
        episode.token_ids += [*ids, 0]
        episode.sampled += [True] * len(ids) + [False]
        episode.logprobs += [-0.25 * place for place in range(len(ids))] + [0.0]
    entropy = np.arange(sum(episode.sampled), dtype=np.float16)
    found = list(token_figures([episode], TokenBytes(tokenizer), {(0, 0): entropy}))
    assert len(found) == len(texts)
    starts = np.flatnonzero(np.diff(episode.sampled, prepend=False)).tolist()[::2]
    at = [sum(episode.sampled[:start]) for start in starts]
    assert [turn.entropies[:1].tolist() for turn in found] == [[place] for place in at]
    for turn, message in zip(found, episode.response[::2], strict=True):
        assert turn.row == 0
        assert turn.lengths.sum() == len(message.text)
        assert len(turn.entropies) == len(turn.lengths)
        assert turn.logprobs.tolist() == [-0.25 * place for place in range(len(turn.lengths))]


def test_a_turn_that_is_no_text_has_no_figures_and_keeps_its_place(
    tokenizer: Any,
) -> None:
    [half, *_] = tokenizer.encode("é", add_special_tokens=False)
    word = tokenizer.encode("a", add_special_tokens=False)
    episode = Trajectory("row", "task", 0, 0)
    for ids, said in (([half], "�"), (word, "a")):
        episode.response.append(text_message("assistant", said))
        episode.token_ids += [*ids, 0]
        episode.sampled += [True] * len(ids) + [False]
        episode.logprobs += [-1.0] * len(ids) + [0.0]
    first, second = token_figures([episode], TokenBytes(tokenizer), {})
    assert np.isnan(second.entropies).all()
    whole = len(tokenizer.encode("é", add_special_tokens=False)) == 1
    assert first.lengths.tolist() == ([] if not whole else first.lengths.tolist())
    assert second.lengths.tolist() == [1]
