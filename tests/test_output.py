"""What commands print: one line of error whatever the terminal is, and names as they are, not as markup."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from gwsss_fast import cli, evaluate, train
from gwsss_fast.config import load_config
from gwsss_fast.errors import GwsssError
from tests.command_line import fails

ASCII = {"PYTHONIOENCODING": "ascii:strict", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
MISTAKES = """
import sys
from gwsss_fast import check_data, train
for words in (["--epochs", "many"], ["--stage", "foo"], ["--pseudo.crf", "zzz"], ["stray"]):
    assert train.main(words) == 2
assert check_data.main([]) == 2
print("d\\u00e9j\\u00e0")
"""


def test_a_mistake_is_one_clear_line_on_a_terminal_of_ascii() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", MISTAKES], env={**os.environ, **ASCII}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == r"d\xe9j\xe0"
    many, stage, crf, stray, nothing = ended.stderr.splitlines()
    assert many.startswith("error: Error parsing --epochs/--classifier.epochs: invalid literal for int()")
    assert many.endswith("with base 10: 'many' (`gwsss-fast train --help` lists the options)")
    assert stage.startswith("error: invalid choice 'foo' for argument '--stage'. Expected one of ('all', ")
    assert crf.startswith("error: invalid choice 'zzz' for argument '--pseudo.crf'. Expected one of (")
    assert stray == "error: Unrecognized options: stray (`gwsss-fast train --help` lists the options)"
    assert nothing.startswith("error: missing: Folder of the data set")
    assert "---" not in ended.stderr


@pytest.mark.parametrize(
    "text",
    [
        "╭─ T ─╮\n│ it is  │\n│ so.    │\n│ ────── │\n│ See -h │\n╰───────╯\n",
        " T \n -----\n  it is\n  so.\n -----\n  See -h\n",
    ],
)
def test_the_problem_is_what_stands_above_the_rule(text: str) -> None:
    assert cli._problem(text, train.Arguments(load_config("quick"))) == "it is so"


def printed(table: object) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_names_of_classes_are_not_markup() -> None:
    segmentation = {"miou": 1.0, "iou": {"[red]x": 1.0, "[/x]": 2.0, ":cat:": 3.0}}
    text = printed(cli.summary({"segmentation": segmentation}))
    for name in segmentation["iou"]:  # type: ignore[attr-defined]
        assert name in text


def test_names_of_folders_and_classes_are_not_markup(
    small_voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (small_voc / "classes.txt").write_text("[red]x\n[/x]\n:cat:\n")
    masks = tmp_path / "o [/x]"
    masks.parent.mkdir()
    (small_voc / "SegmentationClass").rename(masks)
    (small_voc / "SegmentationClass").symlink_to(masks)
    assert evaluate.main(["--data", str(small_voc), "--masks", str(masks)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for name in ("[red]x", "[/x]", ":cat:", "o [/x]"):
        assert name in out


def test_a_run_in_a_folder_with_brackets_says_where_it_is(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "o [").mkdir()
    (tmp_path / "o [/x]").symlink_to(finished[1], target_is_directory=True)
    _, run = cli.open_stage(cli.StageArguments, "report", ["--run", str(tmp_path / "o [/x]")])
    cli.print_summary(run)
    assert f"report: {tmp_path / 'o [/x]' / 'report.html'}\n" in capsys.readouterr().out


def test_of_an_option_that_is_given_twice_the_last_one_counts() -> None:
    options = train.read_arguments(
        ["--preset", "paper", "--preset=quick", "--backbone", "vgg16", "--model.backbone", "tiny"]
    )
    assert options.preset == "quick"
    assert options.config == load_config("quick")
    with pytest.raises(GwsssError, match="nosuch"):
        train.read_arguments(["--preset", "quick", "--preset", "nosuch"])
    assert train.read_arguments([]).preset == "quick"
    assert cli.peek(["--preset"], "--preset") is None


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--lr", "did you mean '--classifier.backbone-lr' or '--classifier.graph-lr' or '--segmenter.lr'?"),
        ("--epoch", "did you mean '--epochs'?"),
        ("--nothing-like-it", "unknown option --nothing-like-it (`gwsss-fast train --help`"),
    ],
)
def test_an_unknown_option_has_near_ones(option: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, train.main([option, "3"]), words)
