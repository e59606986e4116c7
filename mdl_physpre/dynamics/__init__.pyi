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
from .running.simulate import run_and_return as run_and_return
from .running.simulate import simulate as simulate
from .settings import DynamicsSettings as DynamicsSettings
from .verdicts.log_rank import BreakingComparison as BreakingComparison
from .verdicts.log_rank import compare_breaking as compare_breaking
from .verdicts.observer import Observer as Observer
from .verdicts.survival import BreakingStatistics as BreakingStatistics
from .verdicts.survival import Observation as Observation
from .verdicts.survival import breaking_statistics as breaking_statistics
from .verdicts.survival import failure_times as failure_times
from .verdicts.survival import kaplan_meier as kaplan_meier
from .verdicts.survival import survival_curve as survival_curve
from .verdicts.verdict import Verdict as Verdict
from .verdicts.verdict import summarise as summarise
