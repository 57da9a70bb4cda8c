"""`python -m gwsss_fast.export_model CHECKPOINT --format FORMAT`: a trained network as a file for other runtimes."""

from __future__ import annotations

import copy
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor, nn

from gwsss_fast import __version__, cli, distributed, files
from gwsss_fast.config import Config, absolute_paths, read_config
from gwsss_fast.data.palette import voc_palette
from gwsss_fast.data.transforms import MEAN, STD
from gwsss_fast.errors import GwsssError
from gwsss_fast.export import agreement, build_engines, onnx_files, programs, tables
from gwsss_fast.export.agreement import BOUNDS
from gwsss_fast.export.deployed import USUAL_SIDE, deployed, least_side
from gwsss_fast.export.metadata import Metadata, Range, weights_checksum, within, write_beside
from gwsss_fast.export.samples import Sample, network_inputs, read_sample, samples_below
from gwsss_fast.training.build import load_classifier
from gwsss_fast.training.checkpoints import load_checkpoint
from gwsss_fast.training.precision import choose_device, set_threads
from gwsss_fast.training.runs import environment, open_data
from gwsss_fast.training.segmenter import body_name, load_segmenter

SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2", "aoti": ".aoti.pt2", "tensorrt": ".engine"}
SUFFIXES["tensorrt-rtx"] = ".rtx.engine"
ENGINES = ("tensorrt", "tensorrt-rtx")
ENGINE_RANGES: dict[str, Range] = {"batch": (1, 8), "height": (33, 1025), "width": (33, 1025)}
GENERATED = 4
GENERATED_SIDE = 128


@dataclass(frozen=True)
class Arguments:
    """Write a checkpoint's network as a file that other runtimes run, with FILE.json that describes it and
    FILE.report.json that says how well and how fast it agrees with the checkpoint."""

    checkpoint: tyro.conf.Positional[str]
    """RUN/segmenter/last.pt, or RUN/classifier/last.pt."""
    format: Literal["onnx", "tensorrt", "tensorrt-rtx", "torch-export", "aoti"] = "onnx"
    """What to write."""
    output: str | None = None
    """The file. None: beside the checkpoint, its suffix changed."""
    force: bool = False
    """Overwrite a file that exists."""
    batch: str = "any"
    """Images (groups of a classifier) at a time: a number, LEAST:LARGEST, or any."""
    height: str = "any"
    """Height of the images: a number, LEAST:LARGEST, or any."""
    width: str = "any"
    """Width of the images: a number, LEAST:LARGEST, or any."""
    group_size: int = 4
    """Images in a group, for a classifier: an exported one takes this number alone."""
    precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"
    """Arithmetic of the network; int8 needs --calibration."""
    normalise: bool = False
    """Put the normalisation into the graph: it takes RGB in 0..255."""
    resize: str | None = None
    """Put resizing into the graph: HEIGHTxWIDTH that the network sees, whatever the size of the image."""
    argmax: bool = False
    """Put the argmax into the graph: labels at the size of the image instead of logits at the network's stride."""
    calibration: str | None = None
    """Folder of images that int8 takes its ranges from."""
    calibration_images: int = 32
    """At most so many of them."""
    compute_capabilities: tuple[str, ...] = ()
    """GPUs that a TensorRT-RTX engine is built for, such as 8.6 8.9 12.0; none: the one that is here."""
    builder: Literal["onnx", "torch-tensorrt"] = "onnx"
    """The way to TensorRT: by the ONNX parser of the package tensorrt, or by torch-tensorrt."""
    opset: int = onnx_files.OPSET
    """ONNX operator set."""
    images: str | None = None
    """Folder of images for the report. None: the validation images of the checkpoint's data, else generated ones."""
    masks: str | None = None
    """Folder of their masks, NAME.png, for the difference in mIoU."""
    report_images: int = 16
    """At most so many images are compared."""
    batch_sizes: tuple[int, ...] = (1, 4)
    """Batch sizes that are timed, as far as the file takes them."""
    repeats: int = 20
    """Runs that are timed, for each batch size; fewer when half a minute is over."""
    bound: float | None = None
    """Least share of equal pixels; below it the exit status is 1. None: 0.999 in fp32, 0.99 fp16, 0.98 bf16, 0.95
    int8."""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto: where AOTInductor compiles for and the report is measured."""
    threads: int = 0
    """CPU threads; 0 = all cores."""


@dataclass
class Export:
    """A checkpoint on its way to a file. network: in fp32, on `device`."""

    options: Arguments
    config: Config
    network: nn.Module
    metadata: Metadata
    device: torch.device
    output: Path
    calibration: list[Sample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    parsed: build_engines.Parsed | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 1 when the file agrees too little with the checkpoint."""
    given = sys.argv[1:] if arguments is None else arguments
    passed: list[bool] = []
    status = cli.run(lambda: passed.append(distributed.on_main(lambda: _command(given))))
    return status or int(not all(passed))


