"""What a client may ask for, and how it is told that it asked for too much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Limits:
    """What one request may cost, and how many may wait."""

    megabytes: float = 32.0
    """Most of one request's body, all its images together."""
    megapixels: float = 50.0
    """Most of one image."""
    network_megapixels: float = 1.0
    """Larger images are reduced to this before a network sees them, and their masks enlarged again."""
    queue: int = 16
    """Requests that may wait while one is computed."""
    seconds: float = 30.0
    """Time in which a client must have sent a request, and in which it must go on reading an answer."""

    fewest_in_group: ClassVar[int] = 2
    most_in_group: ClassVar[int] = 8
    bodies: ClassVar[int] = 8  # so many bodies of the largest size may be in memory at once
    connections: ClassVar[int] = 256

    @property
    def bytes(self) -> int:
        return int(self.megabytes * 1e6)


class Refused(Exception):
    """A request that is not served: status and one sentence for the client, and perhaps when to come again."""

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after = status, message, retry_after
