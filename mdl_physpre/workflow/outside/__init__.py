"""Pretraining sets and recipes for trainers of other packages: a class of :class:`OutsideTrainer` for each."""

from mdl_physpre.workflow.outside.base import OutsideTrainer as OutsideTrainer
from mdl_physpre.workflow.outside.write import OutsideFolder as OutsideFolder
from mdl_physpre.workflow.outside.write import pretraining_set_for as pretraining_set_for
