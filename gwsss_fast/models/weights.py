"""Weight files into models: safely read, matched by name, checked completely before anything is copied."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from gwsss_fast.errors import GwsssError
from gwsss_fast.models.base import Backbone
from gwsss_fast.models.mxnet_params import read_mxnet_params
from gwsss_fast.models.published import translate
from gwsss_fast.models.resnet101 import LAYOUT_KEY

CONTAINERS = ("state_dict", "model")  # where checkpoints keep the weights beside an optimiser's state
FILE_PREFIXES = ("", "backbone.", "body.", "base.", "base.body.")
MODEL_PREFIXES = ("", "backbone.", "body.", "base.", "base.body.")
DISPENSABLE = ("num_batches_tracked", LAYOUT_KEY)  # older files lack them; the model's own value is right
MOST_NAMED = 4


def load_weights(model: nn.Module, source: str | Path) -> str:
    """Load `source` into `model` and return the sentence that a run records about it.

    source: "none" (left random), "default" (the torchvision weights of the model's backbone) or the path of a file: a
    safetensors file or PyTorch state dict, also under "state_dict" or "model" and with "module." prefixes, in our
    names, torchvision's, AffinityNet's (ResNet-38) or deeplab-pytorch's, or MXNet's `.params` of ResNet-38. A file may
    hold the model or its backbone; keys that the model lacks and a classifier of other size are skipped, and the
    sentence says so.

    Raises GwsssError for an unreadable file, a missing key or a wrong shape (naming file and first key), or a
    download that fails. The model is untouched then.
    """
    if str(source) == "none":
        return "random"
    if str(source) == "default":
        return _load_default(model)
    path = Path(source)
    skipped = _load_state(model, translate(read_state(path)), str(path))
    sentence = f"{path} (sha256 {_sha256(path)[:12]})"
    return f"{sentence}, without {skipped}" if skipped else sentence


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weight file by name, on the CPU; nothing in the file is executed.

    Raises GwsssError when the file is missing, damaged, or holds anything but tensors and plain containers.
    """
    path = Path(path)
    if not path.is_file():
        raise GwsssError(f"weight file {path} does not exist; pass the path of a file, 'default' or 'none'")
    if path.suffix == ".params":
        return read_mxnet_params(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged and hostile files fail in many ways; all mean the same to the user
        raise GwsssError(
            f"cannot read weight file {path}: it is damaged, no PyTorch file, or holds more than tensors; get it again "
            "or save the plain state dict with torch.save"
        ) from error
    return _tensors(content, path)


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    for name in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    state = {}
    if isinstance(content, Mapping):
        state = {str(key).removeprefix("module."): x for key, x in content.items() if isinstance(x, Tensor)}
    if not state:
        raise GwsssError(f"{path} holds no state dict; save one with torch.save(model.state_dict(), path)")
    return state


def _load_default(model: nn.Module) -> str:
    backbones = [layer for layer in model.modules() if isinstance(layer, Backbone)]
    name = backbones[0].default_weights if backbones else None
    if name == "random":
        return "random"
    if name is None:
        kind = type(backbones[0] if backbones else model).__name__
        raise GwsssError(f"{kind} has no weights to download; pass --model.weights PATH, or none to start at random")
    from torchvision.models import get_weight

    try:
        state = get_weight(name).get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # the network fails in many ways; all mean the same to the user
        raise GwsssError(
            f"cannot download torchvision {name} ({type(error).__name__}); pass --model.weights PATH, or none to start "
            "at random (--segmenter.weights where it is the segmenter's)"
        ) from error
    _load_state(backbones[0], dict(state), f"torchvision {name}")
    return f"torchvision {name}"


def _load_state(model: nn.Module, state: Mapping[str, Tensor], where: str) -> str:
    """Copy `state` into `model`; returns the skipped keys as words ("" when there are none)."""
    targets = model.state_dict()
    named, prefix = _align(state, targets, where)
    head = str(getattr(model, "head_prefix", "")) or None
    chosen: dict[str, Tensor] = {}
    skipped = [key for key in state if key not in named.values()]
    for key, target in targets.items():
        if not key.startswith(prefix) or key.endswith(DISPENSABLE):
            continue
        optional = head is not None and key.startswith(head)
        if key not in named:
            if optional:
                continue
            raise GwsssError(f"{where} lacks the key {key.removeprefix(prefix)}; it belongs to another architecture")
        value = state[named[key]]
        if value.shape == target.shape:
            chosen[key] = value
        elif optional:
            skipped.append(named[key])
        else:
            raise GwsssError(
                f"{where}: {named[key]} has shape {tuple(value.shape)}, the model needs {tuple(target.shape)}; it "
                "belongs to another architecture"
            )
    for key in named:
        if key.endswith(DISPENSABLE) and state[named[key]].shape == targets[key].shape:
            chosen[key] = state[named[key]]
    model.load_state_dict(chosen, strict=False)
    return _words(skipped)


def _align(state: Mapping[str, Tensor], targets: Mapping[str, Tensor], where: str) -> tuple[dict[str, str], str]:
    """Which key of the file fills which key of the model, and the part of the model (a prefix) that the file is about.

    A file may hold a whole classifier and the model be its backbone, or the other way round: of all ways to take one
    prefix away and put another on, the one that fits most keys wins, the plainest among equals.
    """
    best: dict[str, str] = {}
    best_prefix = ""
    for ours in MODEL_PREFIXES:
        for theirs in FILE_PREFIXES:
            named = {ours + key.removeprefix(theirs): key for key in state if key.startswith(theirs)}
            named = {key: name for key, name in named.items() if key in targets}
            if len(named) > len(best):
                best, best_prefix = named, ours
    if not best:
        first, wanted = next(iter(state)), next(iter(targets), "no parameters at all")
        raise GwsssError(f"{where} fits nothing: its first key is {first}, the model's is {wanted}; use another file")
    return best, best_prefix


def _words(keys: list[str]) -> str:
    more = f" and {len(keys) - MOST_NAMED} more" if len(keys) > MOST_NAMED else ""
    return ", ".join(keys[:MOST_NAMED]) + more


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()
