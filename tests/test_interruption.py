"""Maps and pseudo labels that were interrupted: what lies there is kept, and nothing tells the result from a whole run.

(Interrupted training: tests/training/test_stages.py and tests/test_bad_input.py.)
"""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gwsss_fast import cam, pseudo
from tests.command_line import metrics, run_train

# Single groups a pass, so that a few maps are done while others have not been looked at.
REDO = {
    "cam": (cam, "save_maps", ["--cam.groups", "1", "--cam.flip", "false"]),
    "pseudo": (pseudo, "save_mask", ["--pseudo.background", "threshold", "--pseudo.threshold", "0.4"]),
}
FOLDERS = {"cam": "cams", "pseudo": "pseudo"}


class Counted:
    """`function`, which counts its calls and runs `event` before call number `at`."""

    def __init__(self, function: Callable[..., Any], at: int = 0, event: Callable[[], None] | None = None) -> None:
        self.function, self.at, self.event, self.calls = function, at, event, 0

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls == self.at and self.event is not None:
            self.event()
        return self.function(*args, **options)


def press() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    """Ctrl-C reaches Python even where the tests were started in the background, whose shell makes them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def whole(copied: tuple[Path, Path], stage: str) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Files and scores of the stage run again with other settings, undisturbed; the run is as before afterwards."""
    _, run = copied
    module, _, options = REDO[stage]
    stored = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert module.main(["--run", str(run), *options]) == 0
    result = contents(run / FOLDERS[stage]), metrics(run)[stage]
    for path, content in stored.items():
        path.write_bytes(content)
    return result


@pytest.mark.parametrize("stage", ["cam", "pseudo"])
def test_ctrl_c_in_a_stage_run_again_then_resume(
    stage: str, copied: tuple[Path, Path], whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run = copied
    module, name, options = REDO[stage]
    function, folder = getattr(module, name), run / FOLDERS[stage]
    with monkeypatch.context() as patch:
        patch.setattr(module, name, Counted(function, 5, press))
        assert module.main(["--run", str(run), *options]) == 130
    kept = {name for name in contents(folder) if name.endswith((".npy", ".png"))}
    assert 4 <= len(kept) < 10
    assert stage not in metrics(run)["seconds"]
    writes = Counted(function)
    monkeypatch.setattr(module, name, writes)
    assert run_train(data, run, "--resume") == 0
    assert writes.calls == 10 - len(kept)
    assert contents(folder) == whole[0]
    assert metrics(run)[stage] == whole[1]
    assert "outdated" not in metrics(run)


def crash() -> None:
    raise RuntimeError("power failure")


@pytest.mark.parametrize("stage", ["cam"])
@pytest.mark.parametrize(("recorded", "writes"), [(3, 4), (100, 10)])
def test_after_a_crash_maps_are_kept_as_far_as_they_were_recorded(
    stage: str,
    recorded: int,
    writes: int,
    copied: tuple[Path, Path],
    whole: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, run = copied
    monkeypatch.setattr(cam, "RECORD_EVERY", recorded)
    save, argv = cam.save_maps, ["--run", str(run), *REDO["cam"][2]]
    with monkeypatch.context() as patch:
        patch.setattr(cam, "save_maps", Counted(save, 8, crash))
        with pytest.raises(RuntimeError):
            cam.main(argv)
    counted = Counted(save)
    monkeypatch.setattr(cam, "save_maps", counted)
    assert run_train(data, run, "--resume") == 0
    assert counted.calls == writes
    assert contents(run / "cams") == whole[0]
    assert metrics(run)["cam"] == whole[1]


def test_new_maps_outdate_pseudo_labels_that_are_half_done(
    copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run = copied
    with monkeypatch.context() as patch:
        patch.setattr(pseudo, "save_mask", Counted(pseudo.save_mask, 5, press))
        assert pseudo.main(["--run", str(run)]) == 130
    assert cam.main(["--run", str(run), "--cam.flip", "false"]) == 0
    assert "pseudo" in metrics(run)["outdated"]
    counted = Counted(pseudo.save_mask)
    monkeypatch.setattr(pseudo, "save_mask", counted)
    assert run_train(data, run, "--resume") == 0
    assert counted.calls == 10


def test_damaged_progress_is_no_progress(copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    data, run = copied
    before = contents(run / "cams")
    next((run / "cams").iterdir()).unlink()
    (run / "cams" / "progress.npz").write_bytes(b"PK\x03\x04 half")
    assert run_train(data, run, "--resume") == 0
    assert contents(run / "cams") == before
