"""`python -m benchmarks.dense_crf`: the dense CRF against pydensecrf2 on the CPU.

Each time is taken after the result has been compared with pydensecrf2's. One call of each in turn; ratios are medians
of the ratios of each turn. `new image`: as in a run over images of one size, where the lattice of positions is kept and
that of colours is built. `same image`: both are kept, as between presets of the same widths. The ratio of CPU time (new
image) counts all threads, and hangs less on how busy the machine is.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from scipy import ndimage

from benchmarks import RESULTS
from benchmarks.harness import records
from benchmarks.harness.memory import growth, in_own_process
from gwsss_fast import ops
from gwsss_fast.labels.crf import PRESETS, CrfPreset

HEIGHT, WIDTH = 375, 500
COLUMNS = (
    "preset",
    "labels",
    "threads",
    "difference",
    "equal labels %",
    "pydensecrf2 ms",
    "new image ms",
    "same image ms",
)
RATIOS = ("new image x", "same image x", "CPU time x")


def scene(seed: int = 0) -> np.ndarray:
    """An invented photograph (HEIGHT, WIDTH, 3): regions of colour under uneven light, with texture and noise."""
    rng = np.random.default_rng(seed)
    regions = ndimage.gaussian_filter(rng.standard_normal((8, HEIGHT, WIDTH)), (0, 18, 18)).argmax(0)
    light = ndimage.gaussian_filter(rng.standard_normal((HEIGHT, WIDTH)), 60) * 4000
    texture = ndimage.gaussian_filter(rng.standard_normal((HEIGHT, WIDTH, 3)), (1.5, 1.5, 0)) * 60
    noise = rng.standard_normal((HEIGHT, WIDTH, 3)) * 3
    colours = rng.integers(30, 226, (8, 3))[regions]
    return np.asarray((colours + light[..., None] + texture + noise).clip(0, 255), np.uint8)


def photograph(path: Path) -> np.ndarray:
    """A file's pixels, scaled to HEIGHT x WIDTH."""
    return np.array(Image.open(path).convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def probabilities(labels: int, seed: int = 0) -> np.ndarray:
    """(labels, HEIGHT, WIDTH), smooth over some 20 pixels as upsampled scores are."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((labels, HEIGHT // 20 + 2, WIDTH // 20 + 2))
    odds = np.exp(3 * ndimage.zoom(coarse, (1, 20, 20), order=1)[:, :HEIGHT, :WIDTH])
    return (odds / odds.sum(0)).astype(np.float32)


def pydensecrf2(prob: np.ndarray, image: np.ndarray, preset: CrfPreset) -> np.ndarray:
    """Its marginals: lattices, inference and the copy to an array, as its users call it."""
    from pydensecrf import densecrf
    from pydensecrf.utils import unary_from_softmax

    labels, height, width = prob.shape
    crf = densecrf.DenseCRF2D(width, height, labels)
    crf.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(prob)))
    crf.addPairwiseGaussian(sxy=preset.sxy_gaussian, compat=preset.w_gaussian)
    crf.addPairwiseBilateral(sxy=preset.sxy_bilateral, srgb=preset.srgb, rgbim=image, compat=preset.w_bilateral)
    return np.array(crf.inference(preset.iterations)).reshape(prob.shape)


def ours(prob: np.ndarray, image: np.ndarray, preset: CrfPreset, backend: str = "cpp") -> np.ndarray:
    """The marginals of a backend."""
    options = {name: value for name, value in asdict(preset).items() if name != "gt_prob"}
    with ops.backend(backend), torch.no_grad():
        return ops.dense_crf(torch.as_tensor(prob), torch.as_tensor(image), **options).numpy()


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds on the wall and of all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)


def measure(name: str, labels: int, image: np.ndarray, rounds: int) -> records.Record:
    """One preset: agreement, then `rounds` turns."""
    preset, prob = PRESETS[name], probabilities(labels)
    expected, marginals = pydensecrf2(prob, image, preset), ours(prob, image, preset)
    difference = float(np.abs(marginals - expected).max())
    equal = float((marginals.argmax(0) == expected.argmax(0)).mean())
    if difference > 1e-3 or equal < 0.999:
        raise SystemExit(
            f"{name}, {labels} labels: differs by {difference:.1e}, {100 * equal:.2f} % of the labels equal"
        )
    turns = []
    for number in range(rounds):
        changed = image.copy()
        changed[0, 0, 0] = number  # another image as far as the lattices that are kept can know
        theirs = timed(lambda: pydensecrf2(prob, image, preset))
        new = timed(lambda changed=changed: ours(prob, changed, preset))
        same = timed(lambda changed=changed: ours(prob, changed, preset))
        turns.append((*theirs, *new, *same))
    median = [statistics.median(column) for column in zip(*turns, strict=True)]
    return {
        **{"operation": "dense_crf", "preset": name, "labels": labels, "size": f"{WIDTH}x{HEIGHT}"},
        **{"threads": torch.get_num_threads(), "count": rounds, "difference": difference, "equal": equal},
        **{"pydensecrf2_ms": median[0], "new_image_ms": median[2], "same_image_ms": median[4]},
        "new_image_ratio": statistics.median(turn[0] / turn[2] for turn in turns),
        "same_image_ratio": statistics.median(turn[0] / turn[4] for turn in turns),
        "cpu_ratio": statistics.median(turn[1] / turn[3] for turn in turns),
    }


def memory(peer: str, preset: str, labels: int) -> float:
    """MiB that a process grows by in one call, at its peak."""
    return in_own_process(f"grown({peer!r}, {preset!r}, {labels})", "benchmarks.dense_crf")


def grown(peer: str, preset: str, labels: int) -> float:
    """What `memory` measures, in the process that it starts (Linux)."""
    prob, image = probabilities(labels), scene()
    function = pydensecrf2 if peer == "pydensecrf2" else ours
    function(prob[:, :8, :8].copy(), image[:8, :8].copy(), PRESETS[preset])  # what is loaded and kept in any case
    return growth(lambda: function(prob, image, PRESETS[preset]))


def row(record: records.Record) -> list[str]:
    """A line of the table."""
    return [
        *(record["preset"], str(record["labels"]), str(record["threads"]), f"{record['difference']:.1e}"),
        *(f"{100 * record['equal']:.3f}", f"{record['pydensecrf2_ms']:.0f}", f"{record['new_image_ms']:.0f}"),
        *(f"{record['same_image_ms']:.0f}", f"{record['new_image_ratio']:.2f}", f"{record['same_image_ratio']:.2f}"),
        f"{record['cpu_ratio']:.2f}",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dense_crf", description=__doc__)
    parser.add_argument("--presets", nargs="+", default=[*PRESETS], choices=[*PRESETS])
    parser.add_argument("--labels", nargs="+", type=int, default=[21])
    parser.add_argument("--threads", nargs="+", type=int, default=[2, 1])
    parser.add_argument("--image", type=Path, help="a photograph; an invented scene without it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder to which dense_crf.jsonl is appended")
    options = parser.parse_args(arguments)
    image = scene() if options.image is None else photograph(options.image)
    table = Table(*COLUMNS, *RATIOS, title=f"dense CRF, {WIDTH}x{HEIGHT}: times faster than pydensecrf2")
    lines = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for labels in options.labels:
            for preset in options.presets:
                measured = measure(preset, labels, image, options.rounds)
                shown = "photograph" if options.image else "invented"
                lines.append({**records.environment("cpu"), **measured, "scene": shown})
                table.add_row(*row(lines[-1]))
    console = Console()
    console.print(table)
    for labels in options.labels:
        for peer in ("cpp", "pydensecrf2"):
            needed = {preset: memory(peer, preset, labels) for preset in options.presets}
            lines.append(
                {**records.environment("cpu"), "operation": "dense_crf", "labels": labels, "peer": peer, "mib": needed}
            )
            listed = ", ".join(f"{preset} {size:.0f}" for preset, size in needed.items())
            console.print(f"memory of one call, {labels} labels, {peer}: {listed} MiB")
    records.append(options.output / "dense_crf.jsonl", lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
