"""README and docs as a reader takes them: commands, options, snippets, tables and links are what they say."""

import ast
import contextlib
import importlib
import inspect
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gwsss_fast import GroupGNN, cli, ops, train
from gwsss_fast.config import Config, differences, get_field, load_config, preset_names
from gwsss_fast.models.backbones import build_backbone
from gwsss_fast.ops.dispatch import BACKENDS

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = ["python -m pip install -e .", "python -m gwsss_fast.train"]
TEST = ["python -m pip install -e '.[test]'", "python -m pytest -n 2 --dist loadfile"]
_FENCE = re.compile(r"^```(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_OPTION = re.compile(r"(?<![\w-])--[a-z][\w.-]*\w")
_SHAPE = re.compile(r"^([\w.()]+)  # \((\d[\d, ]*)\)$", re.MULTILINE)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")

per_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks whose info string begins with `language`."""
    return [body for info, body in _FENCE.findall(text_of(page)) if info.split()[:1] == [language]]


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command line in the page's shell blocks."""
    for body in blocks(page, "sh"):
        for line in body.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def verb_of(words: list[str]) -> tuple[str, list[str]] | None:
    """(module of the command, its arguments) when the line runs one of ours."""
    if words[:2] == ["python", "-m"] and words[2].startswith("gwsss_fast."):
        return words[2], words[3:]
    if words[0] == "gwsss-fast":
        return f"gwsss_fast.{cli.VERBS[words[1]]}", words[2:]
    return None


@pytest.fixture(scope="module")
def known_options() -> dict[str, set[str]]:
    """Module of a command -> the options that its --help lists."""
    return {f"gwsss_fast.{name}": help_options(f"gwsss_fast.{name}") for name in cli.VERBS.values()}


def help_options(module: str) -> set[str]:
    stream = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(stream), contextlib.suppress(SystemExit):
        patch.setenv("COLUMNS", "200")
        importlib.import_module(module).main(["--help"])
    found = set(_OPTION.findall(stream.getvalue()))
    assert found or module == "gwsss_fast.doctor"
    return found


def table(page: Path, heading: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the first table after a heading, backticks removed."""
    section = text_of(page).split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]
    assert set("".join(rows[1])) <= set("-: ")
    return rows[0], rows[2:]


@pytest.mark.parametrize(("name", "lines"), [("run", RUN), ("test", TEST)])
def test_each_of_the_two_commands_stands_once(name: str, lines: list[str]) -> None:
    found = [body for info, body in _FENCE.findall(text_of(README)) if info == f"sh {name}"]
    assert len(found) == 1
    assert found[0].splitlines() == lines


@per_page
def test_every_fence_is_closed(page: Path) -> None:
    assert len(re.findall(r"^```", text_of(page), re.MULTILINE)) == 2 * len(_FENCE.findall(text_of(page)))


@per_page
def test_options_in_commands_exist(page: Path, known_options: dict[str, set[str]]) -> None:
    for words in commands(page):
        ours = verb_of(words)
        if ours is None:
            assert words[:3] in (["python", "-m", "pip"], ["python", "-m", "pytest"]), words
            continue
        module, arguments = ours
        unknown = {item.partition("=")[0] for item in arguments if item.startswith("--")} - known_options[module]
        assert not unknown, words


@per_page
def test_options_in_the_text_exist(page: Path, known_options: dict[str, set[str]]) -> None:
    prose = _FENCE.sub("", text_of(page))
    named = {option for code in re.findall(r"`([^`\n]+)`", prose) for option in _OPTION.findall(code)}
    assert named <= set().union({"--help"}, *known_options.values())
    presets = {code for code in re.findall(r"`(ablation/[\w.-]+\w)`", prose)}
    assert presets <= set(preset_names())


@per_page
def test_train_commands_are_accepted(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Presets and values too: each line is parsed as `train` parses it, in a folder that holds the page's YAML."""
    monkeypatch.chdir(tmp_path)
    for body in blocks(page, "yaml"):
        name = body.splitlines()[0].removeprefix("# ")
        Path(name).write_text(body)
        assert differences(Config(), load_config(name))
    for words in commands(page):
        module, arguments = verb_of(words) or ("", [])
        if module == "gwsss_fast.train":
            train.read_arguments(arguments)


@pytest.mark.parametrize(
    ("page", "number"),
    [(page, number) for page in PAGES for number in range(len(blocks(page, "python")))],
    ids=lambda value: value.name if isinstance(value, Path) else str(value),
)
def test_snippets_run(page: Path, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by itself; a line `expression  # (1, 2)` states the shape of a tensor."""
    monkeypatch.chdir(tmp_path)
    source = blocks(page, "python")[number]
    names: dict[str, Any] = {"__name__": "snippet"}
    torch.manual_seed(0)
    exec(compile(source, f"{page.name}, snippet {number}", "exec"), names)
    for expression, shape in _SHAPE.findall(source):
        assert tuple(eval(expression, names).shape) == ast.literal_eval(f"({shape},)"), expression


def test_the_snippet_of_a_backbone_is_one(tmp_path: Path) -> None:
    (source,) = blocks(ROOT / "docs" / "own-images.md", "python")
    (tmp_path / "my_backbone.py").write_text(source)
    backbone = build_backbone(f"{tmp_path / 'my_backbone.py'}:build")
    assert (backbone.out_channels, backbone.stride) == (64, 8)


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@per_page
def test_links_within_the_repository_resolve(page: Path) -> None:
    for target in _LINK.findall(_FENCE.sub("", text_of(page))):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.is_relative_to(ROOT), target
        assert path.is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text_of(path)), re.MULTILINE)
            assert anchor in [slug(heading) for heading in headings], target


@per_page
def test_no_number_is_pending(page: Path) -> None:
    pending = [number for number, line in enumerate(text_of(page).splitlines(), 1) if "PENDING" in line]
    assert not pending, f"{page.name}: fill in the lines {pending}"


def test_the_backends_are_as_the_readme_says() -> None:
    header, rows = table(README, "State of the backends")
    assert header == ["operation", *BACKENDS]
    states = ops.available()
    assert {row[0] for row in rows} == set(states)
    for operation, *cells in rows:
        built = ["no kernel for this backend" not in str(states[operation][name]) for name in BACKENDS]
        assert [cell == "yes" for cell in cells] == built, operation


def test_every_departure_of_the_constructor_is_listed() -> None:
    """Against preset `paper`, which spells every option out; the options of cosine scores mean nothing there."""
    _, rows = table(ROOT / "docs" / "departures.md", "The constructor's defaults")
    paper, defaults = load_config("paper").model, inspect.signature(GroupGNN).parameters
    listed = {name: (literal, default) for name, literal, default, _ in rows}
    actual = {}
    for name in {field for field in vars(paper) if field in defaults}:
        literal, default = getattr(paper, name), defaults[name].default
        if literal != default:
            actual[name] = ("-" if literal is None else str(literal), str(default))
    assert listed == actual


@pytest.mark.parametrize(
    ("page", "heading", "base", "other"),
    [
        ("departures.md", "Preset quick", ("paper",), ("quick",)),
        ("departures.md", "Preset quick with another backbone", ("quick",), ("quick", "vgg16")),
        ("authors-code.md", "With an option", ("paper",), ("authors-code",)),
    ],
)
def test_every_departure_of_a_preset_is_listed(
    page: str, heading: str, base: tuple[str, ...], other: tuple[str, ...]
) -> None:
    """base, other: a preset and, where it matters, the backbone it is used with."""
    _, rows = table(ROOT / "docs" / page, heading)
    listed = {row[0]: (yaml.safe_load(row[1]), yaml.safe_load(row[2])) for row in rows}
    old, new = load_config(*base), load_config(*other)
    # A graph option that `quick` leaves to the constructor is that table's business.
    graph = {f"model.{name}" for name in inspect.signature(GroupGNN).parameters} if other[0] == "quick" else set()
    assert listed.keys() == differences(old, new).keys() - graph
    for key, values in listed.items():
        assert values == tuple(plain(get_field(config, key)) for config in (old, new)), key


@pytest.mark.parametrize("page", [README, ROOT / "docs" / "own-images.md"], ids=lambda page: page.name)
def test_the_command_for_own_images_takes_the_values_of_pretrained_backbones(page: Path) -> None:
    found = [words[3:] for words in commands(page) if words[2] == "gwsss_fast.train" and "vgg16" in words]
    assert len(found) == 1
    config = train.read_arguments(found[0]).config
    assert config.model.backbone == "vgg16"
    assert config.classifier == load_config("quick", "vgg16").classifier
    assert (config.classifier.size, config.classifier.epochs, config.classifier.plain_epochs) == (224, 2, 1.5)


def test_a_file_without_a_base_has_the_schedule_of_the_paper(tmp_path: Path) -> None:
    (body,) = blocks(ROOT / "docs" / "own-images.md", "yaml")
    (tmp_path / "my_images.yaml").write_text(body)
    departing = differences(load_config("paper"), load_config(tmp_path / "my_images.yaml"))
    assert {key for key in departing if key.startswith("classifier.")} == {
        "classifier.groups",
        "classifier.loss_weights",
    }


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
