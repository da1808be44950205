"""A stand-in for a judge that cannot be reached: a small model behind an OpenAI-compatible endpoint.

It finds an answer as good as its model finds it likely: p = exp(mean log-prob of the answer's tokens after
the question). Each aspect of a rubric gets p of its scale; of two answers the likelier one wins. The verdict
has the form that judges are asked for, with the request's nonce and the tokens used, so that all that stands
between a run and a real judge is there. What it prefers is what its model was trained on.

    python -m posttrain.quickstart.stand_in_judge runs/general-rl-judge/sft/checkpoint-100 --port 8911 &
    export POSTTRAIN_JUDGE_URL=http://127.0.0.1:8911/v1
"""

import argparse
import json
import math
import re
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers import AutoTokenizer

from posttrain.files.strict_json import JsonError, JsonObject, parse_json
from posttrain.models.load import load_model

#: A request is a rubric and some texts.
MAX_REQUEST_BYTES = 1 << 20
#: Longer texts are cut; the model has seen none.
MAX_TOKENS = 1024
#: Answers whose p differs by less are a tie.
TIE = 0.02
_NONCE = re.compile(r"nonce of your verdict is (\w+)")


class UnreadableRequest(ValueError):
    """A request that is no judge's question."""


class LikelihoodJudge:
    """Judges answers by how likely a model finds them; used by one thread at a time.

    Args:
        checkpoint: The model.

    Example:
        LikelihoodJudge(Path("runs/general-rl-judge/sft/checkpoint-100")).likelihood("Hello.", "Good day.")
    """

    def __init__(self, checkpoint: Path) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
        self._model = load_model(checkpoint, dtype="float32").eval()
        self._lock = threading.Lock()
        self.tokens = 0

    @torch.no_grad()
    def likelihood(self, question: str, answer: str) -> float:
        """Return the geometric mean of the probabilities of an answer's tokens, its end included."""
        turn = [{"role": "user", "content": question}]
        prompt = self._tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        before = self._tokenizer(prompt, add_special_tokens=False)["input_ids"][-MAX_TOKENS:]
        after = self._tokenizer(answer, add_special_tokens=False)["input_ids"][:MAX_TOKENS]
        after.append(self._tokenizer.eos_token_id)
        ids = torch.tensor([before + after])
        with self._lock:
            self.tokens += ids.shape[1]
            logits = self._model(input_ids=ids).logits[0, len(before) - 1 : -1]
        chosen = torch.tensor(after)[:, None]
        return math.exp(logits.log_softmax(-1).gather(1, chosen).mean().item())

    def verdict(self, request: JsonObject) -> str:
        """Answer a judge's request, as `rewards.judge` makes it.

        Raises:
            UnreadableRequest: If it is none.
        """
        try:
            text, wanted = _said(request), _schema(request)
            nonce = _NONCE.findall(text)[-1]
            question = _section(text, "QUESTION", nonce)
            verdict: JsonObject = {"reason": "By how likely the answer is.", "nonce": nonce}
            if "winner" in wanted:
                a, b = (self.likelihood(question, _section(text, f"ANSWER {side}", nonce)) for side in "AB")
                verdict["winner"] = "tie" if abs(a - b) < TIE else "A" if a > b else "B"
            else:
                share = self.likelihood(question, _section(text, "ANSWER", nonce))
                aspects = wanted["scores"]["properties"]
                verdict["scores"] = {name: round(share * each["maximum"]) for name, each in aspects.items()}
        except (KeyError, IndexError, TypeError) as error:
            raise UnreadableRequest(f"no question for a judge: {error!r}") from None
        return json.dumps(verdict)


class _Handler(BaseHTTPRequestHandler):
    """Answers `POST /v1/chat/completions`."""

    server: "_Server"  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_POST(self) -> None:
        """Answer with a verdict, or 400 and a reason."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_REQUEST_BYTES:
            self.close_connection = True
            self._reply(400, {"error": f"a request has up to {MAX_REQUEST_BYTES:,} bytes"})
            return
        judge = self.server.judge
        try:
            request = parse_json(self.rfile.read(int(length)).decode())
            before = judge.tokens
            said = judge.verdict(request if isinstance(request, dict) else {})
        except (JsonError, UnicodeDecodeError, UnreadableRequest) as error:
            self._reply(400, {"error": str(error)[:300]})
            return
        choice: JsonObject = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        usage: JsonObject = {"prompt_tokens": judge.tokens - before, "completion_tokens": len(said) // 4}
        self._reply(200, {"choices": [choice], "usage": usage})

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        """Print nothing."""

    def _reply(self, status: int, body: JsonObject) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, judge: LikelihoodJudge, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.judge = judge


def start(checkpoint: Path, port: int = 0) -> ThreadingHTTPServer:
    """Serve a checkpoint as a judge, in a thread, on this machine alone.

    Args:
        checkpoint: The model.
        port: Port to listen on; 0 takes a free one.

    Returns:
        The server; its `server_address` tells the port, `shutdown` ends it.
    """
    server = _Server(LikelihoodJudge(checkpoint), port)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def main(arguments: list[str] | None = None) -> NoReturn:
    """Serve until a signal says stop."""
    parser = argparse.ArgumentParser(description="Serve a small model as a stand-in for a judge.")
    parser.add_argument("checkpoint", type=Path, help="the model: whom it resembles, it likes")
    parser.add_argument("--port", type=int, default=8911, help="port on 127.0.0.1 (default: 8911)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    server = start(options.checkpoint, options.port)
    sys.stdout.write(f"export POSTTRAIN_JUDGE_URL=http://127.0.0.1:{server.server_address[1]}/v1\n")
    sys.stdout.flush()
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    server.shutdown()
    raise SystemExit(0)


def _said(request: JsonObject) -> str:
    """Return what the user's message of a request says, without its images."""
    messages: Any = request["messages"]
    content = messages[-1]["content"]
    if isinstance(content, str):
        return content
    return "\n".join(str(part.get("text", "")) for part in content)


def _schema(request: JsonObject) -> dict[str, Any]:
    """Return what a verdict is to hold."""
    wanted: Any = request["response_format"]
    return wanted["json_schema"]["schema"]["properties"]


def _section(text: str, title: str, nonce: str) -> str:
    """Return what stands between the marks of a section."""
    _, opening, rest = text.partition(f"<<<{title} {nonce}\n")
    held, closing, _ = rest.partition(f"\n{title} {nonce}>>>")
    if not (opening and closing):
        raise UnreadableRequest(f"the section {title} is missing")
    return held


if __name__ == "__main__":
    main()
