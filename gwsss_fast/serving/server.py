"""Listening, timing clients out, and stopping."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from gwsss_fast.errors import GwsssError
from gwsss_fast.serving.guard import Application
from gwsss_fast.serving.limits import Limits

if TYPE_CHECKING:
    from asyncio import TimerHandle, Transport

    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
STOP_SECONDS = 15  # for requests that are being computed when the server is stopped
TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_REASONS = {
    errno.EADDRINUSE: "another program listens there; choose another --port, or 0 for a free one",
    errno.EACCES: "it needs more rights; choose a --port above 1023",
    errno.EADDRNOTAVAIL: "this machine has no such address; choose another --host",
}


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 = any free one. Raises GwsssError where that is not possible."""
    if not 0 <= port <= 65535:
        raise GwsssError(f"port is {port}; choose 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError:
        raise GwsssError(f"host {host!r} is no address of this machine; the usual one is 127.0.0.1") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        reason = _REASONS.get(error.errno or 0, error.strerror)
        raise GwsssError(f"cannot listen on {host} port {port}: {reason}") from None
    return listener


def is_loopback(listener: socket.socket) -> bool:
    """Whether only programs of this machine can reach the socket."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def url(listener: socket.socket) -> str:
    """Where a browser on this machine finds the socket."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(application: Application, limits: Limits) -> uvicorn.Server:
    """uvicorn around an application; `run(sockets=[...])` in a thread of its own, `should_exit = True` ends it."""
    import uvicorn

    config = uvicorn.Config(
        application,  # type: ignore[arg-type]
        loop="asyncio",
        http=timed_protocol(limits.seconds),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_level="error",  # what clients do wrong is theirs to know
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=limits.connections,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    return uvicorn.Server(config)


def serve(application: Application, listener: socket.socket, limits: Limits, ready: Callable[[], None]) -> None:
    """Answer requests until SIGINT or SIGTERM comes; then finish those that are begun.

    ready: called when requests are taken. A second signal ends the rest too. Raises GwsssError when it cannot start.
    """
    server = make_server(application, limits)
    # In a thread of its own uvicorn leaves the signals to us; it would raise them again when it has stopped.
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="gwsss_fast server")

    def stop(*_: Any) -> None:
        server.force_exit = server.should_exit
        server.should_exit = True

    with _handling(stop, signal.SIGINT, signal.SIGTERM):
        thread.start()
        ready()
        while thread.is_alive():
            thread.join(0.2)
    if not server.started:
        raise GwsssError("the server could not start; the lines above say why")


@contextlib.contextmanager
def _handling(handler: Callable[..., None], *signals: signal.Signals) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def timed_protocol(seconds: float) -> type[H11Protocol]:
    """uvicorn's HTTP protocol, which has no patience with clients that send a head or read an answer too slowly."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class TimedProtocol(H11Protocol):
        _begun = False  # whether part of a head is there

        def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._head = _Timer(lambda: self.loop.call_later(seconds, self._too_slow))
            self._reading = _Timer(lambda: self.loop.call_later(seconds, transport.abort))
            self._head.start()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._begun = self.cycle is None or self.cycle.response_complete
            if self._begun:
                self._head.start()
            else:
                self._head.stop()

        def _too_slow(self) -> None:
            if not self.transport.is_closing():
                if self._begun:
                    self.transport.write(TOO_SLOW)
                self.transport.close()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._reading.start()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._reading.stop()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._head.stop()
            self._reading.stop()

    return TimedProtocol


class _Timer:
    """Runs from `start` to `stop`, and is started once only."""

    def __init__(self, begin: Callable[[], TimerHandle]) -> None:
        self._begin = begin
        self._handle: TimerHandle | None = None

    def start(self) -> None:
        if self._handle is None:
            self._handle = self._begin()

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
