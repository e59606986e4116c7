"""Molecular dynamics of many structures at once."""

from .compare_rdf import compare_with_reference as compare_with_reference
from .engine.ensembles import Ensemble as Ensemble
from .running.parallel import simulate_parallel as simulate_parallel
from .running.reanalysis import judge_run as judge_run
from .running.reanalysis import judge_trajectory as judge_trajectory
from .running.simulate import run_and_return as run_and_return
from .running.simulate import simulate as simulate
from .settings import DynamicsSettings as DynamicsSettings
from .verdicts.observer import Observer as Observer
from .verdicts.verdict import Verdict as Verdict
from .verdicts.verdict import summarise as summarise
from .verdicts.verdict import survival_curve as survival_curve
