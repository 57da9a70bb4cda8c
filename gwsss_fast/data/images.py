"""Reading images, masks and saliency maps; whatever is wrong with a file is one error that names it.

A file is opened by the decoders of `FORMATS` alone, whatever its name says, and not decoded when its header asks for
more pixels than `pixel_limit`: a few kilobytes can unfold to gigabytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin, WebPImagePlugin  # noqa: F401 - the last two open by name once imported

from gwsss_fast.data import coco_masks
from gwsss_fast.data.sbd import read_sbd
from gwsss_fast.errors import GwsssError

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # Pillow knows others, some of which start programs
IGNORE = 255  # mask value of pixels that count nowhere
MAX_MEGAPIXELS = 50.0  # of one image
_MOST_MEGAPIXELS = 178  # Pillow itself refuses more
_ORIENTATION = 0x0112  # of EXIF; what each of its values asks for, where it asks for something
_TURN = Image.Transpose
_TURNS = {
    2: _TURN.FLIP_LEFT_RIGHT,
    3: _TURN.ROTATE_180,
    4: _TURN.FLIP_TOP_BOTTOM,
    5: _TURN.TRANSPOSE,
    6: _TURN.ROTATE_270,
    7: _TURN.TRANSVERSE,
    8: _TURN.ROTATE_90,
}
SIDEWAYS = (_TURN.TRANSPOSE, _TURN.TRANSVERSE, _TURN.ROTATE_90, _TURN.ROTATE_270)  # these change width and height

_limit = int(MAX_MEGAPIXELS * 1e6)


def pixel_limit() -> int:
    """How many pixels an image or mask may have."""
    return _limit


def set_pixel_limit(megapixels: float) -> None:
    """Change `pixel_limit` for this process, to millions; worker processes of `make_loader` take it over.

    Raises GwsssError for 0, less, or more than Pillow decodes.
    """
    global _limit
    if not 0 < megapixels <= _MOST_MEGAPIXELS:
        raise GwsssError(f"max_megapixels = {megapixels} must be above 0 and at most {_MOST_MEGAPIXELS}")
    _limit = round(megapixels * 1e6)


def read_image(path: str | Path) -> Image.Image:
    """The image at `path` as RGB, wholly decoded, in the pixel order of the file (an EXIF rotation is not applied).

    Raises GwsssError when the file is missing or cannot be decoded.
    """
    return as_rgb(_load(path, "image"))


def read_upright(path: str | Path) -> Image.Image:
    """As `read_image`, but turned as the file's EXIF tag says: as viewers and browsers show it."""
    image = _load(path, "image")
    turn = turn_of(image)
    return as_rgb(image) if turn is None else as_rgb(image).transpose(turn)


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """How an opened file is to be turned before it is shown, by its EXIF tag; None = not, or the tag is broken."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # almost anything where the tags are broken
        return None


def as_rgb(image: Image.Image) -> Image.Image:
    """A decoded image of any mode as RGB; 16 bits of grey become the upper 8 of them."""
    if image.mode.startswith("I"):  # convert would clip at 255
        image = Image.fromarray((np.asarray(image, np.float32) / 257).round().clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def read_size(path: str | Path) -> tuple[int, int]:
    """(width, height) of an image, from its header alone. Raises GwsssError as `read_image` does."""
    with open_image(path, "image") as image:
        return image.size


def read_mask(path: str | Path, num_classes: int) -> np.ndarray:
    """The mask (H, W) uint8 of a palette or grey image, of an SBD `.mat` file, or of an image of COCO.

    Values: 0 background, 1..num_classes, 255 ignore.
    Raises GwsssError when the file is missing, cannot be decoded, is a colour image or holds any other value.
    """
    path = Path(path)
    if path.suffix.lower() == ".mat":
        mask = read_sbd(path, pixel_limit())
    elif path.suffix == coco_masks.SUFFIX:
        mask = coco_masks.draw_mask(path)
    else:
        image = _load(path, "mask")
        if image.mode not in ("P", "L", "I", "I;16"):
            raise GwsssError(
                f"mask {path} is an image of mode {image.mode}; save it as palette or grey, one class number a pixel"
            )
        mask = np.asarray(image)
    illegal = np.setdiff1d(_values(mask, path), [*range(num_classes + 1), IGNORE])
    if len(illegal):
        values = ", ".join(map(str, illegal[:5])) + (", ..." if len(illegal) > 5 else "")
        raise GwsssError(
            f"mask {path} holds the value {values}, but only 0 to {num_classes} and 255 (ignore) stand for something; "
            f"mend the mask or name more classes in classes.txt"
        )
    return mask.astype(np.uint8)


def read_saliency(path: str | Path) -> np.ndarray:
    """The saliency map (H, W) float32 in [0, 1] of a grey image. Raises GwsssError as `read_image` does."""
    image = _load(path, "saliency map")
    if image.mode.startswith("I"):  # 16 bits
        return (np.asarray(image, np.float32) / 65535).clip(0, 1)
    return np.asarray(image.convert("L"), np.float32) / 255


def _load(path: str | Path, kind: str) -> Image.Image:
    with open_image(path, kind) as image:
        try:
            image.load()
        except Exception as error:
            raise unreadable(path, kind, error) from error
        return image


def open_image(path: str | Path, kind: str) -> Image.Image:
    """The image with its header read alone, of a size within the limit."""
    try:
        image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise GwsssError(f"{kind} {path} has too many pixels ({error}); {_MEND_SIZE}") from error
    except Exception as error:  # decoders raise almost anything on broken files
        raise unreadable(path, kind, error) from error
    if image.width * image.height > _limit:
        image.close()
        raise GwsssError(
            f"{kind} {path} has {image.width}x{image.height} pixels, more than the {_limit / 1e6:g} million allowed; "
            f"{_MEND_SIZE}"
        )
    return image


_MEND_SIZE = "make it smaller, take it off the list, or raise max_megapixels"


def unreadable(path: str | Path, kind: str, error: Exception) -> GwsssError:
    """What to raise when a file cannot be opened or decoded."""
    if isinstance(error, FileNotFoundError):
        return GwsssError(f"{kind} {path} does not exist")
    return GwsssError(f"{kind} {path} cannot be decoded ({error}); replace the file or take it off the list")


def _values(mask: np.ndarray, path: Path) -> np.ndarray:
    """Which values occur."""
    if mask.ndim != 2 or not np.issubdtype(mask.dtype, np.integer) or (mask.size and mask.min() < 0):
        raise GwsssError(f"mask {path} is not a plane of class numbers (shape {mask.shape}, type {mask.dtype})")
    if mask.size and mask.max() > IGNORE:
        return np.unique(mask)  # a count of each value would be as long as the largest
    return np.flatnonzero(np.bincount(mask.ravel(), minlength=IGNORE + 1))


def is_file(path: Path) -> bool:
    """Whether `path` is a file; a name that the operating system refuses, one too long say, is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def images_below(folder: Path) -> Iterable[Path]:
    """The image files in `folder` and its sub-folders, in no order; hidden ones are left out."""
    return (
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_EXTENSIONS and not path.name.startswith(".") and path.is_file()
    )


