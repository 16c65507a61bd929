"""Ctrl-C and SIGTERM as a wish that a loop asks for, so that it stops between two steps and saves.

signals  ->  StopRequest.signal, None until one came
"""

from __future__ import annotations

import signal
from types import FrameType


class StopRequest:
    """Ctrl-C and SIGTERM ask the loop to save and stop; a second Ctrl-C stops at once.

    A SIGTERM that follows is no second wish: torchrun sends one to all that had the terminal's Ctrl-C already.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.before = {sig: signal.signal(sig, self._ask) for sig in (signal.SIGINT, signal.SIGTERM)}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
