"""Pretraining: perturbation, teachers, labels."""

from .labelling import label as label
from .perturbation import perturb as perturb
from .perturbation_settings import PerturbationSettings as PerturbationSettings
from .pretraining_set import OnlinePretrainingSet as OnlinePretrainingSet
from .pretraining_set import make_pretraining_set as make_pretraining_set
from .teacher import make_teacher as make_teacher
from .teacher_energy_zero import fit_teacher_zero as fit_teacher_zero
