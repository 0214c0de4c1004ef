"""What happens at Ctrl-C, a stop button or SIGTERM while a training runs."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def delayed_interrupts(wanted: bool = True) -> Iterator[Callable[[], bool]]:
    """Let the step under way finish before Ctrl-C, a stop button or SIGTERM ends a run.

    Yields a function that tells whether somebody asked to stop. A second request is
    obeyed at once. Nothing is delayed if it is not wanted, or outside the main thread,
    where Python allows no signal handlers.
    """
    received = []
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def remember(number, frame):
        received.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    for each in before:
        signal.signal(each, remember)
    try:
        yield lambda: bool(received)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def ignore_interrupts(worker: int) -> None:
    """Make a worker ignore Ctrl-C, which a terminal sends to every process.

    The main process reacts to it: it finishes the step and saves a checkpoint. For that
    step it needs its workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
