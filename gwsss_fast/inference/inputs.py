"""What the words of a command line name: images, folders, patterns, videos and cameras."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gwsss_fast.data.images import images_below
from gwsss_fast.errors import GwsssError

VIDEO_EXTENSIONS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".mjpg", ".mjpeg")
CAMERA = "camera:"


@dataclass(frozen=True)
class Inputs:
    """Files by the name of their results: the path below the folder given, without suffix.

    videos: file, or number of a camera.
    """

    images: dict[str, Path] = field(default_factory=dict)
    videos: dict[str, Path | int] = field(default_factory=dict)


def find_inputs(words: Sequence[str], output: Path) -> Inputs:
    """The images, videos and cameras that `words` name; of a folder its images alone, of a pattern its files. What lies
    in the folder `output` below a folder is left out: those are masks of a former run.

    Raises GwsssError for a word that names nothing, a folder without images, two files with one name, a camera without
    a number, and for videos and cameras where OpenCV is missing.
    """
    found = Inputs()
    taken: dict[str, Path] = {}
    for word in words:
        if word.startswith(CAMERA):
            number = word.removeprefix(CAMERA)
            if not number.isdecimal():
                raise GwsssError(f"input {word}: a camera has a number, such as {CAMERA}0")
            found.videos[f"camera_{number}"] = int(number)
            continue
        path = Path(word)
        base = path if path.is_dir() else None
        if base is not None:
            listed = _photographs(path, output)
        elif path.is_file():
            listed = [path]
        else:
            listed = [x for x in map(Path, sorted(glob.glob(word, recursive=True))) if not x.is_dir()]
        if not listed:
            raise GwsssError(f"input {word}: no image there; give files, folders or patterns in quotes")
        for file in listed:
            name = (file.relative_to(base) if base else Path(file.name)).with_suffix("").as_posix()
            if taken.setdefault(name, file) != file:
                raise GwsssError(
                    f"{file} and {taken[name]} would both become {name}.png; give the folder that holds both, a "
                    "pattern such as 'photos/*.jpg', or run them into two outputs"
                )
            kind: dict[str, Any] = found.videos if file.suffix.lower() in VIDEO_EXTENSIONS else found.images
            kind[name] = file
    if not found.images and not found.videos:
        raise GwsssError("no input; give images, folders or patterns in quotes")
    if found.videos:
        open_cv()
    return found


def _photographs(folder: Path, output: Path) -> list[Path]:
    own, root = output.resolve(), folder.resolve()
    masks = folder / own.relative_to(root) if root in own.parents else None
    return sorted(file for file in images_below(folder) if masks not in file.parents)


def open_cv() -> Any:
    """The module cv2. Raises GwsssError where it is not installed."""
    try:
        import cv2
    except ImportError:
        raise GwsssError(
            "videos and cameras need OpenCV; install it: python -m pip install opencv-python-headless"
        ) from None
    return cv2


@dataclass(frozen=True)
class Video:
    """A video or camera that is being read. length: frames, 0 where it is not known."""

    source: Path | int
    capture: Any
    length: int

    def frames(self, every: int = 1, most: int | None = None) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """(number, (H, W, 3) uint8 RGB) of each `every`-th frame, `most` of them at most, one in memory at a time."""
        number = given = 0
        while (most is None or given < most) and self.capture.grab():
            if number % every == 0:
                good, frame = self.capture.retrieve()
                if not good:
                    break
                yield number, np.ascontiguousarray(frame[:, :, ::-1])
                given += 1
            number += 1
        if number == 0:
            raise GwsssError(f"{self.what} gives no frame; the file may be damaged or of an unknown coding")

    @property
    def what(self) -> str:
        """For messages."""
        return f"camera {self.source}" if isinstance(self.source, int) else f"video {self.source}"

    def close(self) -> None:
        """Let the file or camera go."""
        self.capture.release()


def open_video(source: Path | int) -> Video:
    """A video file or camera. Raises GwsssError where OpenCV is missing or cannot open it."""
    cv2 = open_cv()
    capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
    video = Video(source, capture, max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))))
    if not capture.isOpened():
        capture.release()
        raise GwsssError(f"{video.what} cannot be opened; the file may be damaged or of an unknown coding")
    return video
