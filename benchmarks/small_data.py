"""Errors of recipes on small sets of DFT structures: arms × networks, with time, for each recipe or override that is tried.

    PHYSPRE_DATA=/path/to/data python benchmarks/small_data.py silicon molybdenum --out runs/small \
        --arms baseline pretrain --replicas 3 --try "plain:" --try "longer: optim.max_steps=6000 optim.lr=5e-4"

Each ``--try NAME: KEY=VALUE ...`` is a run of its own under the recipe ``default``, with keys changed; ``recipe=paper``
takes the other one, and then all networks are as the paper's defaults have them. Everything is kept in
``--out/SET/NAME``; called again, it goes on, and what is done is only printed. ``--quick`` shows that all of it runs.
"""

from __future__ import annotations

ERRORS = (
    ("energy_mae", "energy, meV/atom", 1000.0),
    ("forces_mae", "forces, eV/Å", 1.0),
    ("stress_mae", "stress, GPa", 160.21766),
)
QUICK = (
    "optim.max_steps=4", "physpre.pretrain.max_steps=2", "physpre.perturbation.n_aug=1", "physpre.eam.epochs=3",
    "model.hidden_channels=16", "model.num_layers=1",
)  # fmt: skip
