"""What the native library makes of broken tools, settings and folders: a reason, never an exception of another kind."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gwsss_fast import GwsssError, doctor, files
from gwsss_fast.native import build, library

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _as_in_a_new_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing loaded, nothing found, an empty cache folder."""
    monkeypatch.setattr(library, "_loaded", None)
    monkeypatch.setattr(library, "_load_failure", None)
    monkeypatch.setattr(library, "PREBUILT", tmp_path / "prebuilt")
    monkeypatch.setenv("GWSSS_CACHE", str(tmp_path / "cache"))
    for name in ("GWSSS_NATIVE", "CXX", "MAX_JOBS"):
        monkeypatch.delenv(name, raising=False)
    library._tools.cache_clear()
    yield
    library._tools.cache_clear()


def program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def stands_in(monkeypatch: pytest.MonkeyPatch, **programs: Path) -> None:
    found = {name.replace("cxx", "c++"): str(path) for name, path in programs.items()}
    monkeypatch.setattr(build, "_which", lambda name: found.get(name, found.get("any")))


def reasons(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    monkeypatch.setattr(library.torch.cuda, "is_available", lambda: True)
    return [library.missing(), library.missing_on_gpu(), library.prepare()]


@pytest.mark.parametrize("broken", ["cmake", "cxx"])
@pytest.mark.parametrize("text", ["#!/nonexistent/python\n", "\x7fnot for this machine"])
def test_a_program_that_cannot_be_started(
    broken: str, text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    good = program(tmp_path / "good", "#!/bin/sh\necho version 3.30\n")
    bad = program(tmp_path / "bad", text)
    stands_in(monkeypatch, **{"any": good, broken: bad})
    with pytest.raises(build.BuildError, match=f"{bad} cannot be run: "):
        build.find_tools(ROOT)
    assert all(f"{bad} cannot be run" in str(reason) for reason in reasons(monkeypatch))
    assert library.pending() is None


def test_an_nvcc_that_cannot_be_started_leaves_the_parts_for_the_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stands_in(monkeypatch, any=program(tmp_path / "good", "#!/bin/sh\necho version 3.30\n"))
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDACXX", str(program(tmp_path / "nvcc", "#!/nonexistent/sh\n")))
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert build.find_tools(ROOT).nvcc is None


@pytest.mark.parametrize("own", [None, "~/cache"])
def test_a_user_without_a_home(own: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_: Any) -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("GWSSS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    if own is not None:
        monkeypatch.setenv("GWSSS_CACHE", own)
    monkeypatch.setattr(Path, "home", nowhere)
    monkeypatch.setattr(Path, "expanduser", nowhere)
    with pytest.raises(GwsssError, match="no home folder; set GWSSS_CACHE"):
        files.cache_folder()
    try:
        build.find_tools(ROOT)
    except build.BuildError as error:
        pytest.skip(str(error))
    assert all("set GWSSS_CACHE" in str(reason) for reason in reasons(monkeypatch))
    assert library.pending() is None
    assert "set GWSSS_CACHE" in str(doctor.build_native())
    doctor.native_table()


class Unreadable:
    def is_file(self) -> bool:
        raise PermissionError("not yours")


def test_a_cache_folder_that_may_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        library.site()
    except build.BuildError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(library.Site, "library", property(lambda _: Unreadable()))
    assert "not yours" in str(library.missing())


def test_tools_that_are_not_there_are_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    searched = []

    def find(*_: Any) -> build.Tools:
        searched.append(1)
        raise build.BuildError("there is no cmake")

    monkeypatch.setattr(build, "find_tools", find)
    assert {library.missing() for _ in range(3)} == {"the native library cannot be built: there is no cmake"}
    assert len(searched) == 1


def test_a_prebuilt_library_of_other_sources_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("gwsss_fast"), "propagate", True)
    for name, told in (("without", None), ("older", "0123456789abcdef"), ("own", build.source_hash(ROOT))):
        prefix = tmp_path / name
        (prefix / "lib").mkdir(parents=True)
        (prefix / "lib" / build.NAME).write_text("")
        if told is not None:
            (prefix / "lib" / build.SOURCES).write_text(f"{told}\n")
        monkeypatch.setattr(library, "PREBUILT", prefix)
        caplog.clear()
        found = [library._prebuilt(), library._prebuilt()]
        assert found == [prefix / "lib" / build.NAME if name == "own" else None] * 2
        assert [str(prefix) in message for message in caplog.messages] == ([] if name == "own" else [True])


def test_a_wrong_setting_is_not_remembered_as_a_failed_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stands_in(monkeypatch, any=program(tmp_path / "good", "#!/bin/sh\necho version 3.30\n"))
    monkeypatch.setenv("MAX_JOBS", "many")
    with pytest.raises(build.BuildError, match="MAX_JOBS is 'many'"):
        library.ensure()
    assert not (tmp_path / "cache").exists()


def test_what_is_forbidden_is_not_built_on_request(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GWSSS_NATIVE", "0")
    assert doctor.build_native() == "GWSSS_NATIVE=0 forbids the native library"
    assert not (tmp_path / "cache").exists()


def test_the_words_around_the_compiler_reach_cmake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And a folder that has lost its library is replaced."""
    good = program(tmp_path / "good", "#!/bin/sh\necho version 3.30\n")
    stands_in(monkeypatch, **{"g++": good, "ccache": good, "cmake": good, "ninja": good})
    monkeypatch.setenv("CXX", "ccache g++ -m64 -pipe")
    tools = build.find_tools(ROOT)
    assert (tools.launcher, tools.compiler, tools.compiler_flags) == (("ccache",), str(good), ("-m64", "-pipe"))
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if "--install" in command:
            folder = Path(command[command.index("--prefix") + 1]) / "lib"
            folder.mkdir(parents=True)
            (folder / build.NAME).write_text("new")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(build, "_run", run)
    (tmp_path / "key" / "include").mkdir(parents=True)
    (tmp_path / "key" / "include" / "old.h").write_text("")
    build.build(ROOT, tools, tmp_path / "key", tmp_path / "log")
    assert "-DCMAKE_CXX_COMPILER_LAUNCHER=ccache" in commands[0]
    assert f"-DCMAKE_CXX_COMPILER={good};-m64;-pipe" in commands[0]
    assert (tmp_path / "key" / "lib" / build.NAME).read_text() == "new"
    assert not (tmp_path / "key" / "include").exists()
    assert build.built_from(tmp_path / "key") == build.source_hash(ROOT)
    monkeypatch.setenv("CXX", "distcc g++")
    stands_in(monkeypatch, **{"g++": good})
    with pytest.raises(build.BuildError, match="CXX=distcc is not there"):
        build.find_tools(ROOT)
