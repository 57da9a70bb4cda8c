"""Map files as other projects read and write them: plain numpy and Pillow on the other side."""

import numpy as np
import pytest
from PIL import Image

from gwsss_fast.data.records import Record
from gwsss_fast.errors import GwsssError
from gwsss_fast.labels.interchange import load_maps, open_maps, save_maps, save_oaa
from gwsss_fast.labels.maps import CamSet


@pytest.fixture
def cams():
    rng = np.random.default_rng(0)
    initial, graph = rng.random((2, 2, 10, 13)).astype(np.float32)
    return CamSet(np.array([3, 14]), initial, graph, (initial + graph) / 2)


def test_irn_dictionary_as_irn_reads_it(tmp_path, cams):
    save_maps(tmp_path / "cams" / "a.npy", cams)
    stored = np.load(tmp_path / "cams" / "a.npy", allow_pickle=True).item()
    assert sorted(stored) == ["cam", "graph", "high_res", "initial", "keys", "size"]
    assert stored["keys"].tolist() == [3, 14]
    assert stored["high_res"].dtype == np.float16
    assert stored["high_res"] == pytest.approx(cams.ensemble, abs=1e-3)
    for name in ("cam", "initial", "graph"):
        assert stored[name].shape == (2, 3, 4)  # 10 x 13 at stride 4
        assert stored[name].dtype == np.float16
    assert [path.name for path in (tmp_path / "cams").iterdir()] == ["a.npy"]


def test_the_quarter_is_the_maps_at_stride_4(tmp_path):
    ramp = np.broadcast_to(np.linspace(0, 1, 16, dtype=np.float32), (1, 8, 16))
    save_maps(tmp_path / "a.npy", CamSet(np.array([0]), ramp, ramp, ramp))
    stored = np.load(tmp_path / "a.npy", allow_pickle=True).item()
    for name in ("cam", "initial", "graph"):
        assert stored[name][0, 0] == pytest.approx((np.arange(4) * 4 + 1.5) / 15, abs=1e-3)


@pytest.mark.parametrize("high_res", [True, False])
def test_a_run_reads_back_its_own_maps_at_the_size_of_the_image(tmp_path, high_res):
    """Maps as smooth as those of features at stride 8; the ensemble is exact where `high_res` is stored."""
    y, x = np.mgrid[:90, :121].astype(np.float32) / 60
    initial = np.stack([np.sin(3 * x) ** 2 * np.cos(y) ** 2, np.exp(-8 * ((x - 1) ** 2 + (y - 0.7) ** 2))])
    graph = initial[::-1].copy()
    cams = CamSet(np.array([3, 14]), initial, graph, (initial + graph) / 2)
    save_maps(tmp_path / "a.npy", cams, high_res=high_res)
    found = load_maps(tmp_path / "a.npy")
    assert found.keys.tolist() == [3, 14]
    for name in ("initial", "graph", "ensemble"):
        assert getattr(found, name).dtype == np.float32
        exact = high_res and name == "ensemble"
        assert getattr(found, name) == pytest.approx(getattr(cams, name), abs=1e-3 if exact else 0.05)
    kilobytes = (tmp_path / "a.npy").stat().st_size / 1024
    assert kilobytes < (55 if high_res else 10)  # three maps of full size would be 128


def test_maps_of_irn_itself(tmp_path, cams):
    high = cams.ensemble
    np.save(tmp_path / "a.npy", {"keys": np.array([3, 14]), "cam": high[:, ::4, ::4], "high_res": high})
    found = load_maps(tmp_path / "a.npy")
    for maps in (found.initial, found.graph, found.ensemble):
        assert np.array_equal(maps, high)


def test_seam_dictionary_both_ways(tmp_path, cams):
    save_maps(tmp_path / "a.npy", cams, "seam", readout="graph")
    stored = np.load(tmp_path / "a.npy", allow_pickle=True).item()
    assert list(stored) == [3, 14]
    assert np.array_equal(stored[14], cams.graph[1])
    np.save(tmp_path / "b.npy", {14: cams.graph[1], 3: cams.graph[0]})
    found = load_maps(tmp_path / "b.npy")
    assert found.keys.tolist() == [3, 14]
    assert np.array_equal(found.ensemble, cams.graph)


def test_oaa_pictures_both_ways(tmp_path, cams):
    paths = save_oaa(tmp_path, "2007_000032", cams, readout="initial")
    assert [path.name for path in paths] == ["2007_000032_3.png", "2007_000032_14.png"]
    with Image.open(paths[1]) as image:
        assert image.mode == "L"
        assert np.asarray(image) == pytest.approx(np.round(cams.initial[1] * 255), abs=1e-3)
    Image.new("L", (3, 3)).save(tmp_path / "2007_000032_1_2.png")  # another image's, named 2007_000032_1
    Image.new("RGB", (13, 10)).save(tmp_path / "image.jpg")
    record = Record("2007_000032", tmp_path / "image.jpg", labels=(3, 14))
    found = open_maps(tmp_path, [record])(record)
    assert found.keys.tolist() == [3, 14]
    assert found.ensemble == pytest.approx(cams.initial, abs=0.5 / 255 + 1e-6)


@pytest.mark.parametrize("high_res", [True, False])
def test_an_image_without_classes(tmp_path, high_res):
    nothing = np.zeros((0, 9, 9), np.float32)
    save_maps(tmp_path / "a.npy", CamSet(np.zeros(0, np.int64), nothing, nothing, nothing), high_res=high_res)
    found = load_maps(tmp_path / "a.npy")
    assert found.keys.shape == (0,)
    assert found.ensemble.shape == (0, 9, 9)


class Intruder:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_errors_name_the_file(tmp_path, cams, capsys):
    np.save(tmp_path / "evil.npy", {"keys": Intruder(), "high_res": cams.ensemble})
    np.save(tmp_path / "other.npy", {"name": 3})
    np.save(tmp_path / "uneven.npy", {1: np.zeros((2, 2)), 2: np.zeros((3, 2))})
    np.save(tmp_path / "crf.npy", {0: cams.graph[0], 15: 1 - cams.graph[0]})
    np.save(tmp_path / "short.npy", {"keys": np.array([1]), "high_res": cams.ensemble})
    np.save(tmp_path / "sized.npy", {"keys": np.array([3, 14]), "cam": cams.ensemble, "size": np.array([0, 13])})
    messages = {
        "evil": "evil",
        "other": "neither",
        "uneven": "differ",
        "crf": "background",
        "short": "do not fit",
        "sized": "height",
    }
    for name, message in messages.items():
        with pytest.raises(GwsssError, match=message) as caught:
            load_maps(tmp_path / f"{name}.npy")
        assert f"{name}.npy" in str(caught.value)
    assert "must not run" not in capsys.readouterr().out
    with pytest.raises(GwsssError, match=r"b_CLASS\.png"):
        open_maps(tmp_path, [Record("b", tmp_path / "b.jpg")])
    with pytest.raises(GwsssError, match="irn, seam"):
        save_maps(tmp_path / "a.npy", cams, "oaa")
    with pytest.raises(GwsssError, match="ensemble, graph, initial"):
        save_oaa(tmp_path, "a", cams, readout="mean")
