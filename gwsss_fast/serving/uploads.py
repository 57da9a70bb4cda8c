"""The images of a form that a client sends: read within limits, in memory, and never by a name that it gave."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING
from urllib.parse import unquote

from gwsss_fast.serving.limits import Limits, Refused

if TYPE_CHECKING:
    from starlette.requests import Request

FIELDS = (b"image", b"images")
MOST_HEADER_BYTES = 4096  # of one part of a form
DISCARD_SECONDS = 3.0


class Gone(Exception):
    """The client closed the connection."""


class Intake:
    """Counts the bytes of all request bodies in memory."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def share(self) -> Iterator[Share]:
        """A request's part of the memory, given back at the end of the block."""
        share = Share(self)
        try:
            yield share
        finally:
            self.add(-share.held)

    def add(self, count: int) -> bool:
        """Count bytes; False, and nothing counted, where they are too many."""
        with self._lock:
            if count > 0 and self.held + count > self.most:
                return False
            self.held += count
            return True


class Share:
    """What one request holds of an Intake."""

    def __init__(self, intake: Intake) -> None:
        self._intake, self.held = intake, 0

    def take(self, count: int) -> None:
        """Raises Refused (503) when all requests together would hold too much."""
        if not self._intake.add(count):
            raise Refused(503, "too many images are being sent at once; try again", retry_after=1)
        self.held += count


async def read_images(request: Request, counts: range, limits: Limits, share: Share) -> list[bytes]:
    """The undecoded images in a multipart form's fields `image` or `images`.

    counts: how many there may be. Raises Refused for another type of body, one that is too large, broken or too slow,
    and for a name that holds a path; the rest of a body that is refused is read for a while and thrown away, for most
    clients send all before they listen. Raises Gone when the client leaves.
    """
    chunks = _chunks(request, limits.seconds)
    try:
        return await _read(request, chunks, counts, limits, share)
    except Refused as refusal:
        if refusal.status != 408 and "expect" not in request.headers:
            await _discard(chunks)
        raise


async def _read(
    request: Request, chunks: AsyncIterator[bytes], counts: range, limits: Limits, share: Share
) -> list[bytes]:
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header

    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise Refused(415, "send a form (multipart/form-data) with the field `image`")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > limits.bytes:
        raise Refused(413, f"the request is larger than {limits.megabytes:g} MB")
    form = _Form(counts)
    received = 0
    try:
        parser = MultipartParser(options[b"boundary"], form.callbacks())  # type: ignore[arg-type]
        async for chunk in chunks:
            received += len(chunk)
            if received > limits.bytes:
                raise Refused(413, f"the request is larger than {limits.megabytes:g} MB")
            share.take(len(chunk))
            parser.write(chunk)
    except FormParserError as error:
        raise Refused(400, "the form is broken") from error
    if not form.complete:
        raise Refused(400, "the form ends before its last boundary")
    if len(form.images) not in counts:
        raise Refused(400, f"send {_number(counts)}, not {len(form.images)}")
    return [bytes(image) for image in form.images]


class _Form:
    """Collects the images that the parser finds."""

    def __init__(self, counts: range) -> None:
        self.images: list[bytearray] = []
        self.complete = False
        self._counts = counts
        self._headers: dict[bytes, bytes] = {}
        self._name, self._value = bytearray(), bytearray()

    def callbacks(self) -> dict[str, object]:
        names = ("part_begin", "header_field", "header_value", "header_end", "headers_finished", "part_data", "end")
        return {f"on_{name}": getattr(self, f"_{name}") for name in names}

    def _part_begin(self) -> None:
        self._headers.clear()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._add(self._name, data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._add(self._value, data[start:end])

    def _add(self, text: bytearray, more: bytes) -> None:
        text += more
        known = sum(len(name) + len(value) for name, value in self._headers.items())
        if known + len(text) > MOST_HEADER_BYTES:
            raise Refused(400, "the form is broken")

    def _header_end(self) -> None:
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _headers_finished(self) -> None:
        from python_multipart.multipart import parse_options_header

        disposition = self._headers.get(b"content-disposition", b"").decode("latin-1")
        if {"/", "\\", "\0"} & set(unquote(disposition, "latin-1")):
            raise Refused(400, "a file name holds a path; send plain names, or none")
        _, options = parse_options_header(disposition)
        if options.get(b"name") not in FIELDS:
            raise Refused(400, "a field of the form is not `image`")
        if len(self.images) == self._counts[-1]:
            raise Refused(400, f"send {_number(self._counts)}, not more")
        self.images.append(bytearray())

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self.images[-1] += memoryview(data)[start:end]

    def _end(self) -> None:
        self.complete = True


def _number(counts: range) -> str:
    return "one image" if counts[-1] == 1 else f"{counts[0]} to {counts[-1]} images"


async def _chunks(request: Request, seconds: float) -> AsyncIterator[bytes]:
    """The body as it comes. Raises Refused (408) when it takes longer than `seconds`."""
    clock = asyncio.get_running_loop().time
    end = clock() + seconds
    while True:
        try:
            message = await asyncio.wait_for(request.receive(), max(end - clock(), 0))
        except asyncio.TimeoutError:
            raise Refused(408, f"the request was not sent within {seconds:g} s") from None
        if message["type"] == "http.disconnect":
            raise Gone
        yield message.get("body", b"")
        if not message.get("more_body"):
            return


async def _discard(chunks: AsyncIterator[bytes]) -> None:
    async def rest() -> None:
        async for _ in chunks:
            pass

    with contextlib.suppress(asyncio.TimeoutError, Refused):
        await asyncio.wait_for(rest(), DISCARD_SECONDS)
