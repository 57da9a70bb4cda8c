"""Decoded images kept for the epochs to come, in memory or in a folder, up to a limit."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from gwsss_fast.data.images import read_image
from gwsss_fast.data.records import Record
from gwsss_fast.errors import GwsssError
from gwsss_fast.files import atomic_path

try:
    import fcntl
except ImportError:  # Windows: processes of one machine may then go past the limit by a file each
    fcntl = None  # type: ignore[assignment]


class ImageCache:
    """Decoded images, kept until `megabytes` are used up; what no longer fits is decoded each time.

    Each worker process has its own, unless `preload` filled it before they started. 0 megabytes keep nothing.
    """

    def __init__(self, megabytes: float = 0) -> None:
        self._left = int(megabytes * 2**20)
        self._pixels: dict[Path, np.ndarray] = {}

    def read(self, record: Record) -> Image.Image:
        """The image of `record` as RGB. Raises GwsssError as `read_image` does, with list and line."""
        pixels = self._pixels.get(record.image)
        if pixels is not None:
            return Image.fromarray(pixels)
        with record.located():
            image = read_image(record.image)
        if 3 * image.width * image.height <= self._left:
            pixels = self._pixels[record.image] = np.asarray(image)
            self._left -= pixels.nbytes
        return image

    def preload(self, records: Sequence[Record], skip_bad: bool = False) -> int:
        """Decode images until the cache is full. Returns how many of `records` are in it.

        Raises GwsssError as `read` does; with `skip_bad` the images that cannot be read are left for later.
        """
        for record in records:
            if self._left <= 0:
                break
            with contextlib.suppress(*([GwsssError] if skip_bad else [])):
                self.read(record)
        return sum(record.image in self._pixels for record in records)


class DiskCache(ImageCache):
    """Decoded images in a folder, for any number of processes and runs at once; never more than `megabytes` of it.

    An image is one `.npy` file, mapped into memory when it is read, so that processes share its pages. It is named by
    path, time and size of the image's file: one that changes is decoded anew. Files are written under a lock and
    renamed into place; what is damaged, cut off or removed meanwhile is decoded and written again. When the folder is
    full, files that no one has read since this cache was opened make room, the oldest first. On a full disk, or where
    nothing may be written, images are decoded each time. Raises GwsssError when the folder cannot be made.
    """

    def __init__(self, folder: str | Path, megabytes: float) -> None:
        super().__init__(0)
        self.folder, self._most = Path(folder), int(megabytes * 2**20)
        self._opened, self._writes = time.time(), True
        try:
            with self._locked():
                self._recount()
        except OSError as error:
            raise GwsssError(
                f"cache folder {folder} cannot be used: {error.strerror or error}; name another by data.cache_dir"
            ) from error

    def read(self, record: Record) -> Image.Image:
        """As ImageCache.read."""
        path = self._file(record.image)
        pixels = _load(path) if path is not None else None
        if pixels is not None:
            return Image.fromarray(pixels)
        with record.located():
            image = read_image(record.image)
        if path is not None and self._writes:
            try:
                self._keep(path, np.asarray(image))
            except (OSError, GwsssError) as error:
                self._writes = False
                warnings.warn(f"image cache {self.folder}: {error}; going on without it", stacklevel=2)
        return image

    def _file(self, image: Path) -> Path | None:
        """Where the decoded image is, or would be; None when there is no image."""
        try:
            facts = image.stat()
        except OSError:
            return None
        name = hashlib.sha256(f"{image.resolve()}\0{facts.st_mtime_ns}\0{facts.st_size}".encode()).hexdigest()[:40]
        return self.folder / name[:2] / f"{name}.npy"

    def _keep(self, path: Path, pixels: np.ndarray) -> None:
        with self._locked() as used:
            need = pixels.nbytes + 128  # the header of a .npy file
            if path.is_file() or need > self._most:
                return
            total = used if used is not None else self._recount()
            if total + need > self._most:
                total = self._make_room(need)
            if total + need > self._most:
                self._writes = False  # full of what is in use; not counted anew for every image
                return
            self._note(total + need)  # first: what is interrupted counts too much rather than too little
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.save(file, pixels)

    def _make_room(self, need: int) -> int:
        """Remove files that were last read before this cache was opened, until `need` bytes and a twentieth of the
        folder are free or none is left; the bytes still used."""
        total, old = self._recount(), []
        for path in self.folder.glob("*/*.npy"):
            facts = path.stat()
            if facts.st_mtime < self._opened:
                old.append((facts.st_mtime, facts.st_size, path))
        for _, size, path in sorted(old):
            if total + need + self._most // 20 <= self._most:
                break
            path.unlink(missing_ok=True)
            total -= size
        self._note(total)
        return total

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int | None]:
        """Keep all other processes from writing; gives the bytes in use, None when that is not known."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a+b") as lock:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)
            text = self._total.read_bytes()[:20] if self._total.is_file() else b""
            yield int(text) if text.isdigit() else None

    @property
    def _total(self) -> Path:
        return self.folder / "bytes"

    def _note(self, total: int) -> None:
        self._total.write_text(str(total))

    def _recount(self) -> int:
        """The bytes in use, counted; call it locked. Leftovers of processes that died while writing are removed."""
        total = 0
        for path in self.folder.glob("*/*"):
            if path.name.startswith("."):
                path.unlink(missing_ok=True)
            else:
                total += path.stat().st_size
        self._note(total)
        return total


def _load(path: Path) -> np.ndarray | None:
    """The pixels (H, W, 3) in a file, mapped; None when it is not there or damaged."""
    try:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
            raise ValueError("no image")
    except FileNotFoundError:
        return None
    except Exception:  # a broken header breaks anywhere
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # read of late: not the first to make room
    return pixels
