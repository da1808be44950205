"""A judge over real HTTP that gives honest verdicts, except where a test makes it misbehave."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from rewards.judge import client


class FakeJudge:
    """How the server behaves as a judge.

    Attributes:
        server: The server.
        verdict: Maps an aspect to its score.
        behave: Replies in place of an honest judge, where it is set.
    """

    def __init__(self, server: Any) -> None:
        self.server = server
        self.url: str = server.url
        self.asked: list[dict[str, Any]] = server.requests
        self.headers: list[dict[str, str]] = server.headers
        self.send, self.say = server.send, server.say
        self.verdict: Callable[[str], int] = lambda aspect: 1 if aspect == "correct" else 10
        self.behave: Callable[[dict[str, Any]], Any] | None = None
        server.respond = self.respond

    @property
    def most_at_once(self) -> int:
        return self.server.peak

    def respond(self, request: dict[str, Any]) -> Any:
        return self.behave(request) if self.behave else self.say(self.honest(request))

    def honest(self, request: dict[str, Any]) -> str:
        """A verdict of the form that the request's schema asks for."""
        wanted = request["response_format"]["json_schema"]["schema"]["properties"]
        verdict: dict[str, Any] = {"reason": "Because.", "nonce": self.nonce(request)}
        if "winner" in wanted:
            return json.dumps(verdict | {"winner": "A"})
        return json.dumps(verdict | {"scores": {a: self.verdict(a) for a in wanted["scores"]["properties"]}})

    @staticmethod
    def text(request: dict[str, Any]) -> str:
        """What the user's message says."""
        content = request["messages"][1]["content"]
        return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)

    def nonce(self, request: dict[str, Any]) -> str:
        return re.findall(r"nonce of your verdict is (\w+)", self.text(request))[-1]

    def section(self, request: dict[str, Any], title: str = "ANSWER") -> str:
        """What stands between a section's marks."""
        nonce, text = self.nonce(request), self.text(request)
        return text.partition(f"<<<{title} {nonce}\n")[2].partition(f"\n{title} {nonce}>>>")[0]


@pytest.fixture
def judge_server(chat_server: Any, monkeypatch: pytest.MonkeyPatch) -> FakeJudge:
    """A judge that the environment names."""
    judge = FakeJudge(chat_server)
    monkeypatch.setenv(client.URL_VARIABLE, judge.url)
    monkeypatch.delenv(client.KEY_VARIABLE, raising=False)
    return judge
