"""One holds a file's lock, the others wait."""

import subprocess
import sys
import threading
import time
from pathlib import Path

from posttrain.files.lock import file_lock

COUNT = """
import sys, time
from pathlib import Path
from posttrain.files.lock import file_lock
folder = Path(sys.argv[1])
for _ in range(50):
    with file_lock(folder / "lock"):
        count = int((folder / "count").read_text())
        time.sleep(0.001)
        (folder / "count").write_text(str(count + 1))
"""


def test_processes_take_turns_and_leave_no_file(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    command = [sys.executable, "-c", COUNT, str(tmp_path)]
    assert [process.wait(60) for process in [subprocess.Popen(command) for _ in range(3)]] == [0] * 3
    assert (tmp_path / "count").read_text() == "150"
    assert not (tmp_path / "lock").exists()


def test_threads_take_turns(tmp_path: Path) -> None:
    inside: list[int] = []
    seen: list[int] = []

    def enter() -> None:
        with file_lock(tmp_path / "lock"):
            inside.append(1)
            time.sleep(0.01)
            seen.append(len(inside))
            inside.clear()

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 8
    assert not list(tmp_path.iterdir())


def test_a_killed_holder_keeps_nobody_out(tmp_path: Path) -> None:
    hold = COUNT.replace("time.sleep(0.001)", "print('held', flush=True); time.sleep(60)")
    (tmp_path / "count").write_text("0")
    holder = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    holder.kill()
    holder.wait()
    with file_lock(tmp_path / "lock"):
        pass


def test_where_a_lock_cannot_be_had_nobody_waits(tmp_path: Path) -> None:
    with file_lock(tmp_path / "no folder" / "lock"):
        pass
