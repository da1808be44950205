"""The HTTP interface: what comes from a stranger is scored or refused, never a crash."""

import base64
import gzip
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from posttrain.types import Block, ImageRef, Message, RewardInput, ToolCall, text_message
from rewards import wire
from rewards.manager import RewardManager, RewardSpec
from rewards.sdk import RewardError
from rewards.serving.config import ServerConfig
from rewards.serving.server import create_app, serve
from rewards.workers.scorer import Scorer

JSON = {"Content-Type": "application/json"}
EPISODE = {"prompt": [], "response": [], "answer": "K", "ground_truth": "K"}
GOOD = {"rewards": [{"name": "answer_accuracy"}], "inputs": [EPISODE]}
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3),
)


@pytest.fixture(scope="module")
def pool() -> Iterator[Scorer]:
    with Scorer(["answer_accuracy", "tool_calls"], workers=1) as pool:
        yield pool


def config(**settings: Any) -> ServerConfig:
    return ServerConfig.model_validate({"rewards": ["answer_accuracy", "tool_calls"], **settings})


@pytest.fixture(scope="module")
def client(pool: Scorer) -> TestClient:
    return TestClient(
        create_app(pool, config(body_bytes=100_000, queued=20, image_roots=["/"])),
        raise_server_exceptions=True,
    )


def post(client: TestClient, body: bytes | str, **headers: str) -> Any:
    return client.post("/v1/score", content=body, headers={**JSON, **headers})


def test_scores_as_in_process(client: TestClient) -> None:
    zoom = ToolCall("image_zoom_in_tool", {"bbox_2d": [0, 0, 1, 1]}, True, images=1)
    picture = Message("user", (Block("image", image=ImageRef("/a.png", "ff")), Block("text", text="Which?")))
    inputs = [
        RewardInput((picture,), (text_message("assistant", a),), a, "K", {"target_tool_calls": 1}, (zoom,), t)
        for a, t in (("K", False), ("A", True), ("", False))
    ]
    specs = [RewardSpec("answer_accuracy"), RewardSpec("tool_calls", 0.3)]
    reply = post(client, wire.score_request(specs, inputs, None))
    results = [wire.result_from_json(row, "") for row in reply.json()["results"]]
    assert results == RewardManager(specs).score(inputs)
    assert results[0].total == pytest.approx(1.3)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "null",
        "[]",
        "{",
        '{"rewards": [], "inputs": [NaN]}',
        '{"rewards": [], "rewards": [], "inputs": []}',
        json.dumps({**GOOD, "extra": 1}),
        json.dumps({**GOOD, "rewards": []}),
        json.dumps({**GOOD, "rewards": [{"name": "math"}]}),
        json.dumps({**GOOD, "rewards": [{"name": "os:system", "params": {"command": "touch pwn"}}]}),
        json.dumps({**GOOD, "rewards": [{"name": "answer_accuracy", "weight": True}]}),
        json.dumps({**GOOD, "rewards": [{"name": "answer_accuracy"}] * 2}),
        json.dumps({**GOOD, "rewards": [{"name": "\ud800"}]}),
        json.dumps({**GOOD, "inputs": [{**EPISODE, "answer": "\ud800"}]}),
        json.dumps({**GOOD, "inputs": [{**EPISODE, "answer": None}]}),
        json.dumps({**GOOD, "inputs": [{**EPISODE, "prompt": [{"role": "root", "content": ""}]}]}),
        json.dumps({**GOOD, "inputs": [{**EPISODE, "response": ["text"]}]}),
        json.dumps({**GOOD, "inputs": [{**EPISODE, "tool_calls": [{"name": "zoom"}]}]}),
        json.dumps({**GOOD, "inputs": [{**EPISODE, "ground_truth": float("inf")}]}),
        '{"rewards": [{"name": "answer_accuracy", "weight": 1e999}], "inputs": []}',
        '{"rewards": [{"name": "answer_accuracy", "weight": ' + "9" * 5000 + '}], "inputs": []}',
        '{"rewards": ' + "[" * 40_000 + "]" * 40_000 + ', "inputs": []}',
        b'{"rewards": [], "inputs": ["\xff"]}',
    ],
)
def test_malformed_requests_are_refused_with_a_reason(client: TestClient, body: str | bytes) -> None:
    reply = post(client, body)
    assert reply.status_code == 400
    assert reply.json()["detail"]
    assert client.get("/health").json()["status"] == "ok"


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=60)
    | ANYTHING.map(lambda value: json.dumps(value).encode())
    | st.tuples(st.sampled_from(["rewards", "inputs"]), ANYTHING).map(
        lambda change: json.dumps({**GOOD, change[0]: change[1]}).encode()
    )
    | st.tuples(st.sampled_from(sorted(EPISODE)), ANYTHING).map(
        lambda change: json.dumps({**GOOD, "inputs": [{**EPISODE, change[0]: change[1]}]}).encode()
    )
)
def test_whatever_is_sent_is_answered(client: TestClient, body: bytes) -> None:
    assert post(client, body).status_code in (200, 400)


