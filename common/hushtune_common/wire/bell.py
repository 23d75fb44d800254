"""How does one task tell all that wait that something is new?"""

import asyncio
from collections.abc import Coroutine
from typing import Any


class Bell:
    """Wakes everyone who waits, each time it is rung. What they wait for is looked at again by each of them."""

    def __init__(self) -> None:
        """Start silent."""
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Wake all who wait now; later ones wait for the next ring."""
        self._event.set()
        self._event = asyncio.Event()

    def wait(self) -> Coroutine[Any, Any, object]:
        """Wait for the next ring after this *call*, even when the result is awaited later."""
        return self._event.wait()
