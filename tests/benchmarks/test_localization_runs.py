"""The table of localisation scores; that the command trains and localises is looked at with a stand-in for both."""

import json
from pathlib import Path

import pytest

from benchmarks import localization


def entry(value: float) -> dict:
    scores = dict.fromkeys(localization.SCORES, value)
    return {**scores, "tau": 0.1, "images": 120, "objects": 197, "split": "val"}


def test_means_spreads_and_differences() -> None:
    rows = {"one": [entry(40), entry(42)], "other": [entry(43), entry(41)]}
    text = localization.table({"seeds": [0, 1], "rows": rows})
    assert "120 images of val with 197 pairs" in text
    lines = [line for line in text.splitlines() if line.startswith("| o")]
    assert lines[0] == "| one |" + " 41.0 ± 1.4 |" * 5 + "  |"
    assert lines[1] == "| other |" + " 42.0 ± 1.4 |" * 5 + " +3.0, -1.0 |"


def test_what_is_there_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def value(arguments: list[str], option: str) -> str:
        return arguments[arguments.index(option) + 1]

    def train(arguments: list[str]) -> int:
        run = Path(value(arguments, "--output"))
        (run / "classifier").mkdir(parents=True)
        (run / "classifier" / "last.pt").touch()
        (run / "metrics.json").write_text(json.dumps({"seconds": {"classifier": 1}}))
        calls.append(["train", value(arguments, "--preset"), value(arguments, "--seed")])
        return 0

    def localize(arguments: list[str]) -> int:
        output = Path(value(arguments, "--output"))
        output.mkdir()
        (output / "metrics.json").write_text(json.dumps({**entry(50), "max_box_acc": {"score": 50.0}}))
        assert Path(value(arguments, "--classifier")).name == f"single-{Path(value(arguments, '--run')).name[-1]}"
        calls.append(["localize", Path(value(arguments, "--run")).name, value(arguments, "--readout")])
        return 0

    monkeypatch.setattr(localization.train, "main", train)
    monkeypatch.setattr(localization.localize, "main", localize)
    options = ["--runs", str(tmp_path / "runs"), "--output", str(tmp_path), "--seeds", "0", "1"]
    assert localization.main([*options, "--readouts", "ensemble"]) == 0
    assert len(calls) == 4 + 4
    assert localization.main(options) == 0
    assert len(calls) == 8 + 4  # the other two readouts of the group-wise model
    record = json.loads((tmp_path / "localization.json").read_text())
    assert len(record["rows"]) == 4
    assert (tmp_path / "localization.md").read_text().count("50.0 ± 0.0") == 20
