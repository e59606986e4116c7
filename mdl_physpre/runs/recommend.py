"""What a run comes to: which networks are no better than no network, and the one potential to use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from mdl_physpre.dynamics.oracle_errors import OracleErrors
from mdl_physpre.runs.layout import DYNAMICS, FINETUNE, POTENTIAL
from mdl_physpre.runs.oracle import dynamics_oracle_errors, stress_oracle_errors
from mdl_physpre.runs.results import Recommendation, Untrained
from mdl_physpre.runs.summary import NetworkResult, Summary
from mdl_physpre.utils.files import write_bytes

TEST = "test"
LEAST_GAIN = 0.02  # of the null model's error; a network that predicts next to nothing comes out a little below it
JUDGED = (("forces", "forces_mae", "weight_force"), ("energy", "energy_mae_mev_per_atom", "weight_energy"))


def untrained_networks(summary: Summary, optim: Mapping[str, Any]) -> tuple[Untrained, ...]:
    """Networks whose error on the test set is not 2 % below that of the null model, by arm and label.

    optim : the section of the configuration; a label without weight in the loss is not judged.
    """
    found = []
    for arm, result in summary.arms.items():
        for label, key, weight in JUDGED:
            null = getattr(summary.null_model.get(TEST), key, None)
            if null is None or not optim.get(weight, 1.0):
                continue
            errors = {n.name: getattr(n.errors.get(TEST), key, None) for n in result.networks}
            worse = {name: e for name, e in errors.items() if e is not None and not e < (1 - LEAST_GAIN) * null}
            if worse:
                error, names = fmean(worse.values()), tuple(worse)
                found.append(Untrained(arm=arm, label=label, networks=names, of=len(errors), error=error, null=null))
    return tuple(found)


def recommendation(summary: Summary) -> Recommendation | None:
    """The network to use; ``None`` where no network has a validation loss.

    Of the arms that are not shown to be worse than another one (:func:`arms_shown_worse`), the one whose networks have
    the lowest mean validation loss, and of these networks the one with the lowest. The validation loss is that of the
    network's best epoch of finetuning, which is of the same structures, labels and weights for each arm. Networks that
    are not better than the null model are only taken where there is no other.
    """
    poor = {name for one in summary.untrained for name in one.networks}
    losses = {arm: {n.name: v for n in r.networks if (v := _loss(n)) is not None} for arm, r in summary.arms.items()}
    if any(set(own) - poor for own in losses.values()):
        losses = {arm: {name: v for name, v in own.items() if name not in poor} for arm, own in losses.items()}
    means = {arm: fmean(own.values()) for arm, own in losses.items() if own}
    if not means:
        return None
    looked_at = summary.stress_tests or [DYNAMICS] * any(result.dynamics for result in summary.arms.values())
    worse = arms_shown_worse(summary, looked_at)
    allowed = [arm for arm in means if arm not in worse] or list(means)
    arm = min(allowed, key=means.__getitem__)
    name = min(losses[arm], key=losses[arm].__getitem__)
    network = next(n for n in summary.arms[arm].networks if n.name == name)
    return Recommendation(
        file=POTENTIAL, arm=arm, network=name, checkpoint=network.checkpoint, validation_loss=losses[arm][name],
        validation_losses=means, looked_at=tuple(looked_at), worse=worse, untrained=name in poor,
    )  # fmt: skip


def arms_shown_worse(summary: Summary, tests: Sequence[str]) -> dict[str, str]:
    """Arms that another one is shown to be better than, each with how.

    By where structures break in stress tests, or in molecular dynamics (overlap, structures that fall too deep, …), as
    the log-rank test tells (:attr:`~.BreakingComparison.shown`); and by an oracle, where the 95 % intervals of the
    share of structures that are wrong without having failed lie apart.
    """
    oracles = {DYNAMICS: dynamics_oracle_errors(summary), **stress_oracle_errors(summary)}
    found: dict[str, str] = {}
    for test in dict.fromkeys([*tests, *oracles]):
        seen = oracles.get(test, {})
        for arm in summary.arms:
            for other in summary.arms:
                if arm in found or arm == other:
                    continue
                pair = summary.compare_breaking(test, other, arm) if test in tests else None
                if pair is not None and pair.shown and pair.later == other:
                    found[arm] = f"breaks earlier than {other} in {_words(test)}"
                elif arm in seen and other in seen and _wrong_more_often(seen[arm], seen[other]):
                    found[arm] = f"is wrong by {seen[arm].oracle} more often than {other} in {_words(test)}"
    return found


def _wrong_more_often(one: OracleErrors, other: OracleErrors) -> bool:
    first, second = one.whole_and_wrong.interval, other.whole_and_wrong.interval
    return first is not None and second is not None and first[0] > second[1]


def _loss(network: NetworkResult) -> float | None:
    trained = network.training.get(FINETUNE)
    found = None if trained is None else trained.best_loss
    return found if found is not None and math.isfinite(found) else None


def _words(test: str) -> str:
    return "molecular dynamics" if test == DYNAMICS else test.replace("_", " ")


def recommendation_sentence(found: Recommendation) -> str:
    """Which potential to use, and why."""
    losses = ", ".join(f"{arm} {loss:.4g}" for arm, loss in found.validation_losses.items())
    named = found.arm if found.network == found.arm else f"{found.arm}, network {found.network}"
    said = f"Use {found.file}: {named}, with the lowest validation loss"
    if len(found.validation_losses) > 1:
        said += f" ({losses})"
    if not found.looked_at:
        return f"{said}. By validation loss alone: no stress test and no molecular dynamics was run."
    seen = ", ".join(map(_words, found.looked_at))
    if len(found.validation_losses) > 1:
        said += f" of the arms that are not shown to be worse than another one in {seen}"
    left = "; ".join(f"{arm} {how}" for arm, how in found.worse.items())
    return f"{said}." + (f" Left out: {left}." if left else "")


def write_recommended(folder: Path, found: Recommendation) -> None:
    """``potential.pt`` of a run: a copy of the checkpoint. Raises DataError where it cannot be written."""
    write_bytes(folder / found.file, (folder / found.checkpoint).read_bytes())


def untrained_sentence(found: Untrained) -> str:
    """That networks have not learnt a label, and what to change."""
    several = f" ({len(found.networks)} of {found.of} networks)" if found.of > 1 else ""
    more = "more epochs (optim.max_epochs) or another learning rate (optim.lr)"
    if found.label == "forces":
        return (
            f"{found.arm}{several} is untrained: its force error on {TEST}, {found.error:.3g} eV/Å, is not "
            f"{LEAST_GAIN:.0%} below {found.null:.3g}, that of no forces at all. Before any verdict, try "
            f"{more}, or a larger optim.weight_force."
        )
    return (
        f"The energies of {found.arm}{several} are untrained: their error on {TEST}, {found.error:.3g} meV/atom, is "
        f"not {LEAST_GAIN:.0%} below {found.null:.3g}, that of composition alone. Before any verdict, try "
        f"{more}, a larger optim.weight_energy with optim.energy_per_atom: true, and "
        "optim.refit_reference: true where it is not set."
    )


def first_sentences(summary: Summary) -> list[str]:
    """What is said of a run before anything else: the potential to use, and what is not trained."""
    chosen = summary.recommended
    return ([recommendation_sentence(chosen)] if chosen else []) + [untrained_sentence(u) for u in summary.untrained]
