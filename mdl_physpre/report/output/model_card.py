"""A card beside each checkpoint: what it was trained on, how good it is, and what it is not for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ase.data import chemical_symbols

from mdl_physpre import __version__
from mdl_physpre.dynamics.verdicts.survival import breaking_statistics
from mdl_physpre.potentials.checkpoints.own import read_checkpoint
from mdl_physpre.potentials.training_energies import TrainingEnergies
from mdl_physpre.potentials.zbl import radii_text
from mdl_physpre.report.tables.breaking import median_words, reasons_words, titled
from mdl_physpre.report.tables.text import ERRORS, NULL_MODEL, counted, ensemble_and_temperature, markdown_table
from mdl_physpre.runs.read import Run
from mdl_physpre.runs.recommend import untrained_sentence
from mdl_physpre.runs.results import SetCounts
from mdl_physpre.runs.summary import NetworkResult, Summary
from mdl_physpre.structures.labels import LABELS
from mdl_physpre.utils.files import write_text
from mdl_physpre.utils.text_table import shown

CARD = "model_card.md"
TEMPLATE = """\
# {title}

An interatomic potential trained by mdl-physpre {version}.

{facts}

## Errors

{errors}

## Molecular dynamics

{dynamics}

## Where it breaks

{stress}

## Limits

- It knows the elements named above and no others, and sees nothing beyond {cutoff:g} Å.
- The errors are of structures drawn like the training data. Denser, hotter or otherwise different ones were tested \
only where a test set above says so.
- It has not been tested for longer simulations, other ensembles or other temperatures than those above.
- One network of its kind: another seed gives another potential, and another count of failures.

```python
from mdl_physpre import PotentialCalculator, load_potential

atoms.calc = PotentialCalculator(load_potential("{file}"))
```
"""


def write_cards(run: Run, hashes: Mapping[str, str]) -> None:
    """``model_card.md`` beside the checkpoint of every network that is trained."""
    for arm in run.summary.arms.values():
        for network in arm.networks:
            checkpoint = run.folder / network.checkpoint
            if checkpoint.is_file():
                write_text(checkpoint.with_name(CARD), card(run, network, hashes))


def source_files(config: Mapping[str, Any]) -> list[str]:
    """The data files that a configuration names."""
    source = config["dataset"]["src"]
    return [str(file) for file in (source.values() if isinstance(source, dict) else [source])]


def card(run: Run, network: NetworkResult, hashes: Mapping[str, str]) -> str:
    """The card of one network as Markdown."""
    config = run.config
    model = {k: v for k, v in config["model"].items() if k not in ("name", "cutoff") and v is not None}
    cutoff = config["model"]["cutoff"]
    file, content = Path(network.checkpoint).name, read_checkpoint(run.folder / network.checkpoint)
    facts = [
        ["", ""],
        ["checkpoint", file],
        ["backbone", config["model"]["name"]],
        ["hyperparameters", ", ".join(f"{k} {v}" for k, v in model.items()) or "defaults"],
        ["cutoff", f"{cutoff:g} Å"],
        ["elements", _elements(content)],
        ["arm", network.arm],
        ["seed", str(network.seed)],
        ["trained on", _trained_on(run.summary.data.get("train"))],
        ["energies trained on", _energies(content)],
        ["short-range repulsion", radii_text(network.short_range_radii) if network.short_range_radii else "none"],
        ["data", ", ".join(source_files(config))],
        *[["hash", f"{name}: SHA-256 {value}"] for name, value in hashes.items()],
        ["licence", "that of the data, which the run does not know: ask where they come from"],
        ["units", "eV, Å, eV/Å, eV/Å³; stress is positive in tension"],
    ]
    dynamics = "Not simulated, or not to the end."
    if network.dynamics:
        s, c = network.dynamics.settings, network.dynamics.counts
        melted = "" if c.melted is None else f" ({c.melted.count} melted and did not fail)"
        dynamics = (
            f"{ensemble_and_temperature(s)}, {s['steps']} steps of {s['timestep']:g} fs: "
            f"{counted(c.failed)} structures failed, {counted(c.overlap)} by atom overlap, {counted(c.lindemann)} by "
            f"the Lindemann index{melted}. In brackets: Wilson 95 % intervals over structures."
        )
    return TEMPLATE.format(
        title=f"{run.name}: {network.name}",
        version=run.environment.get("mdl_physpre", __version__),
        facts=markdown_table(facts),
        errors=_errors(run.summary, network),
        dynamics=dynamics,
        stress=_stress(network),
        cutoff=cutoff,
        file=file,
    )


def _errors(summary: Summary, network: NetworkResult) -> str:
    """Beside those of the null model and of the embedded-atom potential, if there is one; untrained is said first."""
    if not network.errors:
        return "Not computed."
    sources = {"this network": network.errors, "EAM": summary.eam.errors if summary.eam else {}}
    sources[NULL_MODEL] = summary.null_model
    rows = [["test set", "potential", "structures", *(title for title, _, _ in ERRORS)]]
    for test_set in network.errors:
        for who, e in ((who, own[test_set]) for who, own in sources.items() if test_set in own):
            cells = (shown(getattr(e, key), form) for _, key, form in ERRORS)
            rows.append([test_set, who, str(e.n_structures), *cells])
    said = [untrained_sentence(one) for one in summary.untrained if network.name in one.networks]
    null = f"{NULL_MODEL.capitalize()}: no forces, no stress, energies of composition alone."
    return "\n\n".join([*said, markdown_table(rows), *[null] * (NULL_MODEL in {row[1] for row in rows})])


def _stress(network: NetworkResult) -> str:
    if not network.stress:
        return "Not tested."
    rows = [["test", "scale", "half broken at (95 %)", "broken", "by"]]
    for test, result in network.stress.items():
        found = breaking_statistics(result.observations(), result.quantity, result.unit)
        broken = f"{found.broken} of {found.n}"
        rows.append([titled(test), result.quantity, median_words(found), broken, reasons_words(found)])
    return markdown_table(rows)


def _trained_on(train: SetCounts | None) -> str:
    if train is None:
        return "unknown"
    counts = ", ".join(f"{label} on {train.labels.get(label, 0)}" for label in LABELS)
    return f"{train.structures} structures, {train.atoms} atoms ({counts})"


def _elements(content: Mapping[str, Any]) -> str:
    return ", ".join(chemical_symbols[z] for z in content.get("elements") or []) or "any"


def _energies(content: Mapping[str, Any]) -> str:
    known = content.get("training_energies")
    return "unknown" if known is None else TrainingEnergies.model_validate(known).text()
