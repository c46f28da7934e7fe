"""Ctrl-C, SIGTERM and SIGHUP as requests to stop."""

from __future__ import annotations

import signal
import threading

ENDING = ("SIGTERM", "SIGHUP")      # after which the process ends
# A closed terminal or a dropped connection sends SIGHUP; Windows has none.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class StopOnSignals:
    """While active, these signals call `stop(name)` instead. A second Ctrl-C interrupts at once; a second of the others
    does nothing, since a shell repeats the SIGHUP of its terminal. Ctrl-C after one of ENDING does not call `stop`, so
    that the process ends all the same. Ignored ones stay so, as under nohup."""

    def __init__(self, stop):
        self.stop, self.before, self.is_ending = stop, {}, False

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
        name = signal.Signals(number).name
        self.is_ending |= name in ENDING
        if name in ENDING or not self.is_ending:
            self.stop(name)
        if number == signal.SIGINT:     # only now: `signal.signal` first handles what else has come
            signal.signal(number, self.before[number])
