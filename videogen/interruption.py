"""Ctrl-C and SIGTERM as a request that a loop checks between two steps, so that it saves before it stops.

signals  ->  StopRequest.signal, None until one came
"""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType

logger = logging.getLogger(__name__)


class StopRequest:
    """Turns Ctrl-C and SIGTERM into a request to stop, within a `with` block; a second Ctrl-C stops at once.

    A SIGTERM that follows is no second request: torchrun sends one to all that had the terminal's Ctrl-C already.
    Outside of the main thread, where Python delivers no signals, none is ever requested.
    """

    def __init__(self, message: str = "") -> None:
        self.message = message
        self.signal: int | None = None  # the first that came

    def __enter__(self) -> StopRequest:
        is_main = threading.current_thread() is threading.main_thread()
        signals = (signal.SIGINT, signal.SIGTERM) if is_main else ()
        self._handlers_before = {number: signal.signal(number, self._request) for number in signals}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise a KeyboardInterrupt if a stop was requested."""
        if self.signal is not None:
            raise KeyboardInterrupt

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is None and self.message:
            logger.warning(self.message)
        self.signal = self.signal or number
