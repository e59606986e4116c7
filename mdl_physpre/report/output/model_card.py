"""A card beside each checkpoint: what it was trained on, how good it is, and what it is not for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mdl_physpre import __version__
from mdl_physpre.report.tables.page import ERRORS
from mdl_physpre.report.tables.text import counted, markdown_table, shown
from mdl_physpre.runs.read import Run, network_names

CARD = "model_card.md"


def write_cards(run: Run, hashes: Mapping[str, str]) -> list[Path]:
    """``model_card.md`` beside the checkpoint of every network that is trained."""
    written = []
    for arm in run.arms:
        networks = run.networks(arm)
        for name, network in zip(network_names(arm, len(networks)), networks):
            checkpoint = network.get("checkpoint")
            if checkpoint and (run.folder / checkpoint).exists():
                path = (run.folder / checkpoint).with_name(CARD)
                path.write_text(card(run, arm, name, network, hashes), encoding="utf-8")
                written.append(path)
    return written


def card(run: Run, arm: str, name: str, network: Mapping[str, Any], hashes: Mapping[str, str]) -> str:
    """The card of one network as Markdown."""
    config, data = run.config, run.summary.get("data") or {}
    train = data.get("train") or {}
    labels = train.get("labels") or {}
    model = {k: v for k, v in config["model"].items() if k != "name" and v is not None}
    cutoff = config["dataset"]["preprocess_params"]["cutoff_radius"]
    source = config["dataset"]["src"]
    dynamics = network.get("dynamics")
    parts = [
        f"# {run.name}: {name}",
        "",
        f"An interatomic potential trained by mdl-physpre {run.environment.get('mdl_physpre', __version__)}.",
        "",
        markdown_table(
            [
                ["", ""],
                ["checkpoint", Path(network["checkpoint"]).name],
                ["backbone", config["model"]["name"]],
                ["hyperparameters", ", ".join(f"{k} {v}" for k, v in model.items()) or "defaults"],
                ["cutoff", f"{cutoff:g} Å"],
                ["elements", _elements(run, network)],
                ["arm", arm],
                ["seed", str(network.get("seed", config.get("task", {}).get("seed")))],
                ["trained on", _trained_on(train, labels)],
                ["data", ", ".join(str(v) for v in (source.values() if isinstance(source, dict) else [source]))],
                *[["hash", f"{file}: SHA-256 {value}"] for file, value in hashes.items()],
                ["licence", "that of the data, which the run does not know: ask where they come from"],
                ["units", "eV, Å, eV/Å, eV/Å³; stress is positive in tension"],
            ]
        ),
        "",
        "## Errors",
        "",
    ]
    errors = network.get("errors") or {}
    rows = [["test set", "structures", *(title for title, _, _ in ERRORS)]]
    rows += [
        [test_set, str(e["n_structures"]), *(shown(e.get(key), form) for _, key, form in ERRORS)]
        for test_set, e in errors.items()
    ]
    parts += [markdown_table(rows) if errors else "Not computed.", "", "## Molecular dynamics", ""]
    if dynamics:
        s = dynamics["settings"]
        parts += [
            f"{s['ensemble'].upper()} at {s['temperature']:g} K, {s['steps']} steps of {s['timestep']:g} fs: "
            f"{counted(dynamics['failed'])} structures failed, {counted(dynamics['overlap'])} by atom overlap, "
            f"{counted(dynamics['lindemann'])} by the Lindemann index. In brackets: Wilson 95 % intervals over "
            "structures."
        ]
    else:
        parts += ["Not simulated, or not to the end."]
    parts += [
        "",
        "## Limits",
        "",
        f"- It knows the elements named above and no others, and sees nothing beyond {cutoff:g} Å.",
        "- The errors are of structures drawn like the training data. Denser, hotter or otherwise different ones were "
        "tested only where a test set above says so.",
        "- It has not been tested for longer simulations, other ensembles or other temperatures than those above.",
        "- One network of its kind: another seed gives another potential, and another count of failures.",
        "",
        "```python",
        "from mdl_physpre import PotentialCalculator, load_potential",
        "",
        f'atoms.calc = PotentialCalculator(load_potential("{Path(network["checkpoint"]).name}"))',
        "```",
        "",
    ]
    return "\n".join(parts)


def _trained_on(train: Mapping[str, Any], labels: Mapping[str, Any]) -> str:
    if not train:
        return "unknown"
    counts = ", ".join(f"{kind} on {labels.get(kind, 0)}" for kind in ("energy", "forces", "stress"))
    return f"{train['structures']} structures, {train['atoms']} atoms ({counts})"


def _elements(run: Run, network: Mapping[str, Any]) -> str:
    from ase.data import chemical_symbols

    from mdl_physpre.potentials.checkpoints.own import read_checkpoint

    numbers = read_checkpoint(run.folder / network["checkpoint"]).get("elements") or []
    return ", ".join(chemical_symbols[z] for z in numbers) or "any"