def test_null_characters_are_text(client: TestClient) -> None:
    reply = post(client, json.dumps({**GOOD, "inputs": [{**EPISODE, "answer": "K\0"}]}))
    assert reply.json()["results"][0]["total"] == 0.0


def test_size_compression_and_type(client: TestClient) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(10_000):
            yield b" " * 10_000

    assert client.post("/v1/score", content=endless(), headers=JSON).status_code == 413
    assert post(client, " " * 100_001).status_code == 413
    assert post(client, gzip.compress(b" " * 10_000_000), **{"Content-Encoding": "gzip"}).status_code == 415
    assert post(client, json.dumps(GOOD), **{"Content-Type": "text/plain"}).status_code == 415


def test_the_queue_is_bounded(pool: Scorer, client: TestClient) -> None:
    assert post(client, json.dumps({**GOOD, "inputs": [EPISODE] * 21})).status_code == 413
    full = TestClient(create_app(pool, config(queued=2)))
    long = [RewardInput((), (), "K" * 10**6, "K")] * 4  # of half a second each
    blocked = pool.submit([RewardSpec("answer_accuracy")], long)
    reply = post(full, json.dumps(GOOD))
    assert (reply.status_code, reply.headers["Retry-After"]) == (429, "1")
    blocked.results()
    while pool.queued:
        time.sleep(0.01)
    assert post(full, json.dumps(GOOD)).status_code == 200
    assert "posttrain_rewards_refused_total 1.0" in full.get("/metrics").text


def test_groups_travel_with_the_request(client: TestClient) -> None:
    assert post(client, json.dumps({**GOOD, "inputs": [EPISODE] * 2, "groups": [0, 0]})).status_code == 200
    for groups in ([0], [0, "a"], [0, True], {"0": 1}):
        assert (
            post(client, json.dumps({**GOOD, "inputs": [EPISODE] * 2, "groups": groups})).status_code == 400
        )


def test_conditions_travel_with_the_request(client: TestClient) -> None:
    rewards = [{"name": "answer_accuracy"}, {"name": "tool_calls", "params": {"target": 0}}]
    rewards[1]["only_if"] = {"answer_accuracy": 1}
    inputs = [EPISODE, {**EPISODE, "answer": "X"}]
    results = post(client, json.dumps({"rewards": rewards, "inputs": inputs})).json()["results"]
    assert [result["total"] for result in results] == [2.0, 0.0]
    for gates in ({"math": 1}, {"tool_calls": 1}, {"answer_accuracy": "1"}, ["answer_accuracy"]):
        rewards[1]["only_if"] = gates
        assert post(client, json.dumps({"rewards": rewards, "inputs": inputs})).status_code == 400


def with_image(reference: object, kind: str = "image") -> str:
    content = [{"type": kind, kind: reference}, {"type": "text", "text": "Which?"}]
    return json.dumps({**GOOD, "inputs": [{**EPISODE, "prompt": [{"role": "user", "content": content}]}]})


