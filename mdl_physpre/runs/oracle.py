"""What oracles say of the arms of a run."""

from __future__ import annotations

from mdl_physpre.dynamics.oracle_errors import OracleErrors, pooled_oracle_errors
from mdl_physpre.runs.summary import Summary


def dynamics_oracle_errors(summary: Summary) -> dict[str, OracleErrors]:
    """Of the dynamics of each arm that an oracle has looked at."""
    found = {arm: result.dynamics for arm, result in summary.arms.items() if result.dynamics}
    return {arm: dynamics.oracle for arm, dynamics in found.items() if dynamics.oracle is not None}


def stress_oracle_errors(summary: Summary) -> dict[str, dict[str, OracleErrors]]:
    """Of each stress test that an oracle has looked at, by the name of the test, then by arm."""
    tests: dict[str, dict[str, OracleErrors]] = {}
    for arm, result in summary.arms.items():
        for test in dict.fromkeys(test for network in result.networks for test in network.stress):
            each = [n.stress[test].oracle for n in result.networks if test in n.stress]
            pooled = pooled_oracle_errors([one for one in each if one is not None])
            if pooled is not None:
                tests.setdefault(test, {})[arm] = pooled
    return tests
