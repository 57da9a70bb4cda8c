"""Clients of a server under test: forms by http.client, and what only a raw socket can do."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from gwsss_fast.inference import Object, Prediction
from gwsss_fast.serving import server
from gwsss_fast.serving.answers import Models
from gwsss_fast.serving.app import build_app
from gwsss_fast.serving.guard import Application
from gwsss_fast.serving.limits import Limits
from gwsss_fast.serving.page import build_page
from gwsss_fast.serving.worker import Worker

BOUNDARY, CLASSES = "boundary", ("red", "green")
HEAD = (
    "POST /segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n"
    "Content-Type: multipart/form-data; boundary={}\r\n\r\n"
)
ROOT = Path(__file__).resolve().parents[2]


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def form(*images: bytes, field: str = "image", name: str | None = "photo.jpg") -> bytes:
    """The body of a form with some files."""
    file = "" if name is None else f'; filename="{name}"'
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"{file}\r\n\r\n'.encode()
    return b"".join(head + image + b"\r\n" for image in images) + f"--{BOUNDARY}--\r\n".encode()


def request(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
    """One request on a connection of its own; `_` in a header's name stands for `-`."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        return again(connection, method, path, body, **headers)


def again(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None, **headers: str
) -> Reply:
    """One request on a connection that stays open."""
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


def get(port: int, path: str, **headers: str) -> Reply:
    return request(port, "GET", path, **headers)


def post(port: int, path: str, body: bytes, **headers: str) -> Reply:
    return request(port, "POST", path, body, **{"Content_Type": f"multipart/form-data; boundary={BOUNDARY}", **headers})


def segment(port: int, image: bytes) -> Reply:
    return post(port, "/segment", form(image))


def converse(port: int, *pieces: bytes, seconds: float = 10) -> bytes:
    """Send bytes over a raw connection and read until the server closes it."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        for piece in pieces:
            connection.sendall(piece)
        received = b""
        while data := connection.recv(65536):
            received += data
    return received


def encoded(image: Image.Image | None = None, kind: str = "PNG", **options: Any) -> bytes:
    """An image's file."""
    buffer = io.BytesIO()
    (image or Image.new("RGB", (20, 10), (200, 40, 40))).save(buffer, kind, **options)
    return buffer.getvalue()


class StandIn:
    """Segments without a network: red is class 1. It waits while `gate` is closed, and fails for a black image."""

    def __init__(self) -> None:
        self.gate, self.begun = threading.Event(), threading.Semaphore(0)
        self.gate.set()
        self.sizes: list[tuple[int, int]] = []

    def __call__(self, images: Sequence[Image.Image]) -> list[Prediction]:
        (image,) = images
        self.sizes.append(image.size)
        self.begun.release()
        assert self.gate.wait(20)
        pixels = np.asarray(image)
        if not pixels.any():
            raise RuntimeError("/a/secret/path")
        mask = (pixels[..., 0] > 150).astype(np.uint8)
        return [Prediction(mask, CLASSES, (Object(1, "red", int(mask.sum()), (0, 0, *image.size), 0.75),))]


@contextlib.contextmanager
def running(application: Application, limits: Limits) -> Iterator[int]:
    """A server in this process; gives its port."""
    listener = server.listen("127.0.0.1", 0)
    own = server.make_server(application, limits)
    thread = threading.Thread(target=own.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        own.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()


def around(stand_in: StandIn, limits: Limits) -> tuple[Application, Worker]:
    """All of a server but its network, and the worker to be closed."""
    models, worker = Models(CLASSES, stand_in), Worker(limits.queue)
    page = build_page(models.classes, False, limits, "1")
    return build_app(models, worker, limits, page, "1", server.LOOPBACK_NAMES), worker


@contextlib.contextmanager
def in_thread(stand_in: StandIn, limits: Limits | None = None) -> Iterator[int]:
    """A server around the stand-in; gives its port."""
    limits = limits or Limits()
    application, worker = around(stand_in, limits)
    try:
        with running(application, limits) as port:
            yield port
    finally:
        worker.close(20)


@contextlib.contextmanager
def command(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`python -m gwsss_fast.serve` on a free port; gives the process and the port."""
    words = [sys.executable, "-m", "gwsss_fast.serve", "--port", "0", "--threads", "1", *map(str, arguments)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"serving on http://127\.0\.0\.1:(\d+) \(Ctrl-C stops it\)\n", line)
        assert found, line + process.stderr.read()
        yield process, int(found[1])
    finally:
        process.kill()
        process.wait(20)
        process.stdout.close()
        process.stderr.close()
