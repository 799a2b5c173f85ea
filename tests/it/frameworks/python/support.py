"""What the programs share: where their nodes are, waiting, and other processes."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time

URL = os.environ["REDIS_URL"]
SECOND_URL = os.environ["SECOND_URL"]


def eventually(what, reached, deadline=60):
    """Waits until `reached` answers something true, and returns that."""
    end = time.monotonic() + deadline
    while not (answer := reached()):
        assert time.monotonic() < end, f"waited {deadline} s in vain for {what}"
        time.sleep(0.02)
    return answer


LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1


def die_with_parent():
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def python(*args, url):
    """Runs Python with this node as its first one, until the block ends."""
    here = os.path.dirname(os.path.abspath(__file__))
    environment = os.environ | {"REDIS_URL": url}
    # Its standard output is no place for the log of a worker.
    child = subprocess.Popen(
        [sys.executable, *args],
        cwd=here,
        env=environment,
        stdout=sys.stderr,
        preexec_fn=die_with_parent,
    )
    try:
        yield
        assert child.poll() is None, f"{args} ended by itself: {child.returncode}"
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