def test_images_come_as_base64_or_from_below_the_roots(pool: Scorer, tmp_path: Path) -> None:
    root, outside = tmp_path / "images", tmp_path / "outside.png"
    root.mkdir()
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, "PNG")
    (root / "a.png").write_bytes(buffer.getvalue())
    outside.write_bytes(buffer.getvalue())
    (root / "link.png").symlink_to(outside)
    (root / "loop.png").symlink_to(root / "loop.png")
    client = TestClient(create_app(pool, config(image_roots=[root])))
    encoded = base64.b64encode(buffer.getvalue()).decode()
    for good in (str(root / "a.png"), f"data:image/png;base64,{encoded}"):
        assert post(client, with_image(good)).status_code == 200, good
    bad = [
        "a.png",
        str(outside),
        str(root / "link.png"),
        str(root / "loop.png"),
        f"{root}/../outside.png",
        "/dev/zero",
        "/etc/passwd",
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        f"{root}/a\0.png",
        "data:image/png;base64,AAAA",
        f"data:image/png;base64,{encoded[:40]}",
        "data:image/png;base64,$$$$",
        "data:text/html;base64,AAAA",
    ]
    for reference in bad:
        reply = post(client, with_image(reference))
        assert reply.status_code == 400, reference
        assert post(client, with_image(reference, kind="video")).status_code == 400, reference
    assert post(client, with_image(str(root / "a.mp4"), kind="video")).status_code == 200
    frames = [str(root / "1.png"), str(outside)]
    assert "is outside the folders" in post(client, with_image(frames, kind="video")).text


def test_every_route_asks_for_the_token(pool: Scorer) -> None:
    client = TestClient(create_app(pool, config(), token="secret"))
    routes = [("POST", "/v1/score"), ("GET", "/v1/rewards"), ("GET", "/health"), ("GET", "/metrics")]
    for method, path in routes:
        assert client.request(method, path).status_code == 401, path
        for header in (b"Bearer wrong", b"secret", b"Bearer", b"Bearer \xff"):
            assert client.request(method, path, headers={b"Authorization": header}).status_code == 401, path
    assert client.get("/health", headers={"Authorization": "Bearer secret"}).status_code == 200
    assert {path for _, path in routes} == {route.path for route in client.app.routes}  # type: ignore[attr-defined]


def test_what_is_served(client: TestClient) -> None:
    first = client.get("/v1/rewards").json()["rewards"][0]
    assert (first["name"], first["low"], first["high"]) == ("answer_accuracy", 0.0, 1.0)
    assert "posttrain_rewards_samples_total" in client.get("/metrics").text


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_refuses_to_start_beyond_loopback_without_a_token(host: str) -> None:
    with pytest.raises(RewardError, match="token"):
        serve(config(), host=host)


@pytest.mark.parametrize(
    ("name", "params", "told"),
    [
        (
            "tool_calls",
            {"targt": 1},
            "there is no 'targt'; did you mean 'target'? (it takes: target, column)",
        ),
        ("answer_accuracy", {"x": 1}, "there is no 'x' (it takes: none)"),
        ("tool_calls", {"target": 1, "TARGET": 1}, "there is no 'TARGET'"),
    ],
)
def test_a_parameter_that_nobody_takes_is_refused(
    client: TestClient, name: str, params: dict[str, Any], told: str
) -> None:
    body = json.dumps({"rewards": [{"name": name, "params": params}], "inputs": [EPISODE, EPISODE]})
    reply = post(client, body)
    assert reply.status_code == 422
    assert told in reply.json()["detail"]
    assert name in reply.json()["detail"]


def test_a_misspelt_fixed_parameter_ends_the_server_at_its_start() -> None:
    fixed = {"rewards": [{"name": "tool_calls", "params": {"targt": 1}}]}
    with pytest.raises(RewardError, match=r"targt.*did you mean 'target'"):
        serve(ServerConfig.model_validate(fixed), port=0)


def test_the_readme_s_request_is_answered_as_it_says(client: TestClient) -> None:
    readme = (Path(wire.__file__).parent / "README.md").read_text(encoding="utf-8")
    command = readme.partition("curl -s localhost:8900/v1/score")[2].partition("```")[0]
    body, shown = command.partition("-d '")[2].split("'\n", 1)
    reply = post(client, body)
    assert reply.status_code == 200
    (told,), (found,) = json.loads(shown)["results"], reply.json()["results"]
    assert found.keys() == told.keys()
    assert (found["total"], found["values"], found["errors"]) == (told["total"], told["values"], {})
