"""Which tiles win: the user's own, timed ones, shipped ones, the heuristic; and what damaged tables do."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from triton.runtime.errors import OutOfResources

from gwsss_fast.errors import GwsssError
from gwsss_fast.launch import tuning
from gwsss_fast.launch.launcher import Tiles, record, recorded_card

KEY = {"C": 64, "dtype": "float16"}
HEURISTIC, SMALLER, LARGER = (Tiles({"BLOCK_N": n}, num_warps=4, num_stages=2) for n in (32, 16, 64))


class OnCard:
    """As much of a tensor on an H100 as the choice looks at."""

    is_cuda = True
    device = "cuda:0"


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Own and shipped tables in the test's folder, an H100, no tuning asked for."""
    monkeypatch.setenv("GWSSS_CACHE", str(tmp_path / "own"))
    monkeypatch.setattr(tuning, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.delenv("GWSSS_AUTOTUNE", raising=False)
    tuning.read_again()
    yield
    tuning.read_again()


def table(folder: Path, *rows: dict[str, Any], card: str = "sm_90") -> Path:
    path = folder / f"{card}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"about": "test", "kernels": {"kernel": list(rows)}}))
    return path


def tiles(candidates: tuple[Tiles, ...] = (), run: Any = None, tensor: Any = None, key: Any = None) -> Tiles:
    return tuning.tiles_for("kernel", OnCard() if tensor is None else tensor, key or KEY, HEURISTIC, candidates, run)


def fake_times(monkeypatch: pytest.MonkeyPatch, milliseconds: dict[int, float]) -> list[int]:
    """`measure` gives these times by block size instead of running on a GPU; returns the sizes as they are asked."""
    asked: list[int] = []

    def measure(run: Any) -> float:
        run()
        return milliseconds[asked[-1]]

    monkeypatch.setattr(tuning, "measure", measure)
    return asked


def test_without_tables_the_heuristic_holds() -> None:
    assert tiles((SMALLER,), lambda chosen: pytest.fail("timed without being asked")) == HEURISTIC


def test_the_first_row_whose_key_fits_is_taken(tmp_path: Path) -> None:
    other = tuning.to_row({"C": 32}, LARGER)
    table(tmp_path / "shipped", other, tuning.to_row({"dtype": "float16"}, SMALLER), tuning.to_row({}, LARGER))
    assert tiles() == SMALLER
    assert tiles(key={"C": 8, "dtype": "float32"}) == LARGER


def test_own_rows_come_before_shipped_ones(tmp_path: Path) -> None:
    table(tmp_path / "shipped", tuning.to_row({}, SMALLER))
    assert tiles() == SMALLER
    table(tuning.own_folder(), tuning.to_row(KEY, LARGER))
    tuning.read_again()
    assert tiles() == LARGER


def test_rows_of_another_card_and_of_another_version_do_not_apply(tmp_path: Path) -> None:
    table(tmp_path / "shipped", tuning.to_row({}, SMALLER), card="sm_80")
    assert tiles() == HEURISTIC
    table(tmp_path / "shipped", tuning.to_row({}, Tiles({"BLOCK_M": 16})))
    tuning.read_again()
    assert tiles() == HEURISTIC


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"kernels": []}', '{"kernels": {"kernel": [{"key": {}}]}}', "\x00", '{"kernels": {"kernel": 3}}']
    + [
        json.dumps({"kernels": {"kernel": [{**tuning.to_row({}, SMALLER), "num_warps": bad}]}}) for bad in (0, "4", 1.5)
    ],
)
def test_a_damaged_table_is_left_out_with_one_warning(text: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tuning.own_folder() / "sm_90.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with caplog.at_level(logging.WARNING, "gwsss_fast"):
        assert tiles() == HEURISTIC
        assert tiles() == HEURISTIC
    assert len(caplog.records) == 1
    assert str(path) in caplog.text
    assert "remove it" in caplog.text


def test_tuning_keeps_the_fastest_and_reads_it_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GWSSS_AUTOTUNE", "1")
    table(tmp_path / "shipped", tuning.to_row({}, LARGER))
    asked = fake_times(monkeypatch, {64: 3.0, 32: 2.0, 16: 1.0})
    run = lambda chosen: asked.append(chosen.blocks["BLOCK_N"])  # noqa: E731
    assert tiles((SMALLER, HEURISTIC), run) == SMALLER
    assert asked == [64, 32, 16]  # the shipped, the heuristic and the candidates, each once
    content = json.loads((tuning.own_folder() / "sm_90.json").read_text())
    assert content["kernels"]["kernel"] == [tuning.to_row(KEY, SMALLER)]
    assert "GWSSS_AUTOTUNE" in content["about"]
    assert tiles((SMALLER,), run) == SMALLER
    assert len(asked) == 3  # not timed again
    monkeypatch.delenv("GWSSS_AUTOTUNE")
    assert tiles() == SMALLER


def test_tuning_another_key_keeps_the_first_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GWSSS_AUTOTUNE", "1")
    asked = fake_times(monkeypatch, {32: 2.0, 16: 1.0})
    run = lambda chosen: asked.append(chosen.blocks["BLOCK_N"])  # noqa: E731
    for channels in (64, 128):
        tiles((SMALLER,), run, key={"C": channels})
    rows = json.loads((tuning.own_folder() / "sm_90.json").read_text())["kernels"]["kernel"]
    assert [row["key"]["C"] for row in rows] == [128, 64]


@pytest.mark.parametrize(
    "refusal",
    [OutOfResources(300000, 232448, "shared memory"), RuntimeError("PassManager::run failed")],
    ids=["resources", "compiler"],
)
def test_candidates_that_the_card_refuses_are_passed_over(refusal: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GWSSS_AUTOTUNE", "1")
    fake_times(monkeypatch, {})

    def run(chosen: Tiles) -> None:
        raise refusal

    assert tiles((SMALLER,), run) == HEURISTIC
    assert not tuning.own_folder().exists()


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, torch.AcceleratorError, torch.OutOfMemoryError])
def test_an_error_of_the_kernel_itself_is_not_hidden(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GWSSS_AUTOTUNE", "1")
    fake_times(monkeypatch, {})

    def run(chosen: Tiles) -> None:
        raise kind("a mistake in the launcher")

    with pytest.raises(kind, match="a mistake"):
        tiles((SMALLER,), run)


def test_nothing_is_timed_while_a_graph_is_captured_or_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GWSSS_AUTOTUNE", "1")
    run = lambda chosen: pytest.fail("timed")  # noqa: E731
    assert tiles((SMALLER,), run, tensor=torch.zeros(1)) == HEURISTIC
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert tiles((SMALLER,), run) == HEURISTIC


def test_a_folder_that_cannot_be_written_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GWSSS_AUTOTUNE", "1")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GWSSS_CACHE", str(tmp_path / "file"))
    asked = fake_times(monkeypatch, {32: 2.0, 16: 1.0})
    with pytest.raises(GwsssError, match="cannot write"):
        tiles((SMALLER,), lambda chosen: asked.append(chosen.blocks["BLOCK_N"]))


def test_a_recorded_start_gets_the_tiles_shipped_for_its_card(tmp_path: Path) -> None:
    table(tmp_path / "shipped", tuning.to_row({}, LARGER))
    table(tuning.own_folder(), tuning.to_row({}, SMALLER))
    tensor = torch.empty(1, device="meta")
    assert tiles(tensor=tensor) == HEURISTIC
    with record("sm_90"), tuning.requests() as asked:
        assert recorded_card() == "sm_90"
        assert tiles(tensor=tensor) == LARGER
    assert recorded_card() == "none"
    assert [request.name for request in asked] == ["kernel"]


def test_shipped_tables_can_be_read() -> None:
    folder = Path(tuning.__file__).with_name("tuned")
    for path in folder.glob("*.json"):
        assert tuning.read_table(path), path
        assert json.loads(path.read_text())["about"]