def _command(arguments: Sequence[str]) -> bool:
    default = Arguments(checkpoint=tyro.MISSING)
    options = cli.parse(Arguments, default, arguments, "gwsss-fast export-model", Arguments.__doc__ or "")
    export = open_export(options)
    samples, source = report_samples(export)
    with files.atomic_path(export.output) as temporary:
        write(export, temporary)
    _report_of(export.output).unlink(missing_ok=True)  # it was another file's
    write_beside(export.output, export.metadata)
    print(f"{export.output}: {export.metadata.format}, {export.metadata.precision}")
    return report(export, samples, source)


def open_export(options: Arguments) -> Export:
    """The checkpoint's network and the metadata of the file. Raises GwsssError for whatever cannot be."""
    set_threads(options.threads)
    device = _device(options)
    output = _output(options)
    content = load_checkpoint(options.checkpoint)
    if "config" not in content:
        raise GwsssError(f"{options.checkpoint} does not say what it was trained as; give a checkpoint of a run")
    config = absolute_paths(read_config(str(content["config"]), options.checkpoint))
    classes, path = tuple(content["classes"]), Path(options.checkpoint)
    if "segmenter" in content.get("initialised_from", {}):
        network: nn.Module = load_segmenter(config, path, classes)
        body, name = network.body, body_name(config)
    else:
        network = load_classifier(config, path, classes)[0]
        body, name = network.backbone, config.model.backbone
    metadata = _metadata(options, config, network, body, classes)  # type: ignore[arg-type]
    metadata = replace(metadata, body=name, device=_made_for(options, device))
    wanted = options.calibration
    calibration = samples_below(wanted, "--calibration", options.calibration_images) if wanted is not None else []
    return Export(options, config, network.to(device), metadata, device, output, calibration)


def _metadata(
    options: Arguments, config: Config, network: nn.Module, body: nn.Module, classes: tuple[str, ...]
) -> Metadata:
    segmenter = hasattr(network, "aspp")
    if options.argmax and not segmenter:
        raise GwsssError("--argmax is for segmenters; a classifier's file gives logits and maps")
    size = None if options.resize is None else _size(options.resize)
    least = 1 if size is not None else least_side(body)
    engine = options.format in ENGINES
    any_size: Range = (least, None)
    ranges = ENGINE_RANGES if engine else {"batch": (1, None), "height": any_size, "width": any_size}
    spans: dict[str, Any] = {name: span(getattr(options, name), name, default) for name, default in ranges.items()}
    colours = [tuple(map(int, x)) for x in voc_palette()[: len(classes) + 1]]
    capabilities = options.compute_capabilities or build_engines.present_capability()
    return Metadata(
        format=options.format,
        task="segmentation" if segmenter else "group-classification",
        classes=classes,
        palette=tuple(colours if segmenter else colours[1:]),  # type: ignore[arg-type]
        mean=MEAN,
        std=STD,
        weights_sha256=weights_checksum(network.state_dict()),
        group_size=None if segmenter else options.group_size,
        network_size=size,
        stride=int(getattr(body, "stride", 8)),
        normalise=options.normalise,
        resize=size is not None,
        argmax=options.argmax,
        precision=options.precision,
        opset=_opset(options),
        scales=tuple(config.evaluate.scales) if segmenter else (1.0,),
        flip=config.evaluate.flip if segmenter else False,
        compute_capabilities=capabilities if engine else (),
        versions=_versions(options.format),
        **spans,
    )


