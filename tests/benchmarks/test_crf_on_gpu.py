"""The benchmark of the dense CRF on a GPU, as far as it can run without one."""

import pytest
import torch

from benchmarks.gpu import crf as crf_on_gpu
from benchmarks.harness.timing import Reading
from gwsss_fast.native import library


def test_what_is_wrong_is_told() -> None:
    wanted = torch.rand(3, 4, 5), torch.randn(3, 4, 5)
    assert not crf_on_gpu.failures(wanted, wanted, wanted)
    other = wanted[0].flip(0), wanted[1] * 1.1
    told = crf_on_gpu.failures(other, wanted, wanted)
    assert "two runs on the same inputs differ" in told
    assert sum("differs from the CPU" in line for line in told) == 2
    assert any("of the labels are those of the CPU" in line for line in told)
    nan = wanted[0] * torch.nan, wanted[1]
    assert any("marginals: differs from the CPU by nan" in line for line in crf_on_gpu.failures(nan, nan, wanted))


def test_every_preset_is_checked_at_two_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the CPU's library in place of the GPU's, on a part of the picture."""
    if (reason := library.prepare()) is not None:
        pytest.skip(reason)
    monkeypatch.setattr(crf_on_gpu, "probabilities", lambda labels: probabilities(labels)[:, :41, :61].copy())
    monkeypatch.setattr(crf_on_gpu, "scene", lambda: scene()[:41, :61].copy())
    monkeypatch.setattr(crf_on_gpu, "both", lambda prob, image, preset, backend: both(prob, image, preset, "cpp"))
    checks = crf_on_gpu.checks("cpu", labels=3)
    assert len(checks) == 2 * len(crf_on_gpu.PRESETS)
    assert not [failure for check in checks for failure in check.run()]


probabilities, scene, both = crf_on_gpu.probabilities, crf_on_gpu.scene, crf_on_gpu.both


def test_peers_are_timed_or_say_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's implementation is not there on a CPU: a reason, and no time."""

    def timer(call) -> Reading:  # type: ignore[no-untyped-def]
        return Reading(2.0, 0.5)

    monkeypatch.setattr(crf_on_gpu, "wall_clock", lambda call: Reading(100.0, 100.0))
    monkeypatch.setattr(crf_on_gpu, "peak_bytes", lambda call, device: None)
    lines = {line["peer"]: line for line in crf_on_gpu.measure("cpu", timer, rounds=2)}
    assert list(lines) == ["cuda", "reference", "cpp on the CPU", "pydensecrf2"]
    assert [lines[name]["p50_ms"] for name in lines] == [2.0, 2.0, 100.0, 100.0]
    assert crf_on_gpu.ratio(list(lines.values())) == "cuda 2.00 ms; reference 1x, cpp on the CPU 50x, pydensecrf2 50x"
    monkeypatch.setattr(crf_on_gpu, "peak_bytes", lambda call, device: call())
    if not torch.cuda.is_available():
        monkeypatch.setattr(crf_on_gpu, "pydensecrf2", lambda *_: None)
        monkeypatch.setattr(crf_on_gpu, "marginals", lambda *given: refuse(given[-1]))
        lines = {line["peer"]: line for line in crf_on_gpu.measure("cpu", timer, rounds=2)}
        assert "no GPU" in lines["cuda"]["reason"]
        assert "p50_ms" not in lines["cuda"]


def refuse(backend: str) -> None:
    if backend == "cuda":
        raise RuntimeError("no GPU is visible")
