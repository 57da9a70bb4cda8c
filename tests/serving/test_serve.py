"""The command with real models: load, hostile clients, groups, starting and stopping."""

import base64
import http.client
import io
import json
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gwsss_fast
from gwsss_fast import serve
from gwsss_fast.data.images import read_image
from gwsss_fast.data.palette import voc_palette
from gwsss_fast.serving.answers import READOUTS
from tests.command_line import fails
from tests.serving.clients import BOUNDARY, HEAD, again, converse, form, get, post, request, segment

Served = tuple[subprocess.Popen[str], int]
CLIENTS, REQUESTS = 8, 200


@pytest.fixture
def photos(finished: tuple[Path, Path]) -> list[Path]:
    return sorted((finished[0] / "JPEGImages").iterdir())[:5]


def mask_of(answer: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["mask"]))))


def memory(port: int) -> float:
    """MB of the server's process."""
    lines = get(port, "/metrics").body.decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("gwsss_resident_memory_bytes "))) / 1e6


def test_the_mask_is_that_of_the_predictor(served: Served, finished: tuple[Path, Path], photos: list[Path]) -> None:
    predictor = gwsss_fast.Predictor(finished[1] / "segmenter" / "last.pt", precision="fp32")
    for path, own in zip(photos, predictor(photos), strict=True):
        answer = segment(served[1], path.read_bytes()).json
        assert np.array_equal(mask_of(answer), own.mask)
        found = {item["class"]: (item["area"], tuple(item["box"]), item["score"]) for item in answer["objects"]}
        assert found == {x.name: (x.area, x.box, pytest.approx(x.score, abs=2e-4)) for x in own.objects}
        colours = {item["class"]: item["color"] for item in answer["objects"]}
        assert colours == {x.name: "#" + bytes(voc_palette()[x.label]).hex() for x in own.objects}


def test_two_hundred_requests_of_eight_clients(served: Served, photos: list[Path]) -> None:
    """No error, the same answer to the same image whoever asks, and memory that stays."""
    _, port = served
    bodies = [form(path.read_bytes()) for path in photos]
    expected = [segment(port, path.read_bytes()).json["mask"] for path in photos]
    headers = {"Content_Type": f"multipart/form-data; boundary={BOUNDARY}"}

    def client(number: int, requests: int) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        good = 0
        for turn in range(requests):
            choice = (number + turn) % len(bodies)
            reply = again(connection, "POST", "/segment", bodies[choice], **headers)
            good += reply.status == 200 and reply.json["mask"] == expected[choice]
        connection.close()
        return good

    with ThreadPoolExecutor(CLIENTS) as pool:
        assert sum(pool.map(client, range(CLIENTS), [5] * CLIENTS)) == 5 * CLIENTS
        before = memory(port)
        assert sum(pool.map(client, range(CLIENTS), [REQUESTS // CLIENTS] * CLIENTS)) == REQUESTS
    assert memory(port) - before < 8


def large_png(side: int) -> bytes:
    """A true PNG file of side x side black pixels, a few hundred kB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows, compress = bytes(side // 8 + 2), zlib.compressobj(1)
    pixels = b"".join(compress.compress(rows[: (side + 7) // 8 + 1]) for _ in range(side)) + compress.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_hostile_requests_get_an_answer_and_the_next_one_works(served: Served, photos: list[Path]) -> None:
    process, port = served
    good, before = photos[0].read_bytes(), memory(served[1])
    huge = large_png(14143)
    assert len(huge) < 1_000_000
    json_body = json.dumps({"image": "x" * 10_000_000}).encode()
    head = HEAD.format(1000, BOUNDARY).encode()
    attempts = [
        (413, lambda: segment(port, huge).status),
        (415, lambda: segment(port, b"these are words\n").status),
        (415, lambda: request(port, "POST", "/segment", json_body, Content_Type="application/json").status),
        (400, lambda: post(port, "/segment", form(good, name="../../etc/passwd")).status),
        (404, lambda: get(port, "/../../etc/passwd").status),
        (400, lambda: post(port, "/segment", b"nothing").status),
        (400, lambda: int(converse(port, b"\0\xff no HTTP\r\n\r\n").split()[1])),
        (408, lambda: int(converse(port, head, b"--").split()[1])),
    ]
    for status, attempt in attempts:
        start = time.monotonic()
        assert attempt() == status
        assert time.monotonic() - start < 8
        assert segment(port, good).status == 200
    assert memory(port) - before < 40
    assert process.poll() is None


def test_the_maps_of_a_group(served: Served, finished: tuple[Path, Path], photos: list[Path]) -> None:
    port = served[1]
    reply = post(port, "/group", form(*(path.read_bytes() for path in photos[:3]), field="images"))
    assert reply.status == 200
    answer = reply.json
    assert [item["size"] for item in answer["images"]] == [list(read_image(path).size) for path in photos[:3]]
    assert answer["classes"]
    assert {row["image"] for item in answer["classes"] for row in item["images"]} == {0, 1, 2}  # each has a class
    for item in answer["classes"]:
        for row in item["images"]:
            files = {name: Image.open(io.BytesIO(base64.b64decode(row[name]))) for name in READOUTS}
            assert {file.size for file in files.values()} == {tuple(answer["images"][row["image"]]["size"])}
            initial, graph, ensemble = (np.asarray(file).astype(int) for file in files.values())
            assert np.abs((initial + graph) / 2 - ensemble).max() <= 1.5
            assert ensemble.max() > 0


@pytest.mark.parametrize("count", [1, 9])
def test_a_group_has_two_to_eight_images(served: Served, photos: list[Path], count: int) -> None:
    reply = post(served[1], "/group", form(*[photos[0].read_bytes()] * count, field="images"))
    assert (reply.status, "2 to 8 images" in reply.json["error"]) == (400, True)


def test_a_port_in_use_is_one_line(
    served: Served, finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(finished[1] / "segmenter" / "last.pt")
    status = serve.main(["--model", model, "--port", str(served[1])])
    fails(capsys, status, f"port {served[1]}", "another program listens there", "--port")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "no such host"], ["host 'no such host'", "127.0.0.1"]),
        (["--port", "70000"], ["port is 70000"]),
        (["--queue", "0"], ["--queue is 0"]),
        (["--group-scales", "0"], ["--group-scales"]),
        (["--classifier", "{segmenter}"], ["no checkpoint of a group classifier", "RUN/classifier/last.pt"]),
        (["--model", "{classifier}"], ["last.pt"]),
    ],
    ids=lambda value: value[0],
)
def test_bad_options_are_one_line(
    finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str], options: list[str], words: list[str]
) -> None:
    files = {name: str(finished[1] / name / "last.pt") for name in ("segmenter", "classifier")}
    default = ["--model", files["segmenter"], "--classifier", files["classifier"], "--port", "0"]
    fails(capsys, serve.main([*default, *(option.format(**files) for option in options)]), *words)


def test_missing_packages_are_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("fastapi", "python_multipart"):
        monkeypatch.setitem(sys.modules, module, None)
    fails(capsys, serve.main(["--model", "x"]), "fastapi and python-multipart", "pip install fastapi python-multipart")
