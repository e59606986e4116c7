"""The names that are used most; the others stand in their rooms."""

from .dynamics.running.simulate import simulate as simulate
from .eam_fit.fit import fit_eam as fit_eam
from .errors import PhyspreError as PhyspreError
from .potentials.adapters.ase_calculator import PotentialCalculator as PotentialCalculator
from .potentials.checkpoints.load import load_potential as load_potential
from .potentials.checkpoints.own import save_potential as save_potential
from .potentials.evaluation import evaluate as evaluate
from .potentials.open import open_potential as open_potential
from .pretraining.labelling import label as label
from .pretraining.perturbation import perturb as perturb
from .pretraining.pretraining_set import make_pretraining_set as make_pretraining_set
from .structures.graph import build_graph as build_graph
from .structures.read import read_structures as read_structures
from .structures.write import write_structures as write_structures
from .training.train import train_potential as train_potential
from .workflow.config.examples import write_example as write_example
from .workflow.estimate import estimate_run as estimate_run
from .workflow.run import run as run

__version__: str
