"""Single-bond covalent radii, from which the Morse terms of the embedded-atom potential start."""

from __future__ import annotations

# pm, hydrogen (1) to oganesson (118): P. Pyykkö and M. Atsumi, Chem. Eur. J. 15, 186 (2009), table 2.
# The radii in ase.data and pymatgen are those of Cordero et al. (2008), which differ (Si 111, P 107, O 66 pm).
_PICOMETRES = (
    32, 46, 133, 102, 85, 75, 71, 63, 64, 67, 155, 139, 126, 116, 111, 103, 99, 96, 196, 171, 148, 136, 134, 122, 119,
    116, 111, 110, 112, 118, 124, 121, 121, 116, 114, 117, 210, 185, 163, 154, 147, 138, 128, 125, 125, 120, 128, 136,
    142, 140, 140, 136, 133, 131, 232, 196, 180, 163, 176, 174, 173, 172, 168, 169, 168, 167, 166, 165, 164, 170, 162,
    152, 146, 137, 131, 129, 122, 123, 124, 133, 144, 144, 151, 145, 147, 142, 223, 201, 186, 175, 169, 170, 171, 172,
    166, 166, 168, 168, 165, 167, 173, 176, 161, 157, 149, 143, 141, 134, 129, 128, 121, 122, 136, 143, 162, 175, 165,
    157,
)  # fmt: skip


def covalent_radius(z: int) -> float:
    """Single-bond covalent radius of the element with atomic number ``z``, Å (Pyykkö and Atsumi 2009)."""
    return _PICOMETRES[z - 1] / 100.0