class ImageFolder:
    """The files of one folder by their name without extension, listed once; empty when the folder does not exist.

    Of several files that differ in their extension alone the one whose extension comes first is found.
    """

    def __init__(self, path: Path, extensions: tuple[str, ...] = IMAGE_EXTENSIONS) -> None:
        self.path = path
        self._files: dict[str, Path] = {}
        found = [file for file in path.iterdir() if file.suffix.lower() in extensions] if path.is_dir() else []
        for file in sorted(found, key=lambda file: (extensions.index(file.suffix.lower()), file.name), reverse=True):
            self._files[file.stem] = file

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, file: Path) -> bool:
        return self._files.get(file.stem) == file

    def find(self, stem: str) -> Path | None:
        return self._files.get(stem)


def open_saliency(root: Path, folder: str | Path | None) -> ImageFolder:
    """The folder of saliency maps: `folder` (also relative to `root`), else `Saliency` in `root`, else nothing.

    Raises GwsssError when the folder that was asked for does not exist or holds no image.
    """
    if folder is None:
        return ImageFolder(root / "Saliency")
    candidates = [Path(folder), root / folder]
    path = next((candidate for candidate in candidates if candidate.is_dir()), None)
    if path is None:
        raise GwsssError(f"saliency folder {folder} does not exist")
    maps = ImageFolder(path)
    if not len(maps):
        raise GwsssError(f"saliency folder {path} holds no image")
    return maps
