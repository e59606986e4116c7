"""Reading a configuration: YAML, overrides from the command line, paths, and mistakes named by their keys."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.errors import ConfigError, PhyspreError, nearest
from mdl_physpre.potentials.backbones.registry import unknown_hyperparameters
from mdl_physpre.potentials.open import is_scheme, names_a_potential
from mdl_physpre.stress_tests.kinds import make_test
from mdl_physpre.utils.settings import Settings, mistakes
from mdl_physpre.utils.strict_yaml import load_yaml, told
from mdl_physpre.workflow.config.recipes import left_to_data, with_recipe
from mdl_physpre.workflow.config.schema import Config, Model
from mdl_physpre.workflow.config.start import with_start

SPELLINGS = "mdl_physpre.spellings"
"""Entry-point group of functions that translate the spelling of another program: (sections, source) → sections."""


def _override(raw: dict[str, Any], text: str) -> None:
    """Put ``section.key=value`` in."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise ConfigError(f"{text!r} is not of the form section.key=value")
    *path, last = key.split(".")
    here: Any = raw
    for part in path:
        if here.get(part) is None:
            here[part] = {}
        here = here[part]
        if not isinstance(here, dict):
            raise ConfigError(f"{key}: {part!r} is a value, not a section")
    try:
        here[last] = numbers(load_yaml(value))
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: {value!r} is not YAML: {told(error)}") from None


def _without_bare_keys(raw: Any) -> Any:
    """MatDeepLearn's sample files hold ``?`` lines, that is keys that are null, and empty sections."""
    if isinstance(raw, dict):
        return {k: _without_bare_keys(v) for k, v in raw.items() if k is not None}
    return raw


def numbers(raw: Any) -> Any:
    """YAML 1.1 reads ``5e-4`` as a word; people mean a number."""
    if isinstance(raw, dict):
        return {k: numbers(v) for k, v in raw.items()}
    if isinstance(raw, list):
        return [numbers(v) for v in raw]
    if isinstance(raw, str) and raw[:1] in "+-.0123456789" and "e" in raw.lower():
        try:
            return float(raw)
        except ValueError:
            return raw
    return raw


