"""Structures: read, write, split, graphs."""

from .check import check_structures as check_structures
from .conversion import convert as convert
from .formats.base import Format as Format
from .graph import AtomGraph as AtomGraph
from .graph import GraphDataset as GraphDataset
from .graph import build_graph as build_graph
from .inspect import inspect_structures as inspect_structures
from .labels import get_labels as get_labels
from .labels import set_labels as set_labels
from .plausibility import check_units_of_labels as check_units_of_labels
from .read import read_structures as read_structures
from .splits import split_structures as split_structures
from .write import write_structures as write_structures
