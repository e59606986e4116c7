"""Training of backbones."""

from .losses import Loss as Loss
from .settings import TrainingSettings as TrainingSettings
from .two_stage import train_potential as train_potential
