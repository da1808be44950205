"""The process that works on a run: the only one at a time, and one that SIGTERM ends in good order."""

import contextlib
import errno
import fcntl
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from posttrain.files.durable import make_directory
from posttrain.run.directory import LOCK, RunDir, RunDirError
from posttrain.run.record import RESOLVED

#: Appears in a run's directory when SIGTERM came; whoever trains looks for it after every step.
STOP = ".stop"

logger = logging.getLogger(__name__)


class RunInUse(RunDirError):
    """Another process works on the run."""


class RunStopped(RuntimeError):
    """SIGTERM came, and the run ended before its end."""

    #: What a shell expects of a process that SIGTERM ended.
    exit_code = 128 + signal.SIGTERM


@contextmanager
def working_on(directory: Path) -> Iterator[None]:
    """Keep every other process off a run's directory.

    The kernel gives the lock back when the process ends, however it ends: a killed run can be resumed.

    Args:
        directory: `<output_dir>/<name>`; made where it is missing.

    Raises:
        RunInUse: If another process works on it; says which.
    """
    make_directory(directory)
    path = directory / LOCK
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise RunInUse(
                    f"{directory} is in use by {holder}: wait until that run has ended, end it, or choose"
                    " another `name`"
                ) from error
            logger.warning("%s cannot be locked (%s): see to it that one run at a time uses it", path, error)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            if not (directory / RESOLVED).exists():  # it was refused, and is somebody else's
                path.unlink(missing_ok=True)


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Raise `RunStopped` where SIGTERM comes within it, so that everything open is closed on the way out."""
    came = threading.Event()

    def end() -> None:
        came.set()
        raise KeyboardInterrupt  # see `_on_sigterm`

    try:
        with _on_sigterm(end):
            yield
    except BaseException as error:
        if came.is_set() and not isinstance(error, RunStopped):
            raise RunStopped("ended by SIGTERM; go on with --resume") from error
        raise


@contextmanager
def saving_on_sigterm(run: RunDir) -> Iterator[None]:
    """Ask for a checkpoint where SIGTERM comes within it, let training end with that, raise `RunStopped`.

    The training loop within, in whichever process, asks `stop_requested` after every step. A second SIGTERM
    ends the run at once.

    Args:
        run: Whose training goes on within.
    """
    requested = run.path / STOP
    requested.unlink(missing_ok=True)
    again = threading.Event()

    def ask() -> None:
        if requested.exists():
            again.set()
            raise KeyboardInterrupt
        requested.touch()
        logger.warning("SIGTERM: ending with a checkpoint")

    try:
        with _on_sigterm(ask):
            yield
    except BaseException as error:
        if again.is_set():
            raise RunStopped(
                "ended by a second SIGTERM, without a checkpoint; go on with --resume"
            ) from error
        # Sent to a whole process group, SIGTERM ends Ray's processes too, before they can save.
        if requested.exists() and isinstance(error, Exception):
            raise RunStopped(
                "ended by SIGTERM; the last checkpoint is kept, go on with --resume. The step under way could"
                f" not be saved ({error}): send SIGTERM to process {os.getpid()} alone"
            ) from error
        raise
    else:
        if requested.exists():
            raise RunStopped("ended by SIGTERM; what was learned is saved, go on with --resume")
    finally:
        requested.unlink(missing_ok=True)


def stop_requested(run: RunDir) -> bool:
    """Return whether the training loop is to save and end (see `saving_on_sigterm`)."""
    return (run.path / STOP).exists()


@contextmanager
def _on_sigterm(action: Callable[[], None]) -> Iterator[None]:
    """Answer SIGTERM by an action; only a process's main thread can, elsewhere nothing changes.

    What the action raises must be a `KeyboardInterrupt`: where a call to Ray waits, any other exception comes
    out as a `SystemError`, and only once that call is over.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: action())
    try:
        yield
    finally:
        with contextlib.suppress(TypeError):  # a handler that was not set from Python cannot be put back
            signal.signal(signal.SIGTERM, before)
