"""The endpoints around a stand-in for the network: queue, limits, slow clients, foreign pages, counters."""

import contextlib
import json
import os
import re
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gwsss_fast.serving import server
from gwsss_fast.serving.limits import Limits, Refused
from tests.serving.clients import (
    BOUNDARY,
    HEAD,
    Reply,
    StandIn,
    around,
    converse,
    encoded,
    form,
    get,
    in_thread,
    post,
    request,
    running,
    segment,
)

GOOD = encoded()
PATIENCE = 0.5


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server that nobody keeps busy; small limits, and little patience."""
    limits = Limits(megabytes=1, megapixels=2, network_megapixels=0.01, seconds=PATIENCE)
    with in_thread(StandIn(), limits) as port:
        yield port


@pytest.fixture(autouse=True)
def goes_on(port: int) -> Iterator[None]:
    """Whatever was asked, the next request is served."""
    yield
    assert segment(port, GOOD).json["objects"][0]["area"] == 200


def test_an_answer(port: int) -> None:
    reply = segment(port, GOOD)
    assert reply.status == 200
    answer = reply.json
    assert answer["size"] == [20, 10]
    expected = {"class": "red", "label": 1, "color": "#800000", "area": 200, "share": 1.0, "score": 0.75}
    assert answer["objects"] == [{**expected, "box": [0, 0, 20, 10]}]


def test_the_mask_alone(port: int) -> None:
    reply = post(port, "/segment", form(GOOD, name=None), Accept="image/png")
    assert (reply.status, reply.headers["content-type"]) == (200, "image/png")
    assert reply.body.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (form(b"no image at all", name="photo.jpg"), 415, "not a JPEG"),
        (form(GOOD[:45]), 400, "cannot be decoded"),
        (form(b""), 415, "not a JPEG"),
        (form(), 400, "one image"),
        (form(GOOD, GOOD), 400, "one image"),
        (form(GOOD, field="file"), 400, "not `image`"),
        (form(GOOD)[:-10], 400, "last boundary"),
        (b"nothing", 400, "broken"),
        (form(GOOD, name="../../etc/passwd"), 400, "path"),
        (form(GOOD, name="..%2f..%2fetc%2fpasswd"), 400, "path"),
        (form(GOOD, name="..\\\\secret.jpg"), 400, "path"),
        (form(GOOD, name="a\0b.jpg"), 400, ""),
        (form(GOOD, name="x" * 5000), 400, "broken"),
        (form(GOOD + b" " * 1_000_000), 413, "larger than 1 MB"),
        (form(encoded(kind="TIFF")), 415, "not a JPEG"),
    ],
)
def test_bad_forms_are_refused(port: int, body: bytes, status: int, word: str) -> None:
    reply = post(port, "/segment", body)
    assert reply.status == status
    assert word in reply.json["error"]


def test_other_bodies_and_lengths_are_refused(port: int) -> None:
    assert request(port, "POST", "/segment", b"{}", Content_Type="application/json").status == 415
    assert request(port, "POST", "/segment", b"x").status == 415
    assert post(port, "/segment", b"x" * 30_000_000).status == 413
    head = HEAD.replace("Content-Length: {}", "Transfer-Encoding: chunked").format(BOUNDARY).encode()
    body = form(b"x" * 1_300_000)
    pieces = [body[start : start + 65536] for start in range(0, len(body), 65536)]
    chunks = [f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces]
    assert converse(port, head, *chunks, b"0\r\n\r\n").split()[1] == b"413"


def test_a_client_that_asks_first_need_not_send_what_is_refused(port: int) -> None:
    head = HEAD.format(50_000_000, BOUNDARY).replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n")
    start = time.monotonic()
    assert converse(port, head.encode()).startswith(b"HTTP/1.1 413")
    assert time.monotonic() - start < PATIENCE


@pytest.mark.parametrize("path", ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/page.js", "/docs", "/segment/x"])
def test_nothing_else_is_there(port: int, path: str) -> None:
    assert get(port, path).status == 404


def test_wrong_methods_and_a_missing_classifier(port: int) -> None:
    assert get(port, "/segment").status == 405
    reply = post(port, "/group", form(GOOD, GOOD, field="images"))
    assert (reply.status, "--classifier" in reply.json["error"]) == (404, True)


def test_too_many_pixels_are_seen_in_the_header(port: int) -> None:
    from PIL import Image

    image = Image.new("P", (2000, 1001))
    for kind in ("PNG", "WEBP"):
        reply = segment(port, encoded(image.convert("RGB"), kind))
        assert (reply.status, "2000 x 1001 pixels" in reply.json["error"]) == (413, True), kind


def test_a_header_that_takes_long_holds_nobody_up(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, gate = threading.Event(), threading.Event()

    def slow(*_: Any) -> None:
        begun.set()
        assert gate.wait(20)

    monkeypatch.setattr("gwsss_fast.serving.app.check_header", slow)
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(segment, port, GOOD)
        assert begun.wait(10)
        with socket.create_connection(("127.0.0.1", port), timeout=2) as other:
            other.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            with contextlib.suppress(TimeoutError):
                assert other.recv(65536).startswith(b"HTTP/1.1 200")
                gate.set()
        served = gate.is_set()
        gate.set()
        assert held.result().status == 200
    assert served


def test_a_large_image_is_reduced_and_its_mask_enlarged() -> None:
    from PIL import Image

    stand_in = StandIn()
    with in_thread(stand_in, Limits(network_megapixels=0.01)) as port:
        answer = segment(port, encoded(Image.new("RGB", (400, 200), (200, 0, 0)), "JPEG")).json
    (size,) = stand_in.sizes
    assert size == (141, 71)
    assert answer["size"] == [400, 200]
    assert answer["objects"][0]["area"] == 400 * 200


def test_slow_clients_are_sent_away_and_others_served(port: int) -> None:
    """Half a head, half a body, nothing at all, half a head after a whole request: none holds the others up."""
    body = form(GOOD)
    head = HEAD.format(len(body), BOUNDARY).encode()
    with ThreadPoolExecutor(4) as pool:
        start = time.monotonic()
        half_head, half_body = pool.submit(converse, port, head[:30]), pool.submit(converse, port, head, body[:50])
        silent = pool.submit(converse, port)
        later = pool.submit(half_a_head_after_a_request, port, head + body, head[:30])
        assert segment(port, GOOD).status == 200
        assert time.monotonic() - start < PATIENCE
        for slow in (half_head, half_body):
            assert slow.result().startswith(b"HTTP/1.1 408")
        assert silent.result() == b""
        assert later.result().startswith(b"HTTP/1.1 408")
    assert PATIENCE <= time.monotonic() - start < 10 * PATIENCE


def test_a_client_that_does_not_read_is_cut_off() -> None:
    """With an answer that fits into no buffer of the system."""
    length = 30_000_000

    async def application(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", str(length).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": bytes(length)})

    with running(application, Limits(seconds=PATIENCE)) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            time.sleep(3 * PATIENCE)
            received = 0
            with contextlib.suppress(ConnectionResetError):
                while data := connection.recv(1 << 20):
                    received += len(data)
        assert received < length
        assert len(get(port, "/").body) == length


def test_a_full_queue_says_when_to_come_again() -> None:
    stand_in = StandIn()
    stand_in.gate.clear()
    with in_thread(stand_in, Limits(queue=2)) as port, ThreadPoolExecutor(3) as pool:
        taken = [pool.submit(segment, port, GOOD)]
        assert stand_in.begun.acquire(timeout=10)
        taken += [pool.submit(segment, port, GOOD) for _ in range(2)]
        wait_for_queue(port, 2)
        reply = segment(port, GOOD)
        assert reply.status == 503
        assert int(reply.headers["retry-after"]) >= 1
        stand_in.gate.set()
        assert [future.result().status for future in taken] == [200] * 3


def test_a_client_that_leaves_is_not_computed() -> None:
    stand_in = StandIn()
    stand_in.gate.clear()
    body = form(GOOD)
    with in_thread(stand_in) as port, ThreadPoolExecutor(1) as pool:
        first = pool.submit(segment, port, GOOD)
        assert stand_in.begun.acquire(timeout=10)
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(HEAD.format(len(body), BOUNDARY).encode() + body)
            wait_for_queue(port, 1)
        time.sleep(0.2)
        stand_in.gate.set()
        assert first.result().status == 200
        assert segment(port, GOOD).status == 200
    assert len(stand_in.sizes) == 2


def test_a_failure_is_told_without_its_reason_and_passes(port: int, caplog: pytest.LogCaptureFixture) -> None:
    from PIL import Image

    reply = segment(port, encoded(Image.new("RGB", (9, 9))))
    assert reply.status == 500
    assert b"secret" not in reply.body
    assert "/a/secret/path" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_that_is_stopped_finishes_what_it_has_begun(number: signal.Signals) -> None:
    stand_in = StandIn()
    stand_in.gate.clear()
    application, worker = around(stand_in, Limits())
    before = signal.getsignal(number)
    with contextlib.closing(server.listen("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:

        def client() -> Reply:
            threading.Thread(target=stop_it).start()
            return segment(listener.getsockname()[1], GOOD)

        def stop_it() -> None:
            assert stand_in.begun.acquire(timeout=10)
            os.kill(os.getpid(), number)
            time.sleep(0.4)
            stand_in.gate.set()

        replies = []
        server.serve(application, listener, Limits(), lambda: replies.append(pool.submit(client)))
        worker.close()
        assert replies[0].result().status == 200
    assert signal.getsignal(number) is before
    with pytest.raises(Refused, match="stopping"):
        worker.submit(int)


def test_foreign_names_and_pages_are_kept_out(port: int) -> None:
    assert get(port, "/", Host="evil.example").status == 400
    assert get(port, "/", Host="localhost:1").status == 200
    for headers in ({"Sec_Fetch_Site": "cross-site"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        assert post(port, "/segment", form(GOOD), **headers).status == 403
    own = f"127.0.0.1:{port}"
    assert post(port, "/segment", form(GOOD), Origin=f"http://{own}", Sec_Fetch_Site="same-origin").status == 200


def test_every_answer_carries_the_headers_of_security(port: int) -> None:
    replies: list[Reply] = [
        *(get(port, path) for path in ("/", "/health", "/metrics", "/nothing")),
        get(port, "/", Host="evil.example"),
        segment(port, GOOD),
        segment(port, b"no image"),
    ]
    for reply in replies:
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["x-frame-options"] == "DENY"
        assert reply.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert "server" not in reply.headers


def test_the_page_needs_nothing_from_elsewhere(port: int) -> None:
    page = get(port, "/").body.decode()
    assert not re.findall(r"(?:https?:)?//[\w.-]+\.\w+", page)
    assert not re.findall(r"<(?:link|script|img)[^>]* (?:src|href)=\"(?!data:)", page)


def test_health_and_metrics(port: int) -> None:
    health = get(port, "/health")
    assert health.status == 200
    assert health.json["status"] == "ok"
    assert health.json["classes"] == ["red", "green"]
    before, _ = metrics(port), segment(port, GOOD)
    get(port, "/made/up")
    after = metrics(port)
    counted = 'gwsss_requests_total{endpoint="/segment",status="200"}'
    assert after[counted] == before[counted] + 1
    assert after["gwsss_images_total"] == before["gwsss_images_total"] + 1
    assert after['gwsss_request_seconds_bucket{endpoint="/segment",le="+Inf"}'] == sum(
        value for name, value in after.items() if name.startswith('gwsss_requests_total{endpoint="/segment"')
    )
    assert after["gwsss_up"] == 1
    assert after["gwsss_queue_length"] == 0
    assert 'gwsss_requests_total{endpoint="other",status="404"}' in after
    assert not any("made" in name for name in after)


def test_the_endpoints_are_described(port: int) -> None:
    described = json.loads(get(port, "/openapi.json").body)
    assert "multipart/form-data" in described["paths"]["/segment"]["post"]["requestBody"]["content"]


def half_a_head_after_a_request(port: int, whole: bytes, half: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(whole)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        time.sleep(0.1)
        while connection in select.select([connection], [], [], 0)[0]:
            assert connection.recv(65536)
        connection.sendall(half)
        return connection.recv(65536)


def metrics(port: int) -> dict[str, float]:
    reply = get(port, "/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = [line for line in reply.body.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def wait_for_queue(port: int, length: int) -> None:
    end = time.monotonic() + 10
    while metrics(port)["gwsss_queue_length"] != length:
        assert time.monotonic() < end
        time.sleep(0.02)
