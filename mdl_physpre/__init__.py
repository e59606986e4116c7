"""Physics-informed pretraining of machine-learned interatomic potentials.

The names here are those that are used most. The rest stand in ``mdl_physpre.structures``, ``.potentials``,
``.analysis``, ``.potential_checks``, ``.pretraining``, ``.eam_fit``, ``.training``, ``.dynamics`` and ``.report``. All
are imported on first use, so that importing the package costs next to nothing.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
