"""Potentials: the contract, and everything that gives energy, forces and stress."""

from .adapters.ase_calculator import PotentialCalculator as PotentialCalculator
from .adapters.from_ase import CalculatorPotential as CalculatorPotential
from .backbones.cgcnn.network import CGCNN as CGCNN
from .backbones.m3gnet.network import M3GNet as M3GNet
from .backbones.torchmd_et.network import TorchMDET as TorchMDET
from .base import AtomicPotential as AtomicPotential
from .base import Backbone as Backbone
from .base import Potential as Potential
from .base import Predictions as Predictions
from .checkpoints.load import load_potential as load_potential
from .checkpoints.matdeeplearn import read_matdeeplearn_checkpoint as read_matdeeplearn_checkpoint
from .checkpoints.matdeeplearn import write_matdeeplearn_checkpoint as write_matdeeplearn_checkpoint
from .checkpoints.mattersim import read_mattersim_checkpoint as read_mattersim_checkpoint
from .checkpoints.mattersim import write_mattersim_checkpoint as write_mattersim_checkpoint
from .checkpoints.mattertune import read_mattertune_checkpoint as read_mattertune_checkpoint
from .checkpoints.own import save_potential as save_potential
from .convert import convert_checkpoint as convert_checkpoint
from .eam.lammps import write_setfl as write_setfl
from .eam.potential import EAMInteraction as EAMInteraction
from .energy_reference import EnergyReference as EnergyReference
from .energy_reference import fit_energy_reference as fit_energy_reference
from .evaluation import evaluate as evaluate
from .open import open_potential as open_potential
from .sum import HybridPotential as HybridPotential
from .sum import SumPotential as SumPotential
from .zbl import ZBL as ZBL
