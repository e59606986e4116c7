"""Molecular dynamics of many structures at once."""

from .compare_motion import compare_motion as compare_motion
from .compare_rdf import compare_with_reference as compare_with_reference
from .engine.ensembles import Ensemble as Ensemble
from .oracle import OracleSettings as OracleSettings
from .oracle import compare_with_oracle as compare_with_oracle
from .oracle_errors import OracleErrors as OracleErrors
from .running.parallel import simulate_parallel as simulate_parallel
from .running.reanalysis import judge_run as judge_run
from .running.reanalysis import judge_trajectory as judge_trajectory
from .running.simulate import simulate as simulate
from .settings import DynamicsSettings as DynamicsSettings
from .verdicts.observer import Observer as Observer
from .verdicts.verdict import Verdict as Verdict
from .verdicts.verdict import summarise as summarise
from .verdicts.verdict import survival_curve as survival_curve
