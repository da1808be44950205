"""Sequences whose tokens are given: what vLLM says of these tokens, and at their places."""

from collections.abc import Callable, Collection, Sequence
from itertools import count

from vllm import LLMEngine, SamplingParams
from vllm.outputs import RequestOutput

from posttrain.inference.engine import EngineError, EngineUse, ReadTokens, ScoreRequest
from posttrain.inference.vllm_adapters import Adapters
from posttrain.inference.vllm_inputs import reading_parameters, scoring_parameters, scoring_prompt
from posttrain.inference.vllm_outputs import reading_of, reads_too_late, scores_of
from posttrain.inference.vllm_weights import ModelWeights

#: vLLM's priority of these, before turns.
SCORING = 0


class GivenSequences:
    """Scores and reads given sequences, before anything waiting is served.

    Args:
        engine: The engine.
        weights: What it serves.
        adapters: Its adapters.
        use: What the run does with it.
        advance: Makes one step of it, and returns what is finished of the requests that it is told of.
    """

    def __init__(
        self,
        engine: LLMEngine,
        weights: ModelWeights,
        adapters: Adapters,
        use: EngineUse,
        advance: Callable[[Collection[str]], list[RequestOutput]],
    ) -> None:
        self._engine, self._weights, self._adapters, self._use = engine, weights, adapters, use
        self._advance = advance
        self._numbers = count()

    def score(self, sequences: Sequence[ScoreRequest]) -> list[list[float]]:
        """Compute the log-probs of all tokens but the first of each; see `Engine.score`."""
        tempered = self._use.tempered
        parameters = [scoring_parameters(None if tempered else each.token_ids[-1]) for each in sequences]
        outputs = self._run(sequences, parameters, self._weights.cache_salt)
        return [
            scores_of(output, sequence, tempered) for output, sequence in zip(outputs, sequences, strict=True)
        ]

    def read(self, sequences: Sequence[ScoreRequest], top: int) -> list[ReadTokens]:
        """Compute what the model says at the places of given tokens; see `Engine.read`.

        Sequences that are read together share their beginnings, and nothing with those before them, so that
        what is said of them depends on nothing else. One of which the cache has a place that is to be read,
        as of an equal sequence, is read again without it: the cache holds no log-probs.

        Raises:
            EngineError: As in `score`, or if so many tokens cannot be told.
        """
        if not 0 < top <= self._use.reads:
            raise EngineError(f"{top} likeliest tokens are asked for, and the engine tells {self._use.reads}")
        top = min(top, self._engine.model_config.get_vocab_size())
        self._engine.reset_encoder_cache()
        salt = f"{self._weights.cache_salt} {next(self._numbers)}"
        parameters = [reading_parameters(each, top, again=False) for each in sequences]
        outputs = self._run(sequences, parameters, salt)
        late = [index for index, output in enumerate(outputs) if reads_too_late(output, sequences[index])]
        again = [sequences[index] for index in late]
        parameters = [reading_parameters(each, top, again=True) for each in again]
        for index, output in zip(late, self._run(again, parameters, salt), strict=True):
            outputs[index] = output
        return [
            reading_of(output, sequence, top) for output, sequence in zip(outputs, sequences, strict=True)
        ]

    def _run(
        self, sequences: Sequence[ScoreRequest], parameters: Sequence[SamplingParams], salt: str
    ) -> list[RequestOutput]:
        """Return what vLLM says of each; requests in flight advance beside them where there is room."""
        waiting = {f"score {next(self._numbers)}": index for index in range(len(sequences))}
        prompts = [scoring_prompt(sequence, salt, self._use.tempered) for sequence in sequences]
        lora = self._adapters.newest and self._adapters.newest.request
        found: dict[int, RequestOutput] = {}
        try:
            for name, index in waiting.items():
                self._engine.add_request(
                    name, prompts[index], parameters[index], lora_request=lora, priority=SCORING
                )
            while waiting:
                for output in self._advance(waiting):
                    found[waiting.pop(output.request_id)] = output
        finally:
            self._engine.abort_request(list(waiting))
        return [found[index] for index in range(len(sequences))]
