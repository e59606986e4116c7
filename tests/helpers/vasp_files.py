"""Small OUTCAR and vasprun.xml files as VASP writes them, with the parts that readers look at."""

from __future__ import annotations

import numpy as np

CELL = np.diag([4.0, 4.1, 4.2])
PLACES = np.array([[0.1, 0.2, 0.3], [2.1, 2.0, 1.9]])


def outcar(iterations, energies, version=6, nelm=4, forces=0.1):
    """Ionic steps with these numbers of electronic iterations; those with ``nelm`` of them did not converge."""
    rows = "\n".join(" ".join(f"{x:12.6f}" for x in row) + "     0.0 0.0 0.0" for row in CELL)
    lines = [
        f" vasp.{version}.4.2 20Jul23 complex",
        " POTCAR:    PAW_PBE Cu 22Jun2005",
        "   VRHFIN =Cu: d10 p1",
        f"   NELM   =    {nelm:3d};   NELMIN=  2; NELMDL= -5     # of ELM steps",
        "   EDIFF  = 0.1E-05   stopping-criterion for ELM",
        "   ispin  =      1    spin polarized calculation?",
        "   ions per type =               2",
    ]
    for step, (n, energy) in enumerate(zip(iterations, energies), 1):
        lines += [f"---------------------- Iteration {step:6d}({k + 1:4d})  ----------------------" for k in range(n)]
        if n < nelm:
            lines.append("------------------------ aborting loop because EDIFF is reached ------------------------")
        elif version >= 6:
            lines.append("------------------------ aborting loop EDIFF was not reached (unconverged)  -------------")
        table = "\n".join(
            " ".join(f"{x:12.5f}" for x in (*place, sign * forces, 0.0, 0.0)) for place, sign in zip(PLACES, (1, -1))
        )
        lines += [
            "  in kB       1.00000     1.00000     1.00000     0.00000     0.00000     0.00000",
            " VOLUME and BASIS-vectors are now :",
            "      direct lattice vectors                 reciprocal lattice vectors",
            rows,
            "",
            " POSITION                                       TOTAL-FORCE (eV/Angst)",
            " " + "-" * 83,
            table,
            " " + "-" * 83,
            "  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)",
            "  ---------------------------------------------------",
            f"  free  energy   TOTEN  =  {energy:18.8f} eV",
            "",
            f"  energy  without entropy=  {energy:18.8f}  energy(sigma->0) =  {energy:18.8f}",
        ]
    return "\n".join(lines) + "\n"


def vasprun(iterations, energies, nelm=4, ediff=1e-5, last_change=1e-2):
    """The same as XML; the energy of the last electronic iteration differs by ``last_change`` from the one before."""
    places = "".join(f"<v>{' '.join(f'{x:.8f}' for x in row)}</v>" for row in PLACES @ np.linalg.inv(CELL))
    basis = "".join(f"<v>{' '.join(f'{x:.8f}' for x in row)}</v>" for row in CELL)
    zeros = "<v>0.1 0 0</v><v>-0.1 0 0</v>"
    crystal = f'<crystal><varray name="basis">{basis}</varray></crystal>'
    structure = f'{crystal}<varray name="positions">{places}</varray></structure>'
    atoms = "<rc><c>Cu</c><c>1</c></rc>" * 2
    steps = ""
    for n, energy in zip(iterations, energies):
        found = [energy + last_change * (n - 1 - k) for k in range(n)]
        scf = "".join(
            f'<scstep><energy><i name="e_fr_energy">{e}</i><i name="e_wo_entrp">{e}</i><i name="e_0_energy">{e}</i>'
            "</energy></scstep>"
            for e in found
        )
        steps += (
            f'<calculation>{scf}<structure>{structure}<varray name="forces">{zeros}</varray>'
            f'<varray name="stress"><v>1 0 0</v><v>0 1 0</v><v>0 0 1</v></varray>'
            f'<energy><i name="e_fr_energy">{energy}</i><i name="e_wo_entrp">{energy}</i>'
            f'<i name="e_0_energy">{energy}</i></energy></calculation>\n'
        )
    return (
        '<?xml version="1.0" encoding="ISO-8859-1"?>\n<modeling><kpoints>'
        '<varray name="kpointlist"><v>0 0 0</v></varray>'
        '<varray name="weights"><v>1</v></varray></kpoints><parameters><separator name="electronic">'
        f'<i type="int" name="NELM">{nelm}</i><i name="EDIFF">{ediff}</i></separator></parameters>'
        f'<atominfo><array name="atoms"><set>{atoms}</set></array></atominfo>'
        f'<structure name="initialpos">{structure}{steps}</modeling>\n'
    )
