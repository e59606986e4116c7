"""Analyses of trajectories and predictions."""

from .errors import prediction_errors as prediction_errors
from .force_alignment import force_alignment as force_alignment
from .radial_distribution import RDFAccumulator as RDFAccumulator
from .radial_distribution import average_rdfs as average_rdfs
from .radial_distribution import rdf as rdf
from .rdf_errors import rdf_errors as rdf_errors
from .rdf_errors import reference_rdf as reference_rdf
