"""Every key of the configuration as a page, from the models themselves.

``python -m mdl_physpre.workflow.config.reference > docs/configuration.md`` writes it anew.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mdl_physpre.errors import ConfigError, nearest
from mdl_physpre.potentials.backbones.registry import backbone_class
from mdl_physpre.utils.settings import Settings
from mdl_physpre.workflow.config.recipes import BY_DATA, NETWORKS, RECIPES
from mdl_physpre.workflow.config.schema import Config

INTRODUCTION = """\
# The configuration

`physpre run FILE` reads a YAML file. `physpre init` lists commented ones, and `physpre init NAME` writes one.
This is the least that runs:

```yaml
dataset: {src: structures.extxyz}
model: {name: CGCNN}
```

Every other key has a default. On the command line `section.key=value` changes one:

    physpre run FILE optim.lr=1e-3 physpre.dynamics.temperature=600

An unknown key is an error that names the nearest known one. Units: eV, Å, eV/Å, eV/Å³, fs, K. `null` is YAML's word for
nothing. `physpre config` prints this page, `physpre config SECTION` one section of it. MatDeepLearn's spelling of the
same keys is read, too: [MatDeepLearn](matdeeplearn.md).

`recipe: default` fills in other values for keys that are not given. They were found by trying, on small sets of DFT
structures, and are what to begin with on data of one's own; the defaults below are the paper's, `recipe: paper`. Some
values follow the data: larger sets get more steps, and stresses have a weight where there are any. What a recipe fills
in stands in the `config.yml` of the run, and the log says what followed the data.

<!-- This page is generated: python -m mdl_physpre.workflow.config.reference > docs/configuration.md -->
"""
BACKBONES = ("CGCNN", "torchmd_etEarly", "M3GNet", "MACE")
LIMITS = {"gt": "> {}", "ge": "≥ {}", "lt": "< {}", "le": "≤ {}"}


def page() -> str:
    """The whole page as Markdown."""
    return "\n".join([INTRODUCTION, recipe(), *(section for _, section in sections()), backbones()])


def section(name: str) -> str:
    """One section, such as ``physpre.dynamics``, as Markdown. Raises ConfigError for a name that is none."""
    found = dict(sections())
    if name not in found:
        raise ConfigError(f"{name!r} is no section; {nearest(name, found)}")
    return found[name]


def sections() -> Iterator[tuple[str, str]]:
    """The name of each section and its part of the page."""
    yield from _sections("", Config)


def _sections(name: str, model: type[Settings]) -> Iterator[tuple[str, str]]:
    inner = {key: found for key, field in model.model_fields.items() if (found := _settings_in(field.annotation))}
    if name:
        keys = [_row(key, field) for key, field in model.model_fields.items() if key not in inner]
        text = [f"## `{name}`", "", inspect.getdoc(model) or "", ""]
        if keys:
            head = ["| key | default | unit | values | what it does |", "|---|---|---|---|---|"]
            text += [*head, *keys, ""]
        yield name, "\n".join(text)
    for key, found in inner.items():
        yield from _sections(f"{name}.{key}".lstrip("."), found)


def _settings_in(annotation: Any) -> type[Settings] | None:
    for one in (annotation, *get_args(annotation)):
        if inspect.isclass(one) and issubclass(one, Settings):
            return one
    return None


def _row(key: str, field: FieldInfo) -> str:
    extra = field.json_schema_extra
    unit = extra.get("unit", "") if isinstance(extra, dict) else ""
    default = "" if field.default is PydanticUndefined or field.default is ... else f"`{_yaml(field.default)}`"
    limits = [form.format(f"{value:g}") for m in field.metadata for name, form in LIMITS.items()
              if (value := getattr(m, name, None)) is not None]  # fmt: skip
    values = ", ".join([_values(field.annotation), *limits])
    cells = [f"`{key}`", default or "must be given", str(unit), values, field.description or ""]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _yaml(value: Any) -> str:
    return str(value) if isinstance(value, str) else json.dumps(value)


def _values(annotation: Any) -> str:
    """What a key takes, in words."""
    names = {
        str: "text",
        int: "whole number",
        float: "number",
        bool: "true or false",
        NoneType: "null",
        Any: "anything",
    }
    origin, inside = get_origin(annotation), get_args(annotation)
    if annotation in names:
        return names[annotation]
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in inside)
    if origin is Annotated:
        return _values(inside[0])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_values(one) for one in inside)).replace("number or whole number", "number")
    if origin is list or (origin is tuple and inside[-1] is Ellipsis):
        return f"list of {_values(inside[0])}"
    if origin is tuple:
        return f"[{', '.join(_values(one) for one in inside)}]"
    return f"mapping of {_values(inside[0])} to {_values(inside[1])}"


def recipe() -> str:
    """What ``recipe: default`` fills in, key by key."""
    rows = ["## `recipe: default`", "", "| key | value |", "|---|---|"]

    def add(values: Mapping[str, Any], name: str) -> None:
        for key, value in values.items():
            if isinstance(value, Mapping):
                add(value, f"{name}{key}.")
            else:
                by_data = BY_DATA.get(f"{name}{key}")
                rows.append(f"| `{name}{key}` | `{_yaml(value)}`{f'; {by_data}' if by_data else ''} |")

    add(RECIPES["default"], "")
    for network, values in NETWORKS["default"].items():
        rows += [f"| `model.{key}` of {network} | `{_yaml(value)}` |" for key, value in values.items()]
    return "\n".join([*rows, ""])


def backbones() -> str:
    """Hyperparameters of the networks of this package, from their constructors."""
    rows = [
        "## Hyperparameters of networks",
        "",
        "Further keys of `model`; what they do: [networks](backbones.md).",
        "",
    ]
    rows += ["| `model.name` | key: default |", "|---|---|"]
    for name in BACKBONES:
        parameters = inspect.signature(backbone_class(name)).parameters.values()
        keys = [f"`{p.name}: {_yaml(p.default)}`" for p in parameters
                if p.kind is not p.VAR_KEYWORD and p.name not in ("elements", "cutoff", "reference")]  # fmt: skip
        rows.append(f"| `{name}` | {', '.join(keys)} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(page(), end="")
