"""The configuration: defaults, overrides, paths, and what a mistake is told."""

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from mdl_physpre.cli.runs import init
from mdl_physpre.errors import ConfigError
from mdl_physpre.hosts.matdeeplearn.spellings import SAME
from mdl_physpre.workflow.config.examples import examples, write_example
from mdl_physpre.workflow.config.file import load_config, parse_config
from mdl_physpre.workflow.config.reference import page, section
from mdl_physpre.workflow.config.schema import Config

ROOT = Path(__file__).parents[2]
LEAST = {"dataset": {"src": "x.extxyz"}, "model": {"name": "CGCNN"}}


def write(folder, content):
    path = folder / "c.yml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_least_configuration_has_the_papers_defaults(tmp_path):
    config = load_config(write(tmp_path, LEAST))
    training = config.training_settings()
    assert (training.weight_energy, training.weight_force, training.weight_stress) == (0.01, 50, 50)
    assert (training.clip_grad_norm, training.scheduler_factor, training.scheduler_patience) == (10, 0.8, 10)
    assert config.physpre.arms == ["baseline", "pretrain"]
    assert config.task.identifier == "c"
    assert config.dataset.src == str(tmp_path / "x.extxyz")


def test_pretraining_takes_what_it_does_not_say_from_optim(tmp_path):
    config = load_config(write(tmp_path, {**LEAST, "optim": {"lr": 0.01}}), ["physpre.pretrain.max_epochs=7"])
    assert config.pretraining_settings().max_epochs == 7
    assert config.pretraining_settings().lr == config.training_settings().lr == 0.01


def test_yaml_numbers_without_a_dot_are_numbers(tmp_path):
    path = tmp_path / "c.yml"
    path.write_text("dataset: {src: x.xyz}\nmodel: {name: CGCNN}\noptim: {lr: 5e-4}\n")
    assert load_config(path).optim.lr == 5e-4


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.lrr=3", "optim.lrr: unknown key; did you mean 'lr'"),
        ("physpre.dynamcs.steps=1", "physpre.dynamcs: unknown key; did you mean 'dynamics'"),
        ("physpre.dynamics.temprature=4", "did you mean 'temperature'"),
        ("optim.lr=fast", "optim.lr: found 'fast'"),
        ("optim.lr=-1", "optim.lr: found -1"),
        ("model=null", "model.name: missing"),
        ("physpre.arms=[]", "at least one arm"),
        ("physpre.arms=[baseline,baseline]", "only once"),
        ("physpre.arms=[sam2]", "physpre.arms: found ['sam2']; arm 'sam2': unknown part 'sam2'; did you mean 'sam'?"),
        ("physpre.dynamics.steps=1.5", "physpre.dynamics.steps: found 1.5"),
        ("dataset.fraction=0", "dataset.fraction: found 0"),
        ("dataset.src=$NO_SUCH_VARIABLE/x", "NO_SUCH_VARIABLE is not set"),
        ("optim", "not of the form section.key=value"),
        ("model.name.x=1", "is a value, not a section"),
    ],
)
def test_mistakes_are_named(tmp_path, override, words):
    with pytest.raises(ConfigError) as error:
        load_config(write(tmp_path, LEAST), [override])
    assert words in str(error.value)


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "\x00"])
def test_a_file_that_is_not_a_configuration(tmp_path, content):
    path = tmp_path / "c.yml"
    path.write_text(content)
    with pytest.raises(ConfigError, match="c.yml"):
        load_config(path)


def test_keys_that_only_the_host_acts_on_are_accepted():
    host = {
        "task": {"run_mode": "train", "parallel": False},
        "model": {"name": "CGCNN", "model_ensemble": 1, "edge_steps": 50, "dim1": 32},
        "dataset": {
            "src": "x.json",
            "train_ratio": 0.9,
            "preprocess_params": {"n_neighbors": 250, "cutoff_radius": 6.0},
        },
    }
    config = parse_config(host)
    assert config.model.hyperparameters == {"dim1": 32}
    assert config.model.cutoff == 6.0


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yml")), ids=lambda p: p.stem)
def test_every_configuration_loads(path, monkeypatch):
    monkeypatch.setenv("PHYSPRE_DATA", "/data")
    config = load_config(path)
    assert config.physpre.arms[0] == "baseline" and len(config.physpre.arms) > 1
    assert Path(config.dataset.src).is_absolute()


