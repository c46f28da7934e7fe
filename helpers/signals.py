"""Ctrl-C and SIGTERM as requests to stop."""

from __future__ import annotations

import signal
import threading


class StopOnSignals:
    """While active, Ctrl-C and SIGTERM call `stop(name)` instead; a second Ctrl-C interrupts at once."""

    def __init__(self, stop):
        self.stop, self.before = stop, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():     # only it may set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _handle(self, number, _frame):
        signal.signal(number, self.before[number])
        self.stop(signal.Signals(number).name)
