"""Training of backbones."""

from .arms import Arm as Arm
from .arms import Material as Material
from .arms import Part as Part
from .arms import Training as Training
from .arms import parse_arm as parse_arm
from .losses import Loss as Loss
from .settings import TrainingSettings as TrainingSettings
from .train import TrainingResult as TrainingResult
from .train import train_potential as train_potential
from .two_stage import initial_potential as initial_potential
from .two_stage import train_arm as train_arm