@pytest.mark.parametrize(
    "name, file",
    [("silica", "silica_eam_pretrain"), ("phosphorus", "phosphorus_cgcnn"), ("paper/silica_m3gnet", "silica_m3gnet")],
)
def test_a_configuration_is_written_into_a_folder(name, file, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PHYSPRE_DATA", "/data")
    monkeypatch.chdir(tmp_path)
    init(name)
    assert capsys.readouterr().out == f"{file}.yml\n"
    assert load_config(f"{file}.yml").task.identifier == file
    Path(f"{file}.yml").write_text("mine")
    with pytest.raises(ConfigError, match=rf"{file}.yml exists, and is not overwritten"):
        write_example(name)
    assert Path(f"{file}.yml").read_text() == "mine"


def test_the_demos_configuration_finds_its_data_from_any_folder(tmp_path):
    config = load_config(write_example("demo", tmp_path))
    assert all(Path(file).is_file() for file in (config.dataset.src, *config.dataset.extra_tests.values()))


def test_an_unknown_configuration_is_refused_and_all_are_listed(tmp_path, capsys):
    with pytest.raises(ConfigError, match="no configuration 'silicon_m'; known: demo, .*silicon_mace.*paper/silica_cg"):
        write_example("silicon_m", tmp_path)
    assert not list(tmp_path.iterdir())
    init()
    listed = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["mattertune/silica_quick", "A few minutes on one core"] in [[name, text[:25]] for name, text in listed]


def test_the_wheel_brings_every_configuration():
    package = ROOT / "mdl_physpre"
    patterns = re.search(r'^"mdl_physpre" = \[(.*)\]', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    brought = {file for pattern in yaml.safe_load(f"[{patterns}]") for file in package.glob(pattern)}
    assert brought == set(package.rglob("configs/**/*.yml")) and len(brought) == len(examples()) >= 18
    assert {file.resolve() for file in (ROOT / "configs").glob("**/*.yml")} == brought


def test_every_line_of_the_configurations_is_explained():
    for path in (ROOT / "configs").glob("*.yml"):
        for line in path.read_text().splitlines():
            key, _, value = line.partition(":")
            if value.split("#")[0].strip() and not line.startswith("#") and not value.strip().startswith("{"):
                name = key.strip()
                explained = "#" in line or name in ("name", "lr", "batch_size", "max_epochs", "src", "steps")
                assert explained, f"{path.name}: {line}"


HOST = {
    "loss": {"loss_type": "ForceStressLoss", "loss_args": {"weight_energy": 1, "weight_force": 2, "weight_stress": 3}},
    "loss_function": "huber",
    "optimizer": {"optimizer_type": "AdamW", "optimizer_args": {"weight_decay": 0.1, "betas": [0.9, 0.99]}},
    "scheduler": {
        "scheduler_type": "ReduceLROnPlateau",
        "scheduler_args": {"factor": 0.5, "patience": 3, "threshold": 0.1, "min_lr": 1e-6, "mode": "min"},
    },
}
OURS = {
    "weight_energy": 1, "weight_force": 2, "weight_stress": 3, "loss": "huber", "weight_decay": 0.1,
    "scheduler_factor": 0.5, "scheduler_patience": 3, "scheduler_threshold": 0.1, "min_lr": 1e-6,
}  # fmt: skip


def test_the_hosts_spelling_is_the_same_configuration(tmp_path):
    ours = parse_config({**LEAST, "model": {"name": "CGCNN", "cutoff": 6.0}, "optim": OURS})
    graph = {"src": "x.extxyz", "preprocess_params": {"cutoff_radius": 6.0, "n_neighbors": 9}}
    assert parse_config({**LEAST, "dataset": graph, "optim": HOST}) == ours
    overrides = [
        "optim.loss.loss_args={weight_energy: 1, weight_force: 2, weight_stress: 3}",
        "optim.loss_function=huber",
    ]
    overrides += ["optim.optimizer.optimizer_args.weight_decay=0.1", "model.cutoff=6.0", "optim.min_lr=1e-6"]
    overrides += ["optim.scheduler={scheduler_args: {factor: 0.5, patience: 3, threshold: 0.1}}"]
    assert load_config(write(tmp_path, LEAST), overrides).optim == ours.optim


def test_an_override_wins_in_either_spelling(tmp_path):
    path = write(tmp_path, {**LEAST, "optim": HOST})
    for override in ("optim.weight_force=9", "optim.loss.loss_args.weight_force=9"):
        assert load_config(path, [override]).optim.weight_force == 9
    assert load_config(path, ["optim.loss.loss_type=ForceLoss"]).optim.weight_stress == 0


@pytest.mark.parametrize(
    ("optim", "words"),
    [
        ({"loss": {"loss_args": {"weight_forse": 1}}}, "optim.loss.loss_args.weight_forse: unknown key; did you mean"),
        ({"loss": {"loss_type": "MSE"}}, "optim.loss.loss_type: found 'MSE'"),
        ({"weight_force": 1, "loss": {"loss_args": {"weight_force": 2}}}, "two names of one thing"),
        ({"loss": "maee"}, "optim.loss: found 'maee'"),
    ],
)
def test_mistakes_in_the_hosts_spelling_are_named(optim, words):
    with pytest.raises(ConfigError) as error:
        parse_config({**LEAST, "optim": optim})
    assert words in str(error.value)


def test_one_value_in_both_spellings_is_no_contradiction():
    both = {"weight_decay": 0.1, "optimizer": {"optimizer_args": {"weight_decay": "1e-1"}}}  # YAML 1.1 reads a word
    assert parse_config({**LEAST, "optim": both}).optim.weight_decay == 0.1


def test_the_page_of_the_configuration_is_current():
    """``python -m mdl_physpre.workflow.config.reference > docs/configuration.md`` writes it anew."""
    assert (ROOT / "docs" / "configuration.md").read_text() == page()


def test_every_key_has_a_sentence():
    def check(model, name):
        for key, field in model.model_fields.items():
            assert field.description, f"{name}.{key}"
            inner = [a for a in (field.annotation, *get_args(field.annotation)) if hasattr(a, "model_fields")]
            for one in inner:
                check(one, f"{name}.{key}")

    check(Config, "")
    assert "| `temperature` | `300.0` | K |" in section("physpre.dynamics")
    with pytest.raises(ConfigError, match="did you mean 'physpre.dynamics'"):
        section("physpre.dynamic")


def test_every_spelling_stands_on_the_page_of_the_host():
    page_of_host = (ROOT / "docs" / "matdeeplearn.md").read_text()
    for theirs, ours in SAME.items():
        assert f"| `{theirs}` | `{ours}` |" in page_of_host


def test_an_override_in_the_hosts_spelling_is_named_once(tmp_path):
    with pytest.raises(ConfigError) as error:
        load_config(write(tmp_path, LEAST), ["optim.optimizer.optimizer_type=SGD"])
    assert str(error.value) == f"{tmp_path / 'c.yml'}: optim.optimizer.optimizer_type: found 'SGD'; known: AdamW"
    with pytest.raises(ConfigError, match="physpre.sam: found 3; expected a section of keys"):
        load_config(write(tmp_path, LEAST), ["physpre.sam=3"])


def test_every_mistake_is_said_at_once_and_an_override_is_named(tmp_path):
    path = tmp_path / "a.yml"
    path.write_text(
        "dataset: {src: gone.extxyz, split: {test: many}}\nmodel: {name: CGCNN, dimm1: 8, gc_cuont: 2}\n"
        "optim: {lr: [1, 2], batch_size: 2.5}\n"
    )
    with pytest.raises(ConfigError) as found:
        load_config(path, ["optim.max_epochs=soon", "model.post_fc_cuont=1"])
    lines = str(found.value).splitlines()
    assert lines[0].startswith(f"{path}: ")
    for text in (
        "dataset.split.test: found 'many'; expected", "model.dimm1: backbone 'CGCNN' has no hyperparameter",
        "model.gc_cuont: backbone", "optim.lr: found [1, 2]; expected a number", "optim.batch_size: found 2.5",
    ):  # fmt: skip
        assert sum(text in line for line in lines) == 1, (text, lines)
    assert any(line.startswith("  optim.max_epochs=soon: optim.max_epochs: found 'soon'; ") for line in lines)
    assert any(line.startswith("  model.post_fc_cuont=1: model.post_fc_cuont: backbone") for line in lines)
    assert not any(word in str(found.value) for word in ("Input should", "instance of", "dict[", "literal["))


@pytest.mark.parametrize("src", ["3", "{train: 3, test: [a, {b: c}]}", "{trian: a, test: b}"])
def test_a_value_of_several_kinds_is_one_mistake_in_our_words(tmp_path, src):
    path = tmp_path / "a.yml"
    path.write_text(f"dataset: {{src: {src}}}\nmodel: {{name: CGCNN}}\n")
    with pytest.raises(ConfigError) as found:
        load_config(path)
    assert "dataset.src" in str(found.value)
    assert not any(word in str(found.value) for word in ("Input should", "instance of", "dict[", "literal[", "list["))