def _opset(options: Arguments) -> int | None:
    """ONNX knows convolutions in bfloat16 since operator set 22."""
    if options.format not in ("onnx", *ENGINES):
        return None
    return max(options.opset, 22) if options.precision == "bf16" else options.opset


def span(text: str, name: str, default: Range) -> Range:
    """The range that `--batch`, `--height` or `--width` names. Raises GwsssError for anything else."""
    if text == "any":
        return default
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2] or match[1]):
        raise GwsssError(f"--{name} {text}: write a number above 0, LEAST:LARGEST, or any")
    return int(match[1]), int(match[2] or match[1])


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if match is None:
        raise GwsssError(f"--resize {text}: write HEIGHTxWIDTH, such as 321x321")
    return int(match[1]), int(match[2] or match[1])


def _device(options: Arguments) -> torch.device:
    if options.format == "tensorrt":
        build_engines.check_gpu("TensorRT", options.compute_capabilities)
    for name in ("report_images", "calibration_images", "repeats"):
        if getattr(options, name) < 1:
            raise GwsssError(f"--{name.replace('_', '-')} {getattr(options, name)}: write a number above 0")
    if options.bound is not None and not 0 <= options.bound <= 1:
        raise GwsssError(f"--bound {options.bound:g}: write a share in 0..1")
    if options.precision == "int8" and options.format in ("torch-export", "aoti"):
        raise GwsssError(f"--format {options.format} has no int8; use onnx, tensorrt or tensorrt-rtx for it, or bf16")
    if (options.precision == "int8") != (options.calibration is not None):
        raise GwsssError("--precision int8 and --calibration FOLDER belong together")
    if options.precision == "int8" and options.builder == "torch-tensorrt":
        raise GwsssError("--precision int8 comes by way of ONNX; use --builder onnx")
    if options.masks is not None and options.images is None:
        raise GwsssError("--masks belongs to --images FOLDER; without it the run's own validation masks are used")
    device = choose_device(options.device)
    if options.format == "tensorrt" and device.type != "cuda":
        raise GwsssError(f"--device {options.device}: TensorRT builds an engine for a GPU; use auto or cuda")
    return device


def _made_for(options: Arguments, device: torch.device) -> str:
    if options.format in ENGINES:
        return "cuda"
    return device.type if options.format == "aoti" else "any"


def _output(options: Arguments) -> Path:
    suffix = SUFFIXES[options.format]
    output = Path(options.output) if options.output else Path(options.checkpoint).with_suffix(suffix)
    if output.suffix != Path(f"x{suffix}").suffix:
        raise GwsssError(f"--output {output}: a file of --format {options.format} ends in {Path(f'x{suffix}').suffix}")
    if output.is_dir():
        raise GwsssError(f"--output {output} is a folder; name a file in it")
    if output.exists() and not options.force:
        raise GwsssError(f"{output} exists; overwrite it with --force, or name another --output")
    return output


def _versions(format: str) -> dict[str, str]:
    import importlib

    found = {"gwsss_fast": __version__, "torch": torch.__version__}
    if format == "aoti":
        found["cpu"] = torch.backends.cpu.get_cpu_capability()
    wanted = ["onnx", "onnxscript"] if format in ("onnx", *ENGINES) else []
    wanted += [build_engines.MODULES[format]] if format in ENGINES else []
    for name in wanted:
        try:
            found[name] = str(importlib.import_module(name).__version__)
        except ImportError:  # said clearly where it is needed
            continue
    return found


def write(export: Export, path: Path) -> None:
    """Write the file itself to `path`. Raises GwsssError for whatever keeps it from being made."""
    options, metadata = export.options, export.metadata
    module = deployed(copy.deepcopy(export.network), metadata)
    program = programs.export_program(module, metadata)
    if options.format in ("torch-export", "aoti"):  # a program checks the sizes of its input, and refuses the smallest
        metadata = export.metadata = programs.traced_ranges(program, metadata)
    if options.format == "torch-export":
        programs.save_program(program, path, metadata)
    elif options.format == "aoti":
        programs.compile_package(program, path, metadata, {})
    elif options.format == "tensorrt" and options.builder == "torch-tensorrt":
        build_engines.build_by_torch_tensorrt(program, path, metadata)
    elif options.format == "onnx":
        _write_onnx(export, program, path)
    else:
        with tempfile.TemporaryDirectory() as folder:
            onnx_file = Path(folder) / "network.onnx"
            _write_onnx(export, program, onnx_file)
            capabilities, device = options.compute_capabilities, str(export.device)
            export.parsed = build_engines.build_engine(onnx_file, path, metadata, capabilities, device)


