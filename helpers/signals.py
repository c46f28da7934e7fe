"""Ctrl-C, SIGTERM and SIGHUP as requests to stop."""

from __future__ import annotations

import signal
import threading

# A closed terminal or a dropped connection sends SIGHUP; Windows has none.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class StopOnSignals:
    """While active, these signals call `stop(name)` instead. A second Ctrl-C interrupts at once; a second of the others
    does nothing, since a shell repeats the SIGHUP of its terminal. Ignored ones stay so, as under nohup."""

    def __init__(self, stop):
        self.stop, self.before = stop, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():     # only it may set handlers
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self.before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _handle(self, number, _frame):
        if number == signal.SIGINT:
            signal.signal(number, self.before[number])
        self.stop(signal.Signals(number).name)
