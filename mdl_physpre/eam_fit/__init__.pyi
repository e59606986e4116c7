"""The fit of the embedded-atom potential."""

from .fit import EAMFit as EAMFit
from .fit import fit_eam as fit_eam
from .settings import EAMFitSettings as EAMFitSettings
