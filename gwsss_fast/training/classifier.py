"""Stage 1: the group classifier learns from image-level labels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from gwsss_fast.config import ClassifierConfig
from gwsss_fast.data.encoded import DeviceImages
from gwsss_fast.data.samplers import GroupSampler, PhasedSampler
from gwsss_fast.data.torch_datasets import GroupDataset
from gwsss_fast.data.transforms import ClassifierTransform
from gwsss_fast.GroupGNN import GroupGNN, GroupOutput
from gwsss_fast.losses import group_loss
from gwsss_fast.models.group_classifier import GroupClassifier
from gwsss_fast.training.batches import consecutive, epochs_of_batches, image_cache, image_ids, watch_bad_images
from gwsss_fast.training.build import build_classifier
from gwsss_fast.training.loop import Trainer
from gwsss_fast.training.online_maps import OnlineMaps
from gwsss_fast.training.optimizers import make_sgd
from gwsss_fast.training.parts import Part, Share
from gwsss_fast.training.runs import Run, checkpoint_record
from gwsss_fast.training.schedules import Schedule, constant, poly, step_decay, warm_up

MOST_PLAIN = 0.75
"""Of all steps: a graph that never joins would be read untrained."""
_DRAWS = 3  # keeps the numbers of graph dropout apart from other streams of the seed
PARTS = {"loss_final": (1.0, 0.0, 0.0), "loss_initial": (0.0, 1.0, 0.0), "loss_edge": (0.0, 0.0, 1.0)}


def train_classifier(run: Run, resume: bool = False) -> str:
    """Train to the end and write classifier/last.pt; returns what the backbone was initialised from.

    resume: continue from the checkpoint, with the same result as an uninterrupted training on the CPU. Raises
    GwsssError for data or options that do not fit; KeyboardInterrupt after a consistent checkpoint.
    """
    config, options, split = run.config, run.config.classifier, run.data.training
    strategy = GroupSampler(split.labels, options.group_size, options.sampling, config.seed)
    epoch_steps = steps_per_epoch(options, len(split))
    torch.manual_seed(config.seed)
    model = build_classifier(config, len(run.data.classes)).to(run.device)
    gnn = cast(GroupGNN, model.gnn)
    plain_steps = plain_phase(run, gnn.steps > 0)
    whole, rest = divmod(plain_steps, epoch_steps)
    sampler = PhasedSampler(strategy, split.labels, whole, rest * options.groups)
    transform = ClassifierTransform(options.size, options.scale, options.flip, options.color_jitter, options.mode)
    source = model.backbone.initialised_from
    record = checkpoint_record(run, {"classifier": source})
    online = OnlineMaps(split) if config.cam.oaa else None
    trainer = make_trainer(run, model, record)
    if online is not None:
        trainer.state = online.state
    content = trainer.resume() if resume else {}
    if content:
        source = content.get("initialised_from", {}).get("classifier", source)
        trainer.record["initialised_from"] = {"classifier": source}
        if online is not None:
            online.restore(content.get("online_maps", {}))
    bad = watch_bad_images(run, split, "classifier")
    cache = image_cache(split, config.data)
    dataset = GroupDataset(split, sampler, transform, config.seed, cache, bad.limit if bad else None)
    finish = DeviceImages(dataset, run.device) if config.data.decode == "device" else None

    def batches(start: int) -> Iterator[Share]:
        groups = consecutive(len(dataset), options.groups)
        pin, workers = run.device.type == "cuda", config.data.workers
        return epochs_of_batches(dataset, lambda epoch: groups, start, trainer.epoch_steps, workers, pin, bad, finish)

    measure = torch.compile(group_loss, fullgraph=True) if config.training.compile else group_loss

    def loss(part: Part) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = part.items["images"], part.items["labels"]
        plain = trainer.step < plain_steps
        if trainer.step <= plain_steps > 0:
            gnn.start_graph()  # in every plain step: a trial run that ends there leaves a graph that can be read
        numbers = {"steps": 0} if plain else {"draws": graph_draws(gnn, part, config.seed, trainer.step)}
        out: GroupOutput = trainer.network(images, **numbers)
        if online is not None and not part.share.idle:
            online.update(out, part.share.items["indices"][part.inside])
        weights = PARTS["loss_initial"] if plain else options.loss_weights
        total = measure(out, labels, weights, options.loss_reduction) * part.weight
        with torch.no_grad():
            graph = gnn.steps > 0 and not plain
            edges = ["loss_edge"] if out.edge_logits is not None else []
            names = ["loss_final", "loss_initial", *edges] if graph else ["loss_initial"]
            more = {name: group_loss(out, labels, PARTS[name], options.loss_reduction) * part.weight for name in names}
        return total, more

    trainer.fit(batches, loss, tuple(PARTS))
    return source


def graph_draws(gnn: GroupGNN, part: Part, seed: int, step: int) -> Tensor | None:
    """The numbers of graph dropout for the groups of `part`: those of (seed, step, row in the batch), so that neither
    the number of processes nor that of parts has a say in them."""
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, _DRAWS, step]).generate_state(1)[0]))
    whole = gnn.draw(part.share.total, part.items["images"].shape[1], generator)
    return None if whole is None else whole[:, part.rows].to(part.items["images"].device, non_blocking=True)


def plain_phase(run: Run, graph: bool) -> int:
    """Steps without the graph: plain_epochs, but where a graph is to join at most three quarters of the training."""
    options = run.config.classifier
    epoch_steps = steps_per_epoch(options, len(run.data.training))
    wanted, most = round(options.plain_epochs * epoch_steps), math.floor(MOST_PLAIN * options.epochs * epoch_steps)
    if not graph or wanted <= most:
        return wanted
    run.note(f"classifier: plain_epochs {options.plain_epochs:g} leave no time for the graph; it joins at step {most}")
    return most


def make_trainer(run: Run, model: GroupClassifier, record: dict[str, Any]) -> Trainer:
    """The trainer of stage 1 with its optimiser and schedule."""
    config, options = run.config, run.config.classifier
    epoch_steps = steps_per_epoch(options, len(run.data.training))
    total = options.epochs * epoch_steps
    groups = model.parameter_groups(
        options.backbone_lr,
        options.graph_lr,
        message_lr_factor=options.message_lr_factor,
        bias_lr_factor=options.bias_lr_factor,
        weight_decay=options.weight_decay,
    )
    optimizer = make_sgd(
        config.training.optimizer,
        groups,
        run.device,
        lr=options.graph_lr,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        nesterov=options.nesterov,
    )
    return Trainer(
        name="classifier",
        model=model,
        optimizer=optimizer,
        schedule=make_schedule(options, total, epoch_steps),
        total=min(total, config.max_steps or total),
        epoch_steps=epoch_steps,
        checkpoint=run.folder / "classifier" / "last.pt",
        logs=run.folder / "logs",
        device=run.device,
        precision=config.precision,
        clip_norm=options.clip_norm,
        checkpoint_every=options.checkpoint_every,
        options=config.training,
        record=record,
        best="loss_final" if cast(GroupGNN, model.gnn).steps else "loss_initial",
        images=lambda share: image_ids(run.data.training, share.items["indices"]),
        console=run.console,
        seed=config.seed,
    )


def steps_per_epoch(options: ClassifierConfig, images: int) -> int:
    """Optimiser steps of one epoch: every image leads one group, unless steps_per_epoch makes it shorter."""
    steps = math.ceil(images / options.groups)
    return min(steps, options.steps_per_epoch or steps)


def make_schedule(options: ClassifierConfig, total: int, epoch_steps: int) -> Schedule:
    """The factor on the learning rates by step."""
    if options.schedule == "step":
        schedule = step_decay(options.step_epochs * epoch_steps, options.step_factor)
    elif options.schedule == "poly":
        schedule = poly(total, options.poly_power)
    else:
        schedule = constant()
    return warm_up(schedule, options.warmup_steps)
