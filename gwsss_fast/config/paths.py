"""Files and folders named in a configuration, as absolute paths: a run is then the same from any working directory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from gwsss_fast.config.sections import Config

_WORDS = ("auto", "list", "cls_labels", "masks", "xml", "default", "none", "embedded")  # options that name no path
_Name = TypeVar("_Name", str, str | None)


def absolute_paths(config: Config) -> Config:
    """`config` with the data folder, and whatever else is a path that exists, made absolute; words stay as they are.

    A name that does not exist here may still be one in the data folder (a list, say), so it is left alone too.
    """
    data, model, pseudo, segmenter = config.data, config.model, config.pseudo, config.segmenter
    return replace(
        config,
        data=replace(
            data,
            root=data.root if data.root in _WORDS else str(Path(data.root).expanduser().resolve()),
            classes_file=_path(data.classes_file),
            train_list=_path(data.train_list),
            train_aug_list=_path(data.train_aug_list),
            val_list=_path(data.val_list),
            labels=_path(data.labels),
            saliency=_path(data.saliency, folder=True),
            cache_dir=data.cache_dir and str(Path(data.cache_dir).expanduser().resolve()),
        ),
        model=replace(model, backbone=_function(model.backbone), weights=_path(model.weights)),
        pseudo=replace(pseudo, maps=_path(pseudo.maps, folder=True), maps_list=_path(pseudo.maps_list)),
        segmenter=replace(
            segmenter,
            body=_function(segmenter.body),
            weights=_path(segmenter.weights),
            pseudo_labels=_path(segmenter.pseudo_labels, folder=True),
        ),
    )


def _path(name: _Name, folder: bool = False) -> _Name:
    """A file, or a folder, that exists; other names stay."""
    if not name or name in _WORDS:
        return name
    path = Path(name).expanduser()
    return str(path.resolve()) if (path.is_dir() if folder else path.is_file()) else name  # type: ignore[return-value]


def _function(name: _Name) -> _Name:
    """`path/to/file.py:function`; other names of backbones stay."""
    where, colon, function = (name or "").rpartition(":")
    return f"{_path(where)}:{function}" if colon and where.endswith(".py") else name  # type: ignore[return-value]
