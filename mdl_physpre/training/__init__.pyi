"""Training of backbones."""

from .settings import TrainingSettings as TrainingSettings
from .two_stage import train_potential as train_potential
