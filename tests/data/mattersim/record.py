"""Runs MatterSim's own M3GNet; writes what stands beside this file.

    python tests/data/mattersim/record.py

where mattersim 1.2.2 can be imported (tests/potentials/test_mattersim_checkpoints.py says how to install it) writes a
checkpoint as the host writes it, of a small network with random weights, and in ``results.json`` the host's energies,
forces and stress on three small cells.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.spacegroup import crystal
from ase.units import GPa

HERE = Path(__file__).parent
SIZES = {"num_blocks": 2, "units": 16, "max_l": 4, "max_n": 4, "cutoff": 5.0, "threebody_cutoff": 4.0, "max_z": 30}


def structures() -> dict[str, Atoms]:
    """Silica, phosphorus and a lithium manganese oxide, out of equilibrium."""
    silica = crystal(
        ["Si", "O"], [(0.4697, 0, 1 / 3), (0.4135, 0.2669, 0.2144)], spacegroup=152,
        cellpar=[4.916, 4.916, 5.405, 90, 90, 120],
    )  # fmt: skip
    phosphorus = bulk("P", "sc", a=2.4) * (2, 2, 2)
    oxide = bulk("LiO", "rocksalt", a=4.2, cubic=True)
    oxide.symbols[[0, 4]] = "Mn"
    found = {"silica": silica, "phosphorus": phosphorus, "Li-Mn-O": oxide}
    for seed, atoms in enumerate(found.values()):
        rng = np.random.default_rng(seed)
        atoms.set_cell(atoms.cell[:] @ (np.eye(3) + 0.03 * rng.uniform(-1, 1, (3, 3))), scale_atoms=True)
        atoms.positions += 0.1 * rng.normal(size=(len(atoms), 3))
    return found


def host_potential(sizes: dict):
    """The host's potential with random weights, large enough for forces that rounding does not drown."""
    from mattersim.forcefield.m3gnet.m3gnet import M3Gnet
    from mattersim.forcefield.potential import Potential

    torch.manual_seed(7)
    model = M3Gnet(device="cpu", **sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.6).add_(0.02 * torch.randn_like(parameter))
        model.atom_embedding.mlp[0].linear.weight.mul_(6.0)
        model.normalizer.scale.copy_(0.5 + torch.rand(sizes["max_z"] + 1))
        model.normalizer.shift.copy_(-5.0 * torch.rand(sizes["max_z"] + 1))
    return Potential(model, device="cpu")


def host_results(potential, atoms: Atoms) -> dict[str, list]:
    """Energy (eV), forces (eV/Å) and stress (eV/Å³) of the host's potential."""
    from mattersim.datasets.utils.build import build_dataloader
    from mattersim.forcefield.potential import batch_to_dict

    potential.model.eval()
    sizes = potential.model.model_args
    loader = build_dataloader(
        [atoms.copy()], only_inference=True, batch_size=1, cutoff=sizes["cutoff"],
        threebody_cutoff=sizes["threebody_cutoff"],
    )  # fmt: skip
    (batch,) = loader
    found = potential(batch_to_dict(batch, device="cpu"), include_forces=True, include_stresses=True)
    return {
        "energy": found["total_energy"].item(),
        "forces": found["forces"].tolist(),
        "stress": (found["stresses"][0] * GPa).tolist(),
    }


def main() -> None:
    frames = structures()
    potential = host_potential(SIZES)
    results = {
        "structures": {
            name: {"numbers": a.numbers.tolist(), "positions": a.positions.tolist(), "cell": a.cell[:].tolist()}
            for name, a in frames.items()
        },
        "results": {name: host_results(potential, atoms) for name, atoms in frames.items()},
    }
    potential.set_description("random weights")
    potential.save(str(HERE / "m3gnet.pth"))
    (HERE / "results.json").write_text(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
