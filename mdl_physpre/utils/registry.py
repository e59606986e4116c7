"""Classes by name: those of this package, those that installed packages register, and any by its import path."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from mdl_physpre.errors import ConfigError, nearest
from mdl_physpre.utils.import_paths import import_object

Class = TypeVar("Class")


class Registry(Generic[Class]):
    """Classes of one kind by name.

    A name is that of a class of this package; one that an installed package has registered in the entry-point group;
    or an import path, ``package.module:Class``. What the package brings cannot be replaced from outside.

    Parameters
    ----------
    what : what a class is called in errors: ``backbone``, ``observer``, …
    group : entry-point group: ``mdl_physpre.backbones``, …
    base : the class that all are derived from.
    built_in : import path of each class of this package by name; imported on first use.
    """

    def __init__(self, what: str, group: str, base: type[Class], built_in: Mapping[str, str]) -> None:
        self.what, self.group, self.base, self.built_in = what, group, base, dict(built_in)

    def paths(self) -> dict[str, str]:
        """Import path of each class that has a name."""
        return {**{point.name: point.value for point in entry_points(group=self.group)}, **self.built_in}

    def load(self, name: str) -> Any:
        """What stands behind a name, whatever it is.

        Raises ConfigError for an unknown name, with the nearest known one, and for what cannot be imported.
        """
        paths = self.built_in if name in self.built_in else self.paths()  # a look at all packages takes time
        families = {known.partition(":")[0] for known in paths if ":" in known}
        if name not in paths and (not set(name) & set(".:") or name.partition(":")[0] in families):
            other = "give an import path, module:Class"
            hint = f"{nearest(name, paths)} (or {other})" if paths else other
            raise ConfigError(f"unknown {self.what} {name!r}: {hint}")
        return import_object(paths.get(name, name), f"{self.what} {name!r}")

    def find(self, name: str) -> type[Class]:
        """The class of a name.

        Raises
        ------
        ConfigError : an unknown name, with the nearest known one; a module that cannot be imported; another class.
        """
        found = self.load(name)
        if not (inspect.isclass(found) and issubclass(found, self.base)):
            base = f"{self.base.__module__}.{self.base.__qualname__}"
            path = self.paths().get(name, name)
            raise ConfigError(f"{self.what} {name!r}: {path!r} is not a class derived from {base}")
        return found

    def name_of(self, cls: type) -> str:
        """The registered name of a class, or its import path where it has none."""
        path = f"{cls.__module__}:{cls.__qualname__}"
        return next((name for name, registered in self.paths().items() if registered == path), path)
