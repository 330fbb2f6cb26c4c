"""Ctrl-C, SIGTERM and a closed terminal (SIGHUP): the program ends within seconds and says so in one line; finished work is kept.

Python handles a signal between two instructions of its own, so a call of another library (a database that waits for a lock, a connection)
may delay it. The signal's number also goes to a pipe, which a thread reads: it ends the process where the main thread does not.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

GRACE = 3.0  # seconds that the main thread has to end
MESSAGE = "interrupted"
KEPT = "interrupted: what was finished is kept; the same command continues"  # of commands that compute rows
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))  # Windows has no SIGHUP
_received: list[int] = []
_message = MESSAGE


class Interrupted(KeyboardInterrupt):
    """One of `SIGNALS` was received."""


def watch(message: str = MESSAGE) -> None:
    """Handle the signals from now on. Call it in the main thread, once.

    Args:
        message: what to say after a signal.
    """
    global _message
    _message = message
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # ignored under `nohup`, and in the background of a script
            signal.signal(number, _interrupt)
    threading.Thread(target=_end, args=(reader,), daemon=True).start()


def received() -> bool:
    """Whether one of the signals was received."""
    return bool(_received)


def exit_code() -> int:
    """128 and the number of the signal that was received first; that of Ctrl-C if there was none."""
    return 128 + (_received[0] if _received else signal.SIGINT)


def end(code: int) -> NoReturn:
    """End the program after a signal. Python's own way out frees every object first, which takes seconds on a busy machine.

    Args:
        code: the exit status.
    """
    with contextlib.suppress(OSError):  # the terminal is closed
        print(_message, file=sys.stderr, flush=True)
    if _received:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    """Raise at the first signal; what ends the program meanwhile is not disturbed by a second one."""
    _received.append(number)
    if len(_received) == 1:
        raise Interrupted


def _end(reader: int) -> None:
    """End the process some seconds after the first signal, or at the second one. Its workers end with it."""
    numbers = [n for n in os.read(reader, 1) if n in SIGNALS]
    while not numbers:
        numbers = [n for n in os.read(reader, 1) if n in SIGNALS]
    timer = threading.Timer(GRACE, _leave, numbers)
    timer.daemon = True
    timer.start()
    while not [n for n in os.read(reader, 1) if n in SIGNALS]:
        pass
    _leave(numbers[0])


def _leave(number: int) -> None:
    with contextlib.suppress(OSError):
        print(f"\n{_message}", file=sys.stderr, flush=True)
    os._exit(128 + number)
