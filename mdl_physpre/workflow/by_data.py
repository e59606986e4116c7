"""What a recipe leaves to the data: the number of steps, and whether there are stresses to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms

from mdl_physpre.structures.label_sources import look_like_labels
from mdl_physpre.structures.labels import label_counts
from mdl_physpre.training.data import batch_indices
from mdl_physpre.training.settings import OptimSettings
from mdl_physpre.workflow.config.hot_frames import HotFrames
from mdl_physpre.workflow.config.recipes import MOST_ELEMENTS, steps_of_recipe
from mdl_physpre.workflow.config.schema import Config, Physpre


def suited(config: Config, train: Sequence[Atoms], val: Sequence[Atoms]) -> tuple[Config, list[str]]:
    """The configuration with what its recipe leaves to the data decided, and a sentence for each change.

    What was given stays as it is. Called again with the result, it changes nothing.
    """
    optim, pretrain, said = config.optim, config.physpre.pretrain, []
    left = config._left_to_data
    for name, part in (("training", train), ("validation", val)):
        if "optim.weight_stress" not in left or not optim.weight_stress or label_counts(part)["stress"]:
            continue
        if not {"stress", "virial"} & set(look_like_labels(part).values()):  # else it is a key that is missing
            optim = optim.changed(weight_stress=0.0)
            said.append(f"no {name} structure has a stress, so that none is trained on: optim.weight_stress is 0")
    if "optim.max_steps" in left:
        per_epoch = steps_of_epoch(train, optim)
        steps = steps_of_recipe(per_epoch)
        if steps != optim.max_steps:
            optim = optim.changed(max_steps=steps)
            said.append(f"{per_epoch} steps in an epoch: optim.max_steps is {steps}")
            if "physpre.pretrain.max_steps" in left:
                pretrain = pretrain.changed(max_steps=steps // 3)
                said[-1] += f", physpre.pretrain.max_steps is {pretrain.max_steps}"
    changed: dict[str, Any] = {"pretrain": pretrain}
    n_elements = len({z for atoms in train for z in atoms.numbers})
    if "physpre.teacher.fit" in left and n_elements > MOST_ELEMENTS:
        changed |= {"teacher": None, "hot_frames": HotFrames()}
        said.append(f"{n_elements} elements: the embedded-atom potential is the teacher")
        if "physpre.arms" in left:
            changed["arms"] = list(Physpre.model_fields["arms"].default)
            said[-1] += f", and the arms are {' and '.join(changed['arms'])}"
    physpre = config.physpre.model_copy(update=changed)
    found = config.model_copy(update={"optim": optim, "physpre": physpre})
    found._left_to_data = frozenset()
    return found, said


def steps_of_epoch(structures: Sequence[Atoms], optim: OptimSettings) -> int:
    """Steps in a pass through structures, if no batch is cut for its edges."""
    sizes = np.array([len(atoms) for atoms in structures])
    filled = None if optim.batch_atoms is None else (sizes, optim.batch_atoms)
    return len(batch_indices(sizes, optim.batch_size, filled=filled))
