"""What a format of structure files is, and those that are known."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from ase import Atoms

from mdl_physpre.errors import DataError
from mdl_physpre.utils.registry import Registry


class Format(ABC):
    """A kind of file that structures are read from and, where a class has ``write``, written to.

    Attributes
    ----------
    title : what it is called in messages, with what its files hold where other formats have the same endings.
    endings : of the names of its files, such as ``.xyz``.
    zipped : whether a name may end in ``.gz`` as well.
    options : keyword arguments that ``read`` takes beside the path; ``elements`` is the set of symbols that are wanted.
    """

    title: ClassVar[str]
    endings: ClassVar[tuple[str, ...]] = ()
    zipped: ClassVar[bool] = False
    options: ClassVar[tuple[str, ...]] = ()

    def fits(self, path: Path) -> bool:
        """Whether the name is one of this format."""
        name = path.name.lower()
        return (name.removesuffix(".gz") if self.zipped else name).endswith(self.endings)

    def recognises(self, path: Path) -> bool:
        """Whether the content of a file whose name fits is of this format: for endings that several formats share."""
        return True

    @abstractmethod
    def read(self, path: Path) -> list[Atoms]:
        """All structures of a file, labels as calculator results or under their names in ``info`` and ``arrays``.

        Raises DataError that names the file, and the structure where there is one at fault.
        """

    def write(self, path: Path, structures: Sequence[Atoms]) -> None:
        """Write structures, whole or not at all (:func:`mdl_physpre.utils.files.replacing`).

        Raises DataError for a structure that the format cannot hold, and a file that cannot be written.
        """
        raise DataError(f"{path}: {self.title} is read, but not written; {known_formats(to_write=True)}")

    def losses(self, structures: Sequence[Atoms]) -> list[str]:
        """What the readers of a written file will drop or misread, in sentences."""
        return []

    @classmethod
    def writes(cls) -> bool:
        """Whether the format can be written."""
        return cls.write is not Format.write


_HERE = "mdl_physpre.structures.formats"
# In this order they are asked whether a file is theirs; then those of other packages.
FORMATS = Registry[Format](
    "format",
    "mdl_physpre.formats",
    Format,  # type: ignore[type-abstract]
    {
        "extxyz": f"{_HERE}.extxyz:ExtendedXYZ",
        "db": f"{_HERE}.ase_database:ASEDatabase",
        "fitsnap": f"{_HERE}.fitsnap_json:FitSNAPJSON",
        "matdeeplearn": f"{_HERE}.matdeeplearn_json:MatDeepLearnJSON",
        "deepmd": f"{_HERE}.deepmd:DeepMD",
        "abacus": f"{_HERE}.by_dpdata:ABACUS",
        "lammps-dump": f"{_HERE}.lammps_dump:LAMMPSDump",
        "vasp": f"{_HERE}.vasp:VASP",
        "mptrj": f"{_HERE}.mptrj_json:MPtrjJSON",
        "ase-json": f"{_HERE}.ase_database:ASEJSON",
        "load-atoms": f"{_HERE}.load_atoms_dataset:LoadAtoms",
    },
)


def formats() -> Iterator[Format]:
    """All formats, those of this package first."""
    for name in dict.fromkeys([*FORMATS.built_in, *FORMATS.paths()]):
        yield FORMATS.find(name)()


def format_to_read(path: Path, name: str | None = None) -> Format | None:
    """The format of a file, by ``name`` where given, else by the file's name and content; None for an unknown ending.

    Raises
    ------
    DataError : a file that cannot be read, or whose content is of no format with its ending.
    ConfigError : an unknown ``name``.
    """
    if name is not None:
        return FORMATS.find(name)()
    fitting = []
    for one in formats():
        if one.fits(path):
            if one.recognises(path):
                return one
            fitting.append(one.title)
    if fitting:
        raise DataError(f"{path}: its content is none of those that are known; expected {', or '.join(fitting)}")
    return None


def format_to_write(path: Path, name: str | None = None) -> Format:
    """The format that a file is written in, by ``name`` where given, else by the file's name.

    Raises
    ------
    DataError : an ending that stands for no known format.
    ConfigError : an unknown ``name``.
    """
    found = (
        FORMATS.find(name)() if name is not None else next((f for f in formats() if f.fits(path) and f.writes()), None)
    )
    if found is None:
        raise DataError(unknown(path, to_write=True))
    return found


def unknown(path: Path, to_write: bool = False) -> str:
    """That the name of a file stands for no format, and which do."""
    return f"{path}: {path.suffix or 'no suffix'} stands for no known format; {known_formats(to_write)}"


def known_formats(to_write: bool = False) -> str:
    """The formats in a few words."""
    found = [f"{' and '.join(f.endings)} ({f.title})" for f in formats() if f.writes() or not to_write]
    return f"known: {', '.join(found)}"
