"""Python for the model: names are kept, pictures come back, and nothing gets out."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from posttrain.media.images import open_image, save_image
from posttrain.plugins import PluginError
from posttrain.sandbox import SandboxMissing
from posttrain.types import Block, Message, Sample
from tools_env import ToolEnvironment, WorldError, load_tools, python

REFERENCE = "tools_env.python:PythonSandbox"
Run = Callable[[str], tuple[str, list[Image.Image]]]


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8))


def begin(tmp_path: Path, **params: Any) -> ToolEnvironment:
    ref = save_image(noise(), tmp_path)
    environment = ToolEnvironment(load_tools([{"name": REFERENCE, "params": params}]), 1000, tmp_path)
    environment.start(Sample("row", (Message("user", (Block("image", image=ref),)),)))
    return environment


def run_in(environment: ToolEnvironment, code: str) -> tuple[str, list[Image.Image]]:
    call = json.dumps({"name": "python_tool", "arguments": {"code": code}})
    reply = environment.step(f"<tool_call>{call}</tool_call>")
    assert reply.message is not None
    return reply.message.text, [open_image(ref.path) for ref in reply.message.images]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    environment = begin(tmp_path, seconds=1)
    yield lambda code: run_in(environment, code)
    environment.close()


def test_names_are_kept_and_what_was_done_before_a_fault_as_well(run: Run) -> None:
    assert run("x = 3\ndef f(y):\n    return x * y")[0] == "(nothing was printed)"
    assert run("print(f(2))\nf(5)")[0].split() == ["6", "15"]
    told = run("x = 4\n1 / 0\nx = 5")[0]
    assert told == "Error: ZeroDivisionError: division by zero (line 2)"
    assert run("f(1)")[0].strip() == "4"
    ended = run("x = 9\nwhile True: pass")[0]  # by whichever limit it reaches first
    assert "was ended: the limit of time" in ended or "s of processor time" in ended
    assert run("x")[0].strip() == "4"


def test_pictures_are_the_dialogues_and_come_back(run: Run) -> None:
    whole = noise()
    told, _ = run("images[0].size, images[0].getpixel((7, 4))")
    assert told.strip() == f"((30, 20), {whole.getpixel((7, 4))})"
    _, (crop,) = run("show(images[0].crop((2, 3, 12, 9)))")
    assert crop.tobytes() == whole.crop((2, 3, 12, 9)).tobytes()
    _, (large,) = run("show(images[1].resize((20, 12)))")
    assert large.tobytes() == crop.resize((20, 12), Image.Resampling.NEAREST).tobytes()
    _, drawn = run("p = Picture(4, 2)\np.putpixel((1, 1), (9, 8, 7))\nfor _ in range(9): show(p)")
    assert len(drawn) == 4
    assert drawn[0].getpixel((1, 1)) == (9, 8, 7)
    assert "Error: IndexError" in run("images[0].getpixel((30, 0))")[0]


@pytest.mark.parametrize(
    "code",
    [
        "open('/etc/passwd').read()",
        "import os; os.listdir('/root')",
        "import socket; socket.create_connection(('127.0.0.1', 80))",
        "import os; os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.kill(os.getppid(), 9)",
        "open('/tmp/canary-of-python', 'w')",
        "b = bytearray(10**11)",
        "print('x' * 10**8)",
        "import os; os._exit(0)",
        "import sys; sys.stdout.close()",
        "raise SystemExit",
        "class E(BaseException): pass\nraise E",
        "show(5)\nshow('x')\nraise ValueError(images)",
        "Picture.size = property(lambda s: (10**6, 10**6)); show(Picture(1, 1))",
        "Picture.size = property(lambda s: ('a', -1)); show(Picture(1, 1))",
    ],
)
def test_hostile_code_harms_nobody(run: Run, code: str) -> None:
    text, images = run(code)
    assert len(text) < 5000
    assert images == []
    assert "2" in run("print(1 + 1)")[0]
    assert not Path("/tmp/canary-of-python").exists()


def test_a_sandbox_that_is_not_there_is_the_worlds_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise SandboxMissing("no Landlock here")

    monkeypatch.setattr(python, "probe", missing)
    with pytest.raises(WorldError, match="cannot be opened: SandboxMissing: no Landlock"):
        run_in(begin(tmp_path), "1")


def test_a_sandbox_that_dies_is_the_worlds_failure(tmp_path: Path) -> None:
    environment = begin(tmp_path)
    run_in(environment, "1")
    (process,) = sandboxes()
    process.kill()
    with pytest.raises(WorldError, match="process was lost"):
        run_in(environment, "2")
    environment.close()


def sandboxes() -> list[psutil.Process]:
    """The sandboxes that this process has started and that are alive."""
    alive = [each for each in psutil.Process().children() if each.status() != psutil.STATUS_ZOMBIE]
    return [each for each in alive if "posttrain.sandbox" in " ".join(each.cmdline())]


def test_no_process_outlives_its_episode(tmp_path: Path) -> None:
    for _ in range(5):
        environment = begin(tmp_path)
        run_in(environment, "1")
        assert len(sandboxes()) == 1
        environment.close()
    ends = time.monotonic() + 5
    while sandboxes() and time.monotonic() < ends:
        time.sleep(0.05)
    assert sandboxes() == []


@pytest.mark.parametrize("params", [{"seconds": 0}, {"seconds": 60}, {"memory_mb": 1}, {"hours": 1}])
def test_params_are_checked(params: dict[str, Any]) -> None:
    with pytest.raises(PluginError):
        load_tools([{"name": REFERENCE, "params": params}])