def _write_onnx(export: Export, program: torch.export.ExportedProgram, path: Path) -> None:
    if export.metadata.precision != "int8":
        onnx_files.write_onnx(program, path, export.metadata)
        return
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.onnx"
        onnx_files.write_onnx(program, plain, export.metadata)
        inputs = (images for images, _ in network_inputs(export.calibration, export.metadata))
        onnx_files.quantise(plain, path, inputs, export.metadata)
        number = len(export.calibration)
        export.notes.append(f"int8: ranges taken from {number} images of {export.options.calibration}")


def report_samples(export: Export) -> tuple[list[Sample], str]:
    """The images that are compared, and the sentence that says where they come from.

    Raises GwsssError for a folder without images and for files that cannot be read.
    """
    options, classes = export.options, len(export.metadata.classes)
    if options.images is not None:
        found = samples_below(options.images, "--images", options.report_images, options.masks, classes)
        return found, f"{len(found)} images of {options.images}"
    try:
        split = open_data(export.config.data).validation
        if split is not None and len(split):
            records = split.records[: options.report_images]
            found = [read_sample(record.id, record.image, record.mask, classes) for record in records]
            return found, f"{len(found)} validation images of {export.config.data.root}"
        reason = "the checkpoint's data set has no validation images"
    except GwsssError as error:
        reason = f"the checkpoint's data is not here ({error})"
    return generated_samples(), f"{GENERATED} generated images, because {reason}; give --images FOLDER for real ones"


def generated_samples() -> list[Sample]:
    """A few drawn images, without masks."""
    from PIL import Image

    from gwsss_fast.data.embedded.painting import render
    from gwsss_fast.data.embedded.planning import plan_split

    scenes = plan_split("val", GENERATED, 0, GENERATED_SIDE)
    return [Sample(f"generated_{number}", Image.fromarray(render(scene)[0])) for number, scene in enumerate(scenes)]


def report(export: Export, samples: list[Sample], source: str) -> bool:
    """Compare, time, write FILE.report.json and print it. Whether the agreement reaches the bound."""
    options, metadata = export.options, export.metadata
    eager = deployed(export.network, replace(metadata, argmax=False, precision="fp32"))
    runtimes, refused = tables.present_runtimes(export.output, export.device)

    def run_eager(images: Tensor) -> Tensor:
        found = eager(images.to(export.device))
        return (found if isinstance(found, Tensor) else found[2].flatten(0, 1)).cpu()

    side = max(within(USUAL_SIDE, metadata.height), within(USUAL_SIDE, metadata.width))
    found = agreement.compare(run_eager, runtimes, samples, metadata)
    timings = agreement.measure(run_eager, runtimes, metadata, options.batch_sizes, side, options.repeats, seconds=30.0)
    if metadata.precision == "int8" and not any("miou" in scores for scores in found.values()):
        export.notes.append("what int8 costs in mIoU is not known without masks; give --images and --masks")
    bound = BOUNDS[metadata.precision] if options.bound is None else options.bound
    passed = all(scores["pixel_agreement"] >= bound for scores in found.values())
    facts = {
        "file": export.output.name,
        "metadata": json.loads(metadata.to_json()),
        "images": source,
        "bound": bound,
        "passed": passed if found else None,
        "agreement": found,
        "timings": timings,
        "not_run": refused,
        "notes": export.notes,
        "machine": {**environment(export.device), "load": os.getloadavg()},
    }
    if export.parsed is not None:
        facts["parsed"] = asdict(export.parsed)
    files.write_json(_report_of(export.output), facts)
    tables.show(facts)
    return passed


def _report_of(output: Path) -> Path:
    return Path(f"{output}.report.json")


if __name__ == "__main__":
    sys.exit(main())
