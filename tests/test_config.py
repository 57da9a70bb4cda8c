"""Configurations: strict reading, round trip, presets that say what the paper says."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from gwsss_fast.config import (
    Config,
    absolute_paths,
    check,
    differences,
    load_config,
    preset_names,
    read_config,
    to_yaml,
)
from gwsss_fast.config.yaml_files import PRESETS
from gwsss_fast.errors import GwsssError
from gwsss_fast.GroupGNN import GroupGNN
from gwsss_fast.training.build import GRAPH_OPTIONS, graph_options


@pytest.mark.parametrize("preset", preset_names())
def test_a_configuration_survives_its_own_yaml(preset: str, tmp_path: Path) -> None:
    config = load_config(preset)
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert load_config(path) == config


def test_every_changed_value_survives() -> None:
    text = """
seed: 7
threads: 2
max_steps: 5
data: {root: some where, workers: 0, saliency: maps}
model: {steps: 0, temperature: 3, tied: true, score: bilinear, graph_dropout: false}
classifier: {loss_weights: [1, 0, 0.5], scale: [0.1, 0.2], clip_norm: 2.5, sampling: one-common}
cam: {scales: [1], flip: false, size: 64}
pseudo: {background: alpha, crf: irn}
segmenter: {rates: [1, 2], body: tiny, init: source}
evaluate: {scales: [0.5, 1], ignored_prediction: ignore}
"""
    config = read_config(text, "here")
    assert read_config(to_yaml(config), "there") == config
    assert len(differences(Config(), config)) == 25
    assert config.classifier.loss_weights == (1.0, 0.0, 0.5)


def test_the_folder_of_a_run_is_not_repeated() -> None:
    assert read_config(to_yaml(read_config("output: here", "f")), "f").output is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("classifier: {epoch: 3}", ["own.yaml", "classifier.epoch", "'epochs'"]),
        ("clasifier: {epochs: 3}", ["clasifier", "'classifier'"]),
        ("classifier: {epochs: 3.5}", ["classifier.epochs = 3.5", "whole number"]),
        ("classifier: {epochs: true}", ["classifier.epochs = True", "whole number"]),
        ("classifier: {graph_lr: fast}", ["classifier.graph_lr = 'fast'", "a number"]),
        ("classifier: {flip: 1}", ["classifier.flip = 1", "true or false"]),
        ("data: {root: 3}", ["data.root = 3", "text"]),
        ("device: tpu", ["device = 'tpu'", "auto, cpu, cuda"]),
        ("cam: {scales: 1.0}", ["cam.scales = 1.0", "list"]),
        ("classifier: {loss_weights: [1, 0]}", ["classifier.loss_weights", "3 numbers"]),
        ("classifier: 3", ["classifier", "section"]),
        ("- a\n- b", ["own.yaml", "key: value"]),
        ("a: [1", ["own.yaml", "not valid YAML"]),
        ("classifier: {epochs: 0}", ["classifier.epochs = 0", "at least 1"]),
        ("classifier: {scale: [0.9, 0.1]}", ["classifier.scale"]),
        ("cam: {scales: []}", ["cam.scales"]),
        ("cam: {scales: [1, .nan]}", ["cam.scales = nan", "finite"]),
        ("evaluate: {scales: [.inf]}", ["evaluate.scales = inf", "finite"]),
        ("segmenter: {rates: [6, 0]}", ["segmenter.rates", "above 0"]),
        ("classifier: {step_factor: .nan}", ["classifier.step_factor = nan", "finite"]),
        ("classifier: {loss_weights: [0, .nan, 1]}", ["classifier.loss_weights = nan", "finite"]),
        ("classifier: {clip_norm: 0}", ["classifier.clip_norm = 0.0", "above 0"]),
        ("segmenter: {clip_norm: -1}", ["segmenter.clip_norm = -1.0", "above 0"]),
        ("classifier: {message_lr_factor: -1}", ["classifier.message_lr_factor = -1.0", "at least 0"]),
        ("classifier: {bias_lr_factor: -1}", ["classifier.bias_lr_factor = -1.0", "at least 0"]),
        ("segmenter: {head_lr_factor: -1}", ["segmenter.head_lr_factor = -1.0", "at least 0"]),
        ("segmenter: {head_bias_lr_factor: -1}", ["segmenter.head_bias_lr_factor = -1.0", "at least 0"]),
        ("classifier: {plain_epochs: -1}", ["classifier.plain_epochs = -1.0", "at least 0"]),
        ("pseudo: {threshold: 7}", ["pseudo.threshold = 7.0", "at most 1"]),
        ("seed: 99999999999999999999999", ["seed = 99999999999999999999999", "at most"]),
        ("threads: 9999999999", ["threads = 9999999999", "at most"]),
        ("classifier: {nesterov: true, momentum: 0}", ["classifier.nesterov", "classifier.momentum"]),
        ("classifier: {loss_weights: [0, 0, 0]}", ["classifier.loss_weights"]),
        ("cam: {oaa: true}", ["cam.oaa", "squash"]),
        ("extends: quik", ["'quik'", "'quick'"]),
        ("extends: own", ["extends itself"]),
    ],
)
def test_a_bad_file_is_one_error_that_names_file_key_and_remedy(text: str, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(GwsssError) as caught:
        load_config(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_yaml_reads_numbers_as_people_write_them() -> None:
    config = read_config("classifier: {graph_lr: 1e-3, backbone_lr: 1, warmup_steps: 5}", "f")
    assert (config.classifier.graph_lr, config.classifier.backbone_lr) == (0.001, 1.0)


def test_files_extend_files_beside_them(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("extends: quick\nclassifier: {epochs: 77, groups: 5}\n")
    (tmp_path / "own.yaml").write_text("extends: base\nclassifier: {groups: 6}\n")
    changed = differences(load_config("quick"), load_config(tmp_path / "own.yaml"))
    assert {key: new for key, (_, new) in changed.items()} == {"classifier.epochs": 77, "classifier.groups": 6}


def test_paths_are_made_absolute_where_they_exist_and_words_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("photos", "maps"):
        (tmp_path / name).mkdir()
    for name in ("net.py", "start.pth", "mine.txt", "default"):
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    text = """
data: {root: photos, saliency: maps, val_list: mine.txt, train_list: train, labels: auto}
model: {backbone: "net.py:build", weights: default}
segmenter: {body: "package.net:build", weights: start.pth}
"""
    config = absolute_paths(read_config(text, "here"))
    assert (config.data.root, config.data.saliency) == (str(tmp_path / "photos"), str(tmp_path / "maps"))
    assert (config.data.val_list, config.data.train_list) == (str(tmp_path / "mine.txt"), "train")
    assert (config.data.labels, config.data.classes_file) == ("auto", None)
    assert (config.model.backbone, config.model.weights) == (f"{tmp_path / 'net.py'}:build", "default")
    assert (config.segmenter.body, config.segmenter.weights) == ("package.net:build", str(tmp_path / "start.pth"))
    assert absolute_paths(config) == config
    assert absolute_paths(Config()) == Config()


def test_an_unknown_preset_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(GwsssError, match="'quik'; did you mean 'quick'"):
        load_config("quik")
    with pytest.raises(GwsssError, match=r"nowhere/own\.yaml does not exist"):
        load_config("nowhere/own.yaml")


def test_graph_options_are_those_of_the_constructor_and_none_means_its_default() -> None:
    parameters = inspect.signature(GroupGNN).parameters
    assert set(GRAPH_OPTIONS) <= set(parameters)
    assert set(parameters) - set(GRAPH_OPTIONS) == {"in_channels", "num_classes", "backend"}
    assert graph_options(load_config("quick").model) == {}
    assert graph_options(load_config("ablation/no-dropout").model) == {"drop_rate": None}


def test_the_paper_preset_is_literal() -> None:
    """Section VI-A3 and Eq. 1-17, written out here from the paper."""
    config = load_config("paper")
    literal = {
        "steps": 3,
        "reduction": 4,
        "drop_rate": 0.8,
        "drop_threshold": 0.7,
        "drop_scale": "literal",
        "drop_per_node": False,
        "drop_eval": "identity",
        "gru_kernel_size": 1,
        "reverse": "transpose",
        "score": "bilinear",
        "aggregate": "sum",
        "tied": False,
        "gate_bias": 0.0,
        "node_scale": "literal",
        "graph_gradient": "full",
        "self_edge": True,
        "edge_supervision": True,
        "checkpoint_steps": False,
    }
    assert graph_options(config.model) == literal
    assert graph_options(load_config("ablation/paper-graph").model) == literal
    stage = config.classifier
    assert (config.model.backbone, stage.size, stage.group_size, stage.epochs) == ("vgg16", 224, 4, 15)
    assert (stage.backbone_lr, stage.graph_lr, stage.momentum, stage.weight_decay) == (1e-3, 1e-2, 0.9, 5e-4)
    assert (stage.schedule, stage.step_epochs, stage.step_factor) == ("step", 5, 0.1)
    assert (stage.loss_weights, stage.sampling) == ((0.7, 0.1, 0.2), "greedy")


def test_the_authors_code_preset_sets_every_option_of_its_column() -> None:
    config = load_config("authors-code")
    stage, model = config.classifier, config.model
    assert (stage.group_size, stage.sampling, stage.size, stage.mode, stage.flip) == (
        3,
        "one-common",
        256,
        "squash",
        False,
    )
    assert (model.reduction, model.reverse, model.self_edge) == (2, "directed", False)
    assert stage.loss_weights == pytest.approx((1 / 6, 0.4 / 6, 0), abs=1e-7)
    assert (stage.bias_lr_factor, stage.nesterov, config.cam.oaa) == (2.0, True, True)
    assert stage.color_jitter > 0


ROWS: dict[str, dict[str, Any]] = {
    "no-group": {"model.steps": 0, "classifier.sampling": "random", "classifier.loss_weights": (1.0, 0.0, 0.0)},
    "no-dropout": {"model.graph_dropout": False},
    "k-2": {"classifier.group_size": 2},
    "k-3": {"classifier.group_size": 3},
    "k-5": {"classifier.group_size": 5},
    "k-6": {"classifier.group_size": 6},
    "t-2": {"model.steps": 2},
    "t-4": {"model.steps": 4},
    "t-5": {"model.steps": 5},
    "dropout-0.8-0.9": {"model.drop_rate": 0.8, "model.drop_threshold": 0.9},
    "dropout-0.8-0.5": {"model.drop_rate": 0.8, "model.drop_threshold": 0.5},
    "dropout-0.6-0.7": {"model.drop_rate": 0.6, "model.drop_threshold": 0.7},
    "dropout-0.4-0.7": {"model.drop_rate": 0.4, "model.drop_threshold": 0.7},
    "no-intermediate": {
        "model.graph_gradient": "full",
        "classifier.loss_weights": (0.7, 0.0, 0.2),
        "pseudo.readout": "graph",
    },
    "no-edge": {"model.edge_supervision": False, "classifier.loss_weights": (0.7, 0.5, 0.0)},
    "intermediate-only": {"pseudo.readout": "initial"},
    "graph-only": {"pseudo.readout": "graph"},
    "random": {"classifier.sampling": "random"},
    "one-common": {"classifier.sampling": "one-common"},
}


@pytest.mark.parametrize("row", ROWS)
def test_each_row_of_tables_iv_and_v_is_a_preset_of_differences(row: str) -> None:
    text = (PRESETS / "ablation" / f"{row}.yaml").read_text()
    stored = yaml.safe_load(text)
    assert stored.pop("extends") == "quick"
    keys = {f"{section}.{key}" for section, values in stored.items() for key in values}
    assert keys == set(ROWS[row])
    changed = differences(load_config("quick"), load_config(f"ablation/{row}"))
    assert set(changed) <= set(ROWS[row])
    for key, (_, new) in changed.items():
        assert new == ROWS[row][key]


def test_check_names_its_source() -> None:
    with pytest.raises(GwsssError, match=r"command line: seed = -1"):
        check(read_config("seed: -1", "f"), "command line")


def test_pretrained_values_hold_for_every_backbone_but_tiny(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("classifier: {size: 64, epochs: 5}\npretrained:\n  classifier: {size: 128}\n")
    child = tmp_path / "child.yaml"
    child.write_text("extends: own.yaml\nclassifier: {epochs: 6}\n")
    for backbone, size in ((None, 64), ("tiny", 64), ("vgg16", 128)):
        options = load_config(child, backbone).classifier
        assert (options.size, options.epochs) == (size, 6)
    child.write_text("extends: own.yaml\nmodel: {backbone: vgg16}\n")
    assert load_config(child).classifier.size == 128
    path.write_text("model: {backbone: vgg16}\npretrained:\n  classifier: {size: 128, epoch: 3}\n")
    with pytest.raises(GwsssError, match=r"pretrained\.classifier\.epoch; did you mean 'epochs'"):
        load_config(path)
    path.write_text("model: {backbone: vgg16}\npretrained: 3\n")
    with pytest.raises(GwsssError, match="pretrained is a section"):
        load_config(path)
