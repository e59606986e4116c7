"""Errors by the number of training structures, of the arms of several runs of ``known_truth.py``.

    python benchmarks/known_truth.py --train 8 --out runs/kumagai-8          # and 16, 31
    python benchmarks/learning_curve.py runs/kumagai-8 runs/kumagai-16 runs/kumagai-31 --out runs/learning-curve

Writes learning_curve.md and a figure: mean errors over the networks of an arm, with their standard deviation. Test sets
are those of each run, made by the same truth.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from known_truth_tables import markdown

from mdl_physpre.report.figures.style import MARKERS, save, styled, styles_of

TITLES = {"test": "test structures", "pair_pushed": "one pair pushed together", "volume_85": "85 % of the volume"}


def title(name: str) -> str:
    """What a figure calls a test set."""
    return TITLES.get(name, name.replace("hot_", "hot, ") + " K")


def rows_of(contents: Mapping[int, Mapping[str, Any]], arms: Sequence[str]) -> list[list[str]]:
    """Energies in meV/atom and forces in eV/Å of each arm and number of structures on each test set."""
    first = next(iter(contents.values()))["arms"]["truth"]["errors"]
    found = [["arm", "training structures", "networks", *(title(name) for name in first)]]
    for arm in arms:
        for n, content in contents.items():
            if arm in content["arms"]:
                of_arm = content["arms"][arm]
                cells = [
                    f"{e['energy']:.1f} / {e['forces']:.3f} ± {e['forces_deviation']:.3f}"
                    for e in of_arm["errors"].values()
                ]
                found.append([arm, str(n), str(of_arm["networks"]), *cells])
    return found


def draw(contents: Mapping[int, Mapping[str, Any]], arms: Sequence[str], sets: Sequence[str], folder: Path) -> None:
    """Errors of forces against the number of training structures, a panel for each test set."""
    with styled() as plt:
        figure, axes = plt.subplots(1, len(sets), figsize=(2.9 * len(sets), 2.9), sharex=True)
        for (arm, style), marker in zip(styles_of(arms).items(), MARKERS):
            known = [(n, content["arms"][arm]["errors"]) for n, content in contents.items() if arm in content["arms"]]
            for axis, name in zip(axes, sets):
                middle = [errors[name]["forces"] for _, errors in known]
                spread = [errors[name]["forces_deviation"] for _, errors in known]
                axis.errorbar([n for n, _ in known], middle, spread, label=arm, marker=marker, capsize=2, **style)
        for axis, name in zip(axes, sets):
            axis.set(xlabel="training structures", title=title(name), xscale="log")
            axis.set_ylim(bottom=0)
            axis.set_xticks(list(contents), [str(n) for n in contents], minor=False)
            axis.minorticks_off()
        axes[0].set(ylabel="error of forces, eV/Å")
        axes[-1].legend()
        save(figure, folder / "learning_curve.png")


def main(arguments: Sequence[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of known_truth.py")
    parser.add_argument("--arms", nargs="+", help="all of the first run where left out")
    parser.add_argument("--sets", nargs="+", help="test sets in the figure; all where left out")
    parser.add_argument("--out", type=Path, default=Path("runs/learning-curve"))
    given = parser.parse_args(arguments)
    read = [json.loads((run / "known_truth.json").read_text()) for run in given.runs]
    contents = {content["sizes"]["train"]: content for content in sorted(read, key=lambda c: c["sizes"]["train"])}
    first = read[0]["arms"]
    arms = given.arms or [arm for arm in first if arm != "truth"]
    text = markdown(rows_of(contents, arms))
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "learning_curve.md").write_text(text)
    draw(contents, arms, given.sets or list(first["truth"]["errors"]), given.out)
    print(text)
    return text


if __name__ == "__main__":
    main()
