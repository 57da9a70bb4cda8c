"""--compile: network and loss as one graph each, with the weights of the uncompiled training."""

from pathlib import Path

import pytest
import torch

from gwsss_fast.training import classifier, segmenter
from gwsss_fast.training.checkpoints import load_checkpoint
from tests.command_line import fails, run_train

compiled = torch.compile


@pytest.mark.parametrize("stage", ["classifier", "segmenter"])
def test_a_compiled_training_is_the_same(
    stage: str, copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced whole (fullgraph) with the operators' fakes and autograd; the code generator is left out to save time."""
    data, run = copied
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    def trace(function: object, **options: object) -> object:
        assert options == {"fullgraph": True}
        return compiled(function, backend=backend, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(torch, "compile", trace)
    before = load_checkpoint(run / stage / "last.pt")["model"]
    torch._dynamo.reset()
    assert run_train(data, run.parent / "compiled", "--compile", "true", "--stage", "classifier") == 0
    if stage == "segmenter":
        graphs.clear()
        for later in ("cam", "pseudo", "segmenter"):
            assert run_train(data, run.parent / "compiled", "--compile", "true", "--resume", "--stage", later) == 0
    assert len(graphs) >= 2  # network and loss
    after = load_checkpoint(run.parent / "compiled" / stage / "last.pt")["model"]
    assert after.keys() == before.keys()
    for name, value in after.items():
        torch.testing.assert_close(value, before[name], rtol=1e-4, atol=1e-5, msg=name)
    torch._dynamo.reset()


def test_cuda_graphs_want_a_gpu(shared_voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--training.cuda-graphs", "true", "--device", "cpu", "--stage", "classifier")
    fails(capsys, run_train(shared_voc, tmp_path / "run", *options), "training.cuda_graphs needs a GPU")


assert classifier.torch is segmenter.torch  # both take `compile` from the module that is patched