def translated(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The sections in the spelling of this package, whatever registered spelling they have.

    Raises ConfigError for a thing that is said twice, in two spellings, with different values.
    """
    found = numbers(_without_bare_keys(dict(raw)))
    for point in entry_points(group=SPELLINGS):
        found = point.load()(found, source)
    return found


def _with_override(raw: dict[str, Any], text: str, source: str) -> None:
    """Put ``section.key=value`` in, in whatever spelling."""
    alone: dict[str, Any] = {}
    _override(alone, text)
    ours = translated(alone, source)
    if ours == alone:
        _override(raw, text)
        return
    _merge(raw, ours)


def _merge(raw: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, Mapping):
            raw[key] = dict(raw.get(key) or {})
            _merge(raw[key], value)
        else:
            raw[key] = value


def parse_config(
    raw: Mapping[str, Any], source: str = "configuration", overrides: Sequence[str] = (), own_network: bool = True
) -> Config:
    """Check a configuration given as nested mappings.

    Parameters
    ----------
    raw : its sections.
    source : what errors call it.
    overrides : those that were put in, to be named where they are at fault.
    own_network : whether ``model`` is a network of this package; another program checks its own.

    Raises
    ------
    ConfigError : unknown, missing, mistyped or contradictory keys, each named.
    """
    said = {k: ({} if v is None and k in Config.model_fields else v) for k, v in translated(raw, source).items()}
    wrong: list[str] = []
    try:
        if isinstance(model := said.get("model"), Mapping) and model.get("start_from"):
            said["model"] = with_start(model)
        values = with_recipe(said)
        wrong = _unknown_hyperparameters(values.get("model")) if own_network else []
        config = Config.model_validate(values)
        config._left_to_data = left_to_data(said)
    except ValidationError as error:
        wrong = [*mistakes(error, Config), *wrong]
    except PhyspreError as error:
        raise ConfigError(f"{source}: {error}") from None
    if wrong:
        raise ConfigError("\n  ".join(_with_places(wrong, source, overrides)))
    try:  # what holds of several sections together
        config.training_settings(), config.pretraining_settings(), config.dynamics_settings()
    except PhyspreError as error:
        raise ConfigError(f"{source}: {error}") from None
    return config


def _with_places(wrong: Sequence[str], source: str, overrides: Sequence[str]) -> list[str]:
    """Mistakes, those of the file first, after its name; each other with the override that it comes from."""
    in_file: list[str] = []
    of_overrides: list[str] = []
    for line in wrong:
        key = line.partition(":")[0]
        given = {text: text.partition("=")[0] for text in overrides}
        text = next((t for t, k in given.items() if f"{key}.".startswith(f"{k}.") or f"{k}.".startswith(f"{key}.")), "")
        (of_overrides if text else in_file).append(f"{text}: {line}" if text else line)
    return [f"{source}: {line}" if not k else line for k, line in enumerate(in_file)] + of_overrides


def _unknown_hyperparameters(model: Any) -> list[str]:
    """Keys of ``model`` that its backbone does not take. What is wrong with the section besides is said elsewhere."""
    if not isinstance(model, Mapping) or not isinstance(model.get("name"), str):
        return []
    own = {str(key) for key in model} - set(Model.model_fields)
    try:
        return [f"model.{key}: {said}" for key, said in unknown_hyperparameters(model["name"], own).items()]
    except PhyspreError as error:
        return [f"model.name: {error}"]


def dynamics_settings(named: Mapping[str, Any], overrides: Sequence[str] = ()) -> DynamicsSettings:
    """Settings of molecular dynamics by name, with ``key=value`` put in.

    Raises
    ------
    ConfigError : unknown keys, with the nearest known one; values that cannot be used.
    """
    raw = dict(named)
    for text in overrides:
        _override(raw, text)
    return DynamicsSettings(**numbers(raw))


def stress_settings(tests: Sequence[str], overrides: Sequence[str] = ()) -> dict[str, Settings]:
    """Settings of stress tests by name, with ``test.key=value`` put in.

    Raises
    ------
    ConfigError : unknown tests or keys, with the nearest known one; a setting of a test that is not done.
    """
    raw: dict[str, Any] = {name.strip(): {} for name in tests if name.strip()}
    for text in overrides:
        name = next((name for name in raw if text.startswith(f"{name}.")), None)
        if name is None:
            raise ConfigError(f"{text!r} is a setting of none of the tests; {nearest(text.split('.')[0], raw)}")
        _override(raw[name], text.removeprefix(f"{name}."))
    return {name: make_test(name, numbers(values)).settings for name, values in raw.items()}


def read_raw(
    path: Path, overrides: Sequence[str] = (), sections: str = "task, model, optim, dataset, physpre"
) -> dict[str, Any]:
    """The sections of a YAML file with ``section.key=value`` overrides put in, not checked any further.

    Raises
    ------
    ConfigError : a file that cannot be read, is not YAML or has no sections; an override of another form.
    """
    try:
        raw = load_yaml(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {told(error)}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected sections ({sections}), found {type(raw).__name__}")
    for text in overrides:
        _override(raw, text)
    return numbers(raw)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration file and put ``section.key=value`` overrides in.

    Paths of data become absolute: ``~`` and environment variables are expanded; a relative path is looked for from
    the working directory first, then from the configuration's folder.

    Raises
    ------
    ConfigError : a file that cannot be read or is not YAML, a variable that is not set, unknown or wrong keys.
    """
    path = Path(path)
    raw = translated(read_raw(path), str(path))
    for text in overrides:
        _with_override(raw, text, str(path))
    model = raw.get("model")
    if isinstance(model, dict) and isinstance(model.get("start_from"), str):
        raw["model"] = {**model, "start_from": resolve_path(model["start_from"], path.resolve().parent)}
    task = raw.get("task")
    raw["task"] = task = dict(task) if isinstance(task, dict) else {}
    if not task.get("identifier"):
        task["identifier"] = path.stem
    return with_absolute_paths(parse_config(raw, str(path), overrides), path.resolve().parent, str(path))


def with_absolute_paths(config: Config, folder: Path, source: str = "configuration") -> Config:
    """The configuration with the paths of its data expanded; a relative one is looked for from the working directory
    first, then from ``folder``.

    Raises
    ------
    ConfigError : a variable that is not set, or a checkpoint that is not there.
    """
    dataset, physpre = config.dataset, config.physpre
    src, options = dataset.src, dict(dataset.options)
    if isinstance(options.get("root"), str):  # where load-atoms keeps what it downloads
        options["root"] = expand(options["root"])
    data_files: dict[str, Any] = {
        "src": {k: _resolved(v, folder) for k, v in src.items()} if isinstance(src, dict) else _resolved(src, folder),
        "extra_tests": {k: resolve_path(v, folder) for k, v in dataset.extra_tests.items()},
        "options": options,
    }
    more: dict[str, Any] = {"cache_dir": physpre.cache_dir and expand(physpre.cache_dir)}
    if physpre.eam.checkpoint:
        checkpoint = resolve_path(physpre.eam.checkpoint, folder)
        if not Path(checkpoint).is_file():
            raise ConfigError(f"{source}: physpre.eam.checkpoint: {checkpoint}: no such file")
        more["eam"] = physpre.eam.model_copy(update={"checkpoint": checkpoint})
    for section, key in (("teacher", "potential"), ("dynamics", "oracle"), ("stress", "oracle")):
        name = getattr(settings := getattr(physpre, section), key, None)
        if name is None or is_scheme(name):
            continue
        found = resolve_path(name, folder)
        if names_a_potential(found):
            more[section] = settings.model_copy(update={key: found})
        elif Path(name).suffix in (".pt", ".pth", ".ckpt"):
            raise ConfigError(f"{source}: physpre.{section}.{key}: {found}: no such file")
    return config.model_copy(
        update={"dataset": dataset.model_copy(update=data_files), "physpre": physpre.model_copy(update=more)}
    )


def expand(text: str) -> str:
    """``text`` with ``~`` and environment variables put in; ``$PHYSPRE_DEMO`` is the folder of the demo's data.

    Raises
    ------
    ConfigError : a variable that is not set.
    """
    text = text.replace("$PHYSPRE_DEMO", str(Path(__file__).parents[2] / "demo"))
    expanded = os.path.expandvars(os.path.expanduser(text))
    if "$" in expanded:
        name = expanded.split("$", 1)[1].strip("{").split("}")[0].split("/")[0]
        raise ConfigError(f"{text}: the environment variable {name} is not set; set it to the folder that is meant")
    return expanded


def _resolved(source: str | list[str], folder: Path) -> str | list[str]:
    return resolve_path(source, folder) if isinstance(source, str) else [resolve_path(one, folder) for one in source]


def resolve_path(text: str, folder: Path) -> str:
    """An absolute path; ``load-atoms:NAME`` stays as it is. Raises ConfigError as :func:`expand` does."""
    if text.startswith("load-atoms:"):
        return text
    path = Path(expand(text))
    if not path.is_absolute() and not path.exists() and not glob.glob(str(path), recursive=True):
        path = folder / path
    return str(path.absolute())
