"""Checkpoints that continue a training exactly: weights, optimiser, position and random states.

Everything in the file is a tensor, number, string or plain container, so `torch.load(weights_only=True)` reads it.
"""

from __future__ import annotations

import os
import random
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from gwsss_fast import files
from gwsss_fast.errors import GwsssError

FORMAT = 1


def random_states() -> dict[str, Any]:
    """The states of Python's, NumPy's and PyTorch's global generators."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    states: dict[str, Any] = {
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "kind": kind,
            "keys": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Put the states of `random_states` back; CUDA's only when this machine has as many GPUs."""
    python, numpy = states["python"], states["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state((numpy["kind"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
    torch.set_rng_state(states["torch"])
    cuda = states.get("cuda", [])
    if torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)


def save_checkpoint(path: str | Path, content: dict[str, Any]) -> None:
    """Write `content` atomically. Raises GwsssError when the disk refuses."""
    with files.atomic_path(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the new name with nothing in it
        except RuntimeError as error:  # PyTorch's zip writer covers the operating system's error with its own
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def save_weights(path: Path, model: nn.Module, **facts: str) -> None:
    """Write the weights alone as a safetensors file, atomically, `facts` in its header."""
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with files.atomic_path(path) as temporary:
        try:
            save_file(state, temporary, metadata=facts)
        except SafetensorError as error:  # it covers the operating system's error with its own
            raise OSError(f"{error}") from error


def is_whole(path: Path) -> bool:
    """Whether the file is there and agrees with the checksums that it holds of its parts, none of them compressed."""
    try:
        if not zipfile.is_zipfile(path):
            return path.is_file() and path.read_bytes()[:2] != b"PK"  # PyTorch's older format has no checksums
        with zipfile.ZipFile(path) as parts:
            stored = all(part.compress_type == zipfile.ZIP_STORED for part in parts.infolist())  # as PyTorch does
            return stored and parts.testzip() is None  # what is compressed could unfold to anything
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, ValueError, zlib.error):
        return False


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU; nothing in it is executed.

    Raises GwsssError when the file is missing, damaged, or no checkpoint of this package.
    """
    path = Path(path)
    if not path.is_file():
        raise GwsssError(f"checkpoint {path} does not exist; train that stage first or pass another file")
    try:
        if not is_whole(path):
            raise ValueError("a part of it has changed")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle raises almost anything
        raise GwsssError(f"checkpoint {path} is damaged or not a checkpoint; remove it to train again") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise GwsssError(f"{path} is not a checkpoint of gwsss_fast: it has no `model`")
    if content.get("format", FORMAT) != FORMAT:
        raise GwsssError(f"checkpoint {path} has format {content['format']}, this version reads {FORMAT}")
    return content


def restore_model(model: nn.Module, content: dict[str, Any], path: str | Path) -> None:
    """Load the checkpoint's weights into `model`.

    Raises GwsssError naming the first parameter that is missing, unknown or of another shape; the model is untouched.
    """
    stored, target = content["model"], model.state_dict()
    for name, value in target.items():
        if name not in stored:
            raise GwsssError(f"checkpoint {path} lacks {name}; it was made with other model options")
        if not isinstance(stored[name], Tensor):
            raise GwsssError(f"checkpoint {path}: {name} is no tensor; remove it to train again")
        if stored[name].shape != value.shape:
            raise GwsssError(
                f"checkpoint {path}: {name} has shape {tuple(stored[name].shape)}, the model needs "
                f"{tuple(value.shape)}; it was made with another model or number of classes"
            )
    unknown = [name for name in stored if name not in target]
    if unknown:
        raise GwsssError(f"checkpoint {path} holds {unknown[0]}, which the model lacks; it was made with other options")
    model.load_state_dict(stored)


def check_classes(content: dict[str, Any], classes: tuple[str, ...], path: str | Path) -> None:
    """Raises GwsssError when the checkpoint was trained for other classes than `classes`."""
    stored = tuple(content.get("classes", classes))
    if len(stored) != len(classes):
        raise GwsssError(
            f"checkpoint {path} was trained for {len(stored)} classes ({', '.join(stored[:3])}, ...), the data set has "
            f"{len(classes)}; use the data set that it was trained on"
        )
    if stored != tuple(classes):
        first = next(i for i, (a, b) in enumerate(zip(stored, classes, strict=True)) if a != b)
        raise GwsssError(
            f"checkpoint {path}: class {first + 1} is {stored[first]}, in the data set it is {classes[first]}; use the "
            "data set that it was trained on"
        )


def check_finite(model: nn.Module, what: str) -> None:
    """Raises GwsssError naming a parameter that is not finite."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise GwsssError(f"{what}: {name} is not finite; lower the learning rate or set clip_norm")
