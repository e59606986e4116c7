"""The fit of the embedded-atom potential."""

from .angular import AngularEAMSettings as AngularEAMSettings
from .angular import fit_angular_eam as fit_angular_eam
from .fit import EAMFit as EAMFit
from .fit import fit_eam as fit_eam
from .settings import EAMFitSettings as EAMFitSettings
