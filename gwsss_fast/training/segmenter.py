"""Stage 2: DeepLab-V2 learns from the pseudo labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gwsss_fast import distributed
from gwsss_fast.config import Config
from gwsss_fast.data.dataset import Split
from gwsss_fast.data.encoded import DeviceImages
from gwsss_fast.data.torch_datasets import SegmentationDataset
from gwsss_fast.data.transforms import SegmenterTransform
from gwsss_fast.errors import GwsssError
from gwsss_fast.models.backbones import build_backbone, check_backbone
from gwsss_fast.models.deeplab import DeepLabV2, MultiScale, segmentation_loss, valid_pixels
from gwsss_fast.training.batches import epochs_of_batches, image_cache, image_ids, shuffled, watch_bad_images
from gwsss_fast.training.build import load_classifier
from gwsss_fast.training.checkpoints import check_classes, load_checkpoint, restore_model
from gwsss_fast.training.loop import Trainer
from gwsss_fast.training.optimizers import make_sgd
from gwsss_fast.training.parts import Part, Share
from gwsss_fast.training.runs import Run, checkpoint_record, missing_files
from gwsss_fast.training.schedules import poly

FROZEN = {"auto": None, "yes": True, "no": False}


def train_segmenter(run: Run, split: Split, resume: bool = False) -> str:
    """Train on the pseudo labels of `split` and write segmenter/last.pt; returns what the body was initialised from.

    resume: as for the classifier. Raises GwsssError when pseudo labels are missing or options do not fit.
    """
    config, options = run.config, run.config.segmenter
    masks = label_files(run, split)
    torch.manual_seed(config.seed + 1)
    model = build_segmenter(run)
    source = model.initialised_from
    trainer = make_trainer(run, model, split, checkpoint_record(run, {"segmenter": source}))
    content = trainer.resume() if resume else {}
    if content:
        source = content.get("initialised_from", {}).get("segmenter", source)
        trainer.record["initialised_from"] = {"segmenter": source}
    run.begin("segmenter", resume)
    if not resume:
        run.discard("segmenter")
    transform = SegmenterTransform(options.crop, options.scales, options.flip, options.color_jitter)
    bad = watch_bad_images(run, split, "segmenter")
    cache = image_cache(split, config.data)
    dataset = SegmentationDataset(split, transform, config.seed, masks, cache, bad.limit if bad else None)
    finish = DeviceImages(dataset, run.device) if config.data.decode == "device" else None

    def batches(start: int) -> Iterator[Share]:
        def order(epoch: int) -> list[list[int]]:
            return shuffled(len(dataset), options.batch, config.seed, epoch)

        pin = run.device.type == "cuda"
        workers = config.data.workers
        return epochs_of_batches(dataset, order, start, trainer.epoch_steps, workers, pin, bad, finish)

    resize: Literal["target", "logits"] = "target" if options.loss_resolution == "features" else "logits"
    measure = torch.compile(segmentation_loss, fullgraph=True) if config.training.compile else segmentation_loss

    def loss(part: Part) -> tuple[Tensor, dict[str, Tensor]]:
        masks = part.items["mask"]
        logits = trainer.network(part.items["image"])
        sizes = [each.shape[-2:] if resize == "target" else masks.shape[-2:] for each in as_list(logits)]
        pixels = [pixels_of_batch(part.share, size).to(run.device) for size in sizes]
        total = measure(logits, masks, resize, pixels if isinstance(logits, list) else pixels[0])
        return total * (not part.share.idle), {}

    trainer.fit(batches, loss)
    return source


def as_list(logits: Tensor | list[Tensor]) -> list[Tensor]:
    """The logits of one scale or of several."""
    return logits if isinstance(logits, list) else [logits]


def pixels_of_batch(share: Share, size: torch.Size) -> Tensor:
    """The pixels that count in the whole batch, at `size`, over the number of processes: averaged losses are divided by
    what they sum over, however the batch was divided. All processes call this."""
    own = valid_pixels(share.items["mask"], size).cpu().double() * (not share.idle)
    return (distributed.add(own) / distributed.size()).float()


def label_files(run: Run, split: Split) -> dict[str, Path]:
    """The pseudo label of each image, the run's own or another project's. Raises GwsssError when one is missing."""
    folder = run.config.segmenter.pseudo_labels
    if folder is None:
        masks, advice = {record.id: run.pseudo_file(record) for record in split.records}, "run stage pseudo"
    else:
        masks = {record.id: Path(folder) / f"{record.id}.png" for record in split.records}
        advice = "--pseudo-labels names a folder of ID.png for every training image"
    missing = missing_files(list(masks.values()))
    if missing:
        raise GwsssError(f"pseudo label {missing[0]} does not exist ({len(missing)} of {len(masks)}); {advice}")
    return masks


def body_name(config: Config) -> str:
    """The segmenter's backbone: its own option, else the classifier's."""
    return config.segmenter.body or config.model.backbone


def initial_weights(config: Config) -> str | None:
    """The weights that the body starts from, as in segmenter.weights; None = the trained classifier's backbone.

    Raises GwsssError when the body is another one than the classifier's backbone and shall start from it.
    """
    options, name, trained = config.segmenter, body_name(config), config.model.backbone
    if options.init == "classifier" and name != trained:
        raise GwsssError(
            f"segmenter.init classifier needs the classifier's backbone {trained} as its body, not {name}; set "
            "segmenter.init source"
        )
    own = options.pseudo_labels is None and config.pseudo.maps is None
    same = name == trained and options.weights == "default"
    if options.init == "classifier" or (options.init == "auto" and same and own):
        return None
    if options.weights == "default" and name == trained:
        return config.model.weights  # the same source as the classifier's
    return options.weights


def check_segmenter(config: Config) -> None:
    """Raises GwsssError for a body or weights that stage 2 would stumble over; cheap, fetches nothing."""
    weights = initial_weights(config)
    if weights is not None:
        check_backbone(body_name(config), weights, "segmenter.weights")


def build_segmenter(run: Run) -> DeepLabV2:
    """A new DeepLabV2 on the device, its body from the trained classifier or from the weights the options name."""
    config, options = run.config, run.config.segmenter
    body: str | nn.Module = body_name(config)
    classes, weights = len(run.data.classes) + 1, initial_weights(config)
    if weights is None:
        body, weights = load_classifier(config, run.classifier_checkpoint, run.data.classes)[0].backbone, "none"
        body.initialised_from = f"the classifier's backbone ({run.classifier_checkpoint.name} of stage classifier)"  # type: ignore[assignment]
    if isinstance(body, str) and weights in ("none", "default"):
        body, weights = build_backbone(body, weights), "none"
    model = DeepLabV2(classes, body, options.rates, weights, FROZEN[options.frozen_batch_norm])
    return model.to(run.device)


def make_trainer(run: Run, model: DeepLabV2, split: Split, record: dict[str, Any]) -> Trainer:
    """The trainer of stage 2 with its optimiser and schedule."""
    config, options = run.config, run.config.segmenter
    groups = model.parameter_groups(
        options.lr,
        options.weight_decay,
        head_factor=options.head_lr_factor,
        head_bias_factor=options.head_bias_lr_factor,
    )
    return Trainer(
        name="segmenter",
        model=MultiScale(model) if options.multi_scale_loss else model,
        optimizer=make_sgd(config.training.optimizer, groups, run.device, lr=options.lr, momentum=options.momentum),
        schedule=poly(options.iterations, options.poly_power),
        total=min(options.iterations, config.max_steps or options.iterations),
        epoch_steps=max(len(split) // options.batch, 1),
        checkpoint=run.segmenter_checkpoint,
        logs=run.folder / "logs",
        device=run.device,
        precision=config.precision,
        clip_norm=options.clip_norm,
        checkpoint_every=options.checkpoint_every,
        options=config.training,
        record=record,
        images=lambda share: image_ids(split, share.items["index"]),
        console=run.console,
        seed=config.seed,
    )


def load_segmenter(config: Config, checkpoint: Path, classes: tuple[str, ...]) -> DeepLabV2:
    """The segmenter of a checkpoint, in eval mode. Raises GwsssError when it fits neither options nor classes."""
    content = load_checkpoint(checkpoint)
    check_classes(content, classes, checkpoint)
    model = DeepLabV2(len(classes) + 1, build_backbone(body_name(config), "none"), config.segmenter.rates)
    target: nn.Module = MultiScale(model) if config.segmenter.multi_scale_loss else model
    restore_model(target, content, checkpoint)
    return model.eval()
