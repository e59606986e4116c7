"""Analyses of trajectories and predictions."""

from .calibration import Calibration as Calibration
from .calibration import CommitteeErrors as CommitteeErrors
from .calibration import committee_errors as committee_errors
from .errors import Errors as Errors
from .errors import null_model_errors as null_model_errors
from .errors import prediction_errors as prediction_errors
from .force_alignment import ForceAlignment as ForceAlignment
from .force_alignment import force_alignment as force_alignment
from .lindemann import lindemann_index as lindemann_index
from .mean_square_displacement import MeanSquareDisplacement as MeanSquareDisplacement
from .mean_square_displacement import mean_square_displacement as mean_square_displacement
from .overlap import overlap as overlap
from .radial_distribution import RDF as RDF
from .radial_distribution import RDFAccumulator as RDFAccumulator
from .radial_distribution import average_rdfs as average_rdfs
from .radial_distribution import rdf as rdf
from .rdf_errors import RDFError as RDFError
from .rdf_errors import rdf_errors as rdf_errors
from .rdf_errors import reference_rdf as reference_rdf
from .vibrations import VibrationalDOS as VibrationalDOS
from .vibrations import vibrational_dos as vibrational_dos
