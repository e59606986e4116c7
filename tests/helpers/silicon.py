"""Classical potentials of silicon, by matscipy."""

from __future__ import annotations

from typing import Any

from matscipy.calculators.manybody import Manybody
from matscipy.calculators.manybody.explicit_forms import Kumagai, StillingerWeber, kumagai, stillinger_weber


def kumagai_silicon() -> Any:
    """T. Kumagai et al., Comp. Mat. Sci. 39, 457 (2007)."""
    return Manybody(**Kumagai(kumagai.Kumagai_Comp_Mat_Sci_39_Si))


def stillinger_weber_silicon() -> Any:
    """F. H. Stillinger and T. A. Weber, Phys. Rev. B 31, 5262 (1985)."""
    return Manybody(**StillingerWeber(stillinger_weber.Stillinger_Weber_PRB_31_5262_Si))
