"""Tables of a run for the terminal, and the words in them that the report shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MISSING = "–"

ERROR_COLUMNS = (
    ("energy, eV", "energy_mae", "{:.3f}"),
    ("energy, meV/atom", "energy_mae_mev_per_atom", "{:.1f}"),
    ("forces, eV/Å", "forces_mae", "{:.4f}"),
    ("stress, eV/Å³", "stress_mae", "{:.5f}"),
    ("total", "total", "{:.3f}"),
)


def shown(value: Any, form: str) -> str:
    """A number as text; "–" where there is none."""
    return MISSING if value is None else form.format(value)


def rounded(value: float, digits: int = 3) -> str:
    """A number to so many significant digits, zeros at the end kept: 0.360, 9.28, 1450."""
    text = f"{value:#.{digits}g}".rstrip(".")
    return f"{value:.0f}" if "e+" in text else text


def text_table(rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Rows, the first of them headings, as aligned text; the first ``words`` columns are not numbers."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = [
        "  ".join(v.ljust(w) if k < words else v.rjust(w) for k, (v, w) in enumerate(zip(row, widths))).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the first of them headings, as a Markdown table."""
    head, *body = ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in rows]
    rule = "|---|" + "---:|" * (len(rows[0]) - 1)
    return "\n".join([head, rule, *body])


def error_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """Mean absolute errors: one row for each test set and potential."""
    rows = [["test set, potential", "structures", *(title for title, _, _ in ERROR_COLUMNS)]]
    for name, who, errors in _errors(summary):
        spread = summary[who].get("errors_deviation", {}).get(name, {}) if who in summary["arms"] else {}
        rows.append(
            [
                f"{name}: {who}",
                str(errors["n_structures"]),
                *(
                    shown(errors.get(key), form) + (f" ± {form.format(spread[key])}" if spread.get(key) else "")
                    for _, key, form in ERROR_COLUMNS
                ),
            ]
        )
    return rows


def _errors(summary: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    arms = summary["arms"]
    found = []
    for name in summary[arms[0]]["errors"]:
        for arm in arms:
            found.append((name, arm, summary[arm]["errors"][name]))
        for arm in arms:
            if "errors_before_finetuning" in summary[arm]:
                found.append((name, f"{arm}, before finetuning", summary[arm]["errors_before_finetuning"][name]))
        if "eam" in summary:
            found.append((name, "EAM", summary["eam"]["errors"][name]))
        if "teacher" in summary:
            found.append((name, "teacher", summary["teacher"]["errors"][name]))
    return found


def counted(part: Mapping[str, Any]) -> str:
    """``3 of 20 (5–36 %)``: a count with its Wilson 95 % interval."""
    if not part["n"]:
        return "n/a"
    low, high = part["interval"]
    return f"{part['count']} of {part['n']} ({100 * low:.0f}–{100 * high:.0f} %)"


def paired_sentence(pair: Mapping[str, Any]) -> str:
    """One sentence on a pair of simulations, or on two arms with several networks each."""
    if "first_each" in pair:
        first, second = (", ".join(map(str, pair[key])) for key in ("first_each", "second_each"))
        return (
            f"Broken of {pair['n_each']} with each network: {pair['first']} {first}; {pair['second']} {second} "
            f"(exact permutation test over networks: p = {pair['p_value']:.2g})."
        )
    if not pair["shared"]:
        return f"{pair['first']} and {pair['second']} share no structure."
    return (
        f"Of {pair['shared']} structures simulated by both, {pair['first_only']} broke with {pair['first']} alone, "
        f"{pair['second_only']} with {pair['second']} alone, {pair['both']} with both "
        f"(exact McNemar test: p = {pair['p_value']:.2g})."
    )


def dynamics_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """Broken trajectories of each arm, by criterion."""
    rows = [["arm", "broken", "atom overlap", "Lindemann", "other", "median failing step"]]
    for arm in summary["arms"]:
        found = summary[arm].get("dynamics")
        if found is None:
            continue
        others = {
            r: c["count"]
            for r, c in found["by_reason"].items()
            if c["count"] and not r.startswith(("overlap", "lindemann"))
        }
        rows.append(
            [
                arm,
                counted(found["failed"]),
                counted(found["overlap"]),
                counted(found["lindemann"]),
                ", ".join(f"{r} {c}" for r, c in others.items()) or "none",
                shown(found["median_failing_step"], "{:.0f}"),
            ]
        )
    return rows


def budget_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """What each arm spent."""
    rows = [["arm, stage", "epochs", "steps", "gradients", "structures seen", "seconds"]]
    for arm in summary["arms"]:
        for stage, spent in summary[arm]["training"]["budget"].items():
            rows.append(
                [
                    f"{arm}, {stage}",
                    f"{spent['epochs']:.0f}",
                    f"{spent['steps']:.0f}",
                    f"{spent.get('gradients', spent['steps']):.0f}",
                    f"{spent['structures']:.0f}",
                    f"{spent['seconds']:.0f}",
                ]
            )
    return rows


def protocol(summary: Mapping[str, Any]) -> str:
    """What was simulated, and what counts as broken."""
    found = next((summary[arm]["dynamics"] for arm in summary["arms"] if summary[arm].get("dynamics")), None)
    if found is None:
        return "No molecular dynamics was run."
    s, networks = found["settings"], found.get("networks", 1)
    several = f" with each of {networks} networks for every arm" if networks > 1 else ""
    return (
        f"{found['n'] // networks} test structures{several}, {s['ensemble'].upper()} at {s['temperature']:g} K, "
        f"{s['steps']} steps of {s['timestep']:g} fs. Broken, that is failed: the smallest distance falls to "
        f"{s['overlap_ratio']:g} of its start (atom overlap), or a Lindemann index passes {s['lindemann_local']:g} "
        f"(one atom) or {s['lindemann_global']:g} (mean)."
    )


def format_summary(summary: Mapping[str, Any]) -> str:
    """The tables of a run for the terminal."""
    parts = ["Mean absolute errors on test structures", text_table(error_rows(summary)), ""]
    rows = dynamics_rows(summary)
    if len(rows) > 1:
        parts += ["Molecular dynamics. " + protocol(summary), text_table(rows)]
        parts += [*map(paired_sentence, summary.get("pairs", ())), ""]
    parts += ["Training", text_table(budget_rows(summary))]
    return "\n".join(parts)


def format_verdicts(verdicts: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> str:
    """A row for each structure, and the counts."""
    rows = [["structure", "atoms", "verdict", "first failing step", "reasons"]]
    for v in verdicts:
        rows.append(
            [
                f"{v['structure_id']} {v['formula']}",
                str(v["n_atoms"]),
                v["status"],
                shown(v["first_failing_step"], "{:d}"),
                ", ".join(v["reasons"]) or MISSING,
            ]
        )
    counts = ", ".join(
        f"{what} {counted(found[key])}"
        for what, key in (("broken", "failed"), ("atom overlap", "overlap"), ("Lindemann", "lindemann"))
    )
    return text_table(rows) + "\n" + counts
