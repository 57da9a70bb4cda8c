"""Tables of the paper: rows and presets, its numbers, and how ours come to stand beside them."""

import csv
import io
import json

import pytest

from gwsss_fast.config import differences, load_config, preset_names
from gwsss_fast.errors import GwsssError
from gwsss_fast.report.table_files import COLUMNS, csv_text, markdown, write_table
from gwsss_fast.report.tables import TABLES, choose_rows, compare, configure, lacking, read_score


def test_the_papers_tables_are_whole():
    rows = [row for table in TABLES.values() for row in table.rows]
    assert {row.preset for row in rows} <= set(preset_names())
    used = {row.preset for row in rows}
    assert {name for name in preset_names() if name.startswith("ablation/")} - used == {"ablation/paper-graph"}
    numbers = {number: {row.name: list(row.paper.values()) for row in TABLES[number].rows} for number in TABLES}
    assert numbers[1] == {"vgg16": [63.7, 64.1], "full": [68.7, 69.0]}
    assert numbers[2] == {"coco": [28.7]}
    assert numbers[3] == {"no-group": [69.95, 37.05], "full": [76.44, 60.18]}
    assert {name: values[1] for name, values in numbers[4].items()} == {
        **{"full": 68.7, "k-2": 66.1, "k-3": 68.6, "k-5": 68.3, "k-6": 68.1, "t-2": 68.3, "t-4": 68.5, "t-5": 68.5},
        **{"dropout-0.8-0.9": 68.5, "dropout-0.8-0.5": 68.2, "dropout-0.6-0.7": 67.3, "dropout-0.4-0.7": 64.1},
        **{"no-dropout": 68.2, "no-intermediate": 68.4, "no-edge": 68.2, "intermediate-only": 64.6, "graph-only": 68.3},
        **{"random": 67.1, "one-common": 68.3},
    }
    assert numbers[5] == {
        "no-group": [56.3, 58.7, 64.5],
        "no-dropout": [61.9, 64.9, 68.2],
        "full": [62.9, 65.7, 68.7],
    }


@pytest.mark.parametrize("row", TABLES[4].rows, ids=lambda row: row.name)
def test_on_preset_quick_a_row_is_its_preset(row):
    quick, preset = load_config("quick"), load_config(row.preset)
    assert configure(quick, preset, quick) == preset


def test_on_another_base_only_what_the_preset_changes_is_changed():
    quick, paper = load_config("quick"), load_config("paper")
    made = configure(paper, load_config("ablation/no-edge"), quick)
    assert made.classifier.loss_weights == (0.7, 0.1, 0.0)  # not quick's 0.5
    assert differences(paper, made).keys() == {"model.edge_supervision", "classifier.loss_weights"}


def test_what_is_lacking_is_said():
    vgg16, full = TABLES[1].rows
    assert "PASCAL VOC" in lacking(vgg16, "val", "embedded", None, False)
    assert "server" in lacking(full, "test", "voc", None, False)
    assert "COCO" in lacking(TABLES[2].rows[0], "val", "voc", None, False)
    assert "ResNet-38" in lacking(TABLES[5].rows[0], "maps-resnet38", "voc", None, False)
    assert lacking(TABLES[5].rows[0], "maps-resnet38", "voc", "weights.pth", False) == ""
    assert "--maps-only" in lacking(full, "val", "voc", None, True)
    assert lacking(full, "val", "embedded", None, False) == ""


def test_rows_by_name():
    assert [row.name for row in choose_rows(TABLES[4], ["random", "k-2"])] == ["k-2", "random"]
    with pytest.raises(GwsssError, match="no row 'k-7'; it has full, k-2"):
        choose_rows(TABLES[4], ["k-7"])


def lines(**more):
    scores = {
        ("full", "maps"): {0: 50.0, 1: 52.0, 2: 54.0},
        ("random", "maps"): {0: 48.0, 1: 50.1, 2: 51.9},
        ("k-2", "maps"): {0: 51.0},
    }
    rows = choose_rows(TABLES[4], ["full", "k-2", "random"])
    return compare(TABLES[4], scores, {("k-2", "val"): "a reason"} | more, rows)


def test_effects_are_paired_by_seed():
    full, _, k2, k2_val, random, _ = lines()
    assert (full.ours.mean, full.effect, full.verdict) == (52.0, None, "")
    assert random.effect.values == pytest.approx((-2.0, -1.9, -2.1))
    assert (random.paper, random.wanted, random.verdict) == (None, -1.6, "agrees")  # against the effect on val
    assert (k2.verdict, k2.effect.mean) == ("one seed only", 1.0)
    assert (k2_val.ours, k2_val.paper, k2_val.reason) == (None, 66.1, "a reason")


def test_csv_holds_every_number():
    found = list(csv.DictReader(io.StringIO(csv_text(TABLES[4], lines()))))
    assert list(found[0]) == list(COLUMNS)
    assert len(found) == 6
    by_name = {(row["row"], row["score"]): row for row in found}
    random = by_name["random", "maps"]
    assert (random["mean"], random["seeds"], random["values"]) == ("50.0", "0 1 2", "48.0000 50.1000 51.9000")
    assert float(random["low"]) == pytest.approx(50 - 4.30265 * 1.95192 / 3**0.5, abs=1e-3)
    assert (by_name["k-2", "maps"]["std"], by_name["random", "val"]["mean"], by_name["random", "val"]["paper"]) == (
        "",
        "",
        "67.1",
    )


def test_the_files(tmp_path):
    paths = write_table(tmp_path, TABLES[4], lines(), ["A fact & more."])
    assert [path.name for path in paths] == ["table-4.csv", "table-4.md", "table-4.html"]
    page = paths[2].read_text()
    assert "A fact &amp; more." in page
    assert "50.0 ± 2.0" in page
    assert "http" not in page
    assert markdown(TABLES[4], lines(), []).count("\n| ") == 8
    assert "-2.0 (-2.0 -1.9 -2.1)" in paths[1].read_text()


def test_scores_of_a_folder(tmp_path):
    assert read_score(tmp_path, "maps", "graph") is None
    metrics = {"seconds": {"cam": 1}, "cam": {"graph": {"miou": 41.5}}}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    assert read_score(tmp_path, "maps", "graph") == 41.5
    assert read_score(tmp_path, "val", "graph") is None
    (tmp_path / "metrics.json").write_text(json.dumps(metrics | {"outdated": ["cam"]}))
    assert read_score(tmp_path, "maps", "graph") is None  # a former run's
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(GwsssError, match="damaged"):
        read_score(tmp_path, "maps", "graph")
