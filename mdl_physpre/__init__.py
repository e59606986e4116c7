"""Physics-informed pretraining of machine-learned interatomic potentials.

Public names resolve on first use, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "AtomGraph": "structures.graph",
    "AtomicPotential": "potentials.base",
    "Backbone": "potentials.base",
    "CGCNN": "potentials.cgcnn",
    "CalculatorPotential": "potentials.from_calculator",
    "DynamicsSettings": "dynamics.settings",
    "EAMFit": "pretraining.eam_fit",
    "EAMInteraction": "potentials.eam",
    "EnergyReference": "potentials.reference",
    "GraphDataset": "structures.graph",
    "HybridPotential": "potentials.sum",
    "M3GNet": "potentials.m3gnet",
    "OnlinePretrainingSet": "pretraining.pretraining_set",
    "PerturbationSettings": "pretraining.perturbation",
    "PhyspreError": "errors",
    "Potential": "potentials.base",
    "PotentialCalculator": "potentials.calculator",
    "Predictions": "potentials.base",
    "RDFAccumulator": "analysis.rdf",
    "SumPotential": "potentials.sum",
    "TorchMDET": "potentials.torchmd_et",
    "TrainingSettings": "training.settings",
    "ZBL": "potentials.zbl",
    "average_rdfs": "analysis.rdf",
    "benchmark": "workflow.benchmark",
    "build_graph": "structures.graph",
    "check_structures": "structures.check",
    "compare": "report.comparison",
    "compare_with_reference": "dynamics.reference",
    "convert": "structures.convert",
    "convert_checkpoint": "potentials.convert_checkpoints",
    "evaluate": "potentials.base",
    "examine": "analysis.doctor",
    "fit_eam": "pretraining.eam_fit",
    "fit_energy_reference": "potentials.reference",
    "fit_teacher_zero": "pretraining.teacher_zero",
    "format_checks": "analysis.doctor",
    "force_alignment": "analysis.force_alignment",
    "get_labels": "structures.labels",
    "inspect_structures": "structures.inspect",
    "judge_run": "dynamics.reanalysis",
    "judge_trajectory": "dynamics.reanalysis",
    "label": "pretraining.teacher",
    "load_potential": "potentials.checkpoints",
    "make_pretraining_set": "pretraining.pretraining_set",
    "make_teacher": "pretraining.teacher_names",
    "open_potential": "potentials.open_potential",
    "perturb": "pretraining.perturbation",
    "prediction_errors": "analysis.errors",
    "rdf": "analysis.rdf",
    "rdf_errors": "analysis.rdf_errors",
    "read_matdeeplearn_checkpoint": "potentials.matdeeplearn_checkpoints",
    "read_mattersim_checkpoint": "potentials.mattersim_checkpoints",
    "read_mattertune_checkpoint": "potentials.mattertune_checkpoints",
    "read_structures": "structures.read",
    "reference_rdf": "analysis.rdf_errors",
    "report_run": "workflow.reports",
    "run": "workflow.run",
    "run_status": "report.status",
    "save_potential": "potentials.checkpoints",
    "set_labels": "structures.labels",
    "simulate": "dynamics.simulation",
    "simulate_parallel": "dynamics.splitting",
    "split_structures": "structures.splits",
    "summarise": "dynamics.verdicts",
    "survival_curve": "dynamics.verdicts",
    "train_potential": "training.two_stage",
    "write_matdeeplearn_checkpoint": "potentials.matdeeplearn_checkpoints",
    "write_mattersim_checkpoint": "potentials.mattersim_checkpoints",
    "write_setfl": "potentials.setfl",
    "write_structures": "structures.write",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
