"""`python -m gwsss_fast.serve --model FILE`: a web page and an HTTP endpoint for masks of images and maps of groups."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import tyro

from gwsss_fast import __version__, cli
from gwsss_fast.config import Config, absolute_paths, read_config
from gwsss_fast.errors import GwsssError
from gwsss_fast.inference import Predictor
from gwsss_fast.labels.maps import group_maps
from gwsss_fast.serving import server
from gwsss_fast.serving.answers import Models, warm_up
from gwsss_fast.serving.app import build_app
from gwsss_fast.serving.limits import Limits
from gwsss_fast.serving.page import build_page
from gwsss_fast.serving.worker import Worker
from gwsss_fast.training.build import load_classifier
from gwsss_fast.training.checkpoints import load_checkpoint

NEEDED = {"fastapi": "fastapi", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}  # module: package


@dataclass(frozen=True)
class Arguments:
    """Serve a web page and an HTTP endpoint: masks of images, and with a classifier maps of groups of images."""

    model: str
    """A run's segmenter, RUN/segmenter/last.pt, or what was exported from it."""
    classifier: str | None = None
    """Checkpoint of a run's group classifier, RUN/classifier/last.pt: for the maps of groups."""
    host: str = "127.0.0.1"
    """Address to listen on. There is no password: whoever reaches another address than this one can use the server."""
    port: int = 8000
    """Port to listen on; 0 = any free one."""
    scales: tuple[float, ...] | None = None
    """Sizes at which the segmenter sees an image. None: as the run was evaluated."""
    flip: bool | None = None
    """Let the segmenter see the mirror image too. None: as the run was evaluated."""
    crf: Literal["psa", "irn", "deeplab", "mcis", "toco"] | None = None
    """Dense CRF preset that refines the masks."""
    group_scales: tuple[float, ...] = (1.0,)
    """Sizes at which the classifier sees the images of a group; a run's maps are made at 0.5 1 1.5 2."""
    group_flip: bool = False
    """Let the classifier see the mirror images too; a run's maps are made so."""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the segmenter; the classifier's is fp32 where this is auto."""
    threads: int = 0
    """CPU threads; 0 = all cores."""
    max_megabytes: float = Limits.megabytes
    """Most of one request, all its images together."""
    max_megapixels: float = Limits.megapixels
    """Most of one image."""
    network_megapixels: float = Limits.network_megapixels
    """Larger images are reduced to this before a network sees them; the mask has the image's size all the same."""
    queue: int = Limits.queue
    """Requests that may wait; more are told to come again."""
    timeout: float = Limits.seconds
    """Seconds in which a client must have sent a request."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 when it was stopped by SIGINT or SIGTERM."""
    return cli.run(lambda: _command(sys.argv[1:] if arguments is None else arguments))


def _command(arguments: Sequence[str]) -> None:
    options = cli.parse(
        Arguments, Arguments(model=tyro.MISSING), arguments, "gwsss-fast serve", Arguments.__doc__ or ""
    )
    limits = read_limits(options)
    check_installed()
    with contextlib.closing(server.listen(options.host, options.port)) as listener:
        models = open_models(options)
        local = server.is_loopback(listener)

        def ready() -> None:
            print(f"serving on {server.url(listener)} (Ctrl-C stops it)", flush=True)
            if not local:
                print(f"whoever reaches {options.host} can use it: there is no password", file=sys.stderr, flush=True)

        worker = Worker(limits.queue)
        try:
            worker.submit(partial(warm_up, models)).result()
            page = build_page(models.classes, models.maps is not None, limits, __version__)
            hosts = {*server.LOOPBACK_NAMES, options.host.lower()} if local else None
            server.serve(build_app(models, worker, limits, page, __version__, hosts), listener, limits, ready)
        finally:
            worker.close(server.STOP_SECONDS)


def read_limits(options: Arguments) -> Limits:
    """Raises GwsssError for limits that nothing can pass."""
    for name in ("max_megabytes", "max_megapixels", "network_megapixels", "queue", "timeout"):
        if not getattr(options, name) > 0:
            raise GwsssError(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be above 0")
    return Limits(
        options.max_megabytes, options.max_megapixels, options.network_megapixels, options.queue, options.timeout
    )


def check_installed() -> None:
    """Raises GwsssError naming the packages that are missing."""
    missing = []
    for module, package in NEEDED.items():
        try:
            importlib.import_module(module)
        except ImportError:
            missing.append(package)
    if missing:
        raise GwsssError(f"serve needs {' and '.join(missing)}; install it: python -m pip install {' '.join(missing)}")


def open_models(options: Arguments) -> Models:
    """The segmenter and, if asked for, the classifier. Raises GwsssError for other files and bad options."""
    predictor = Predictor(
        options.model,
        device=options.device,
        precision=options.precision,
        scales=options.scales,
        flip=options.flip,
        crf=options.crf,
        threads=options.threads,
    )
    models = Models(predictor.classes, predictor, str(predictor.device))
    if options.classifier is None:
        return models
    if not (options.group_scales and min(options.group_scales) > 0):
        raise GwsssError(f"--group-scales {options.group_scales}: give at least one, each above 0")
    content = load_checkpoint(options.classifier)
    if "classifier" not in content.get("initialised_from", {}) or "config" not in content:
        raise GwsssError(f"{options.classifier} is no checkpoint of a group classifier; give RUN/classifier/last.pt")
    config: Config = absolute_paths(read_config(str(content["config"]), options.classifier))
    classes = tuple(content["classes"])
    classifier, _ = load_classifier(config, Path(options.classifier), classes)
    maps = partial(
        group_maps,
        classifier.to(predictor.device),
        size=config.cam.size or config.classifier.size,
        scales=options.group_scales,
        flip=options.group_flip,
        device=predictor.device,
        precision="fp32" if options.precision == "auto" else options.precision,
    )
    return Models(predictor.classes, predictor, str(predictor.device), maps, classes)


if __name__ == "__main__":
    sys.exit(main())
