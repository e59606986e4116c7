"""The gradient of the loss of one batch: evaluation, precision, compilation, and the sum over devices."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from mdl_physpre.potentials.base import AtomicPotential, Predictions
from mdl_physpre.potentials.compiled import CompiledPotential
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.structures.graph import AtomGraph
from mdl_physpre.training.constant_parts import taken_apart
from mdl_physpre.training.loss import LabelError, label_errors, total_loss, wanted_labels
from mdl_physpre.training.ranks import Ranks
from mdl_physpre.training.settings import TrainingSettings

Errors = dict[str, LabelError]


@contextmanager
def products_in_tf32() -> Iterator[None]:
    """Matrix products of float32 in TF32 on CUDA; afterwards as before."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class LossGradient:
    """Takes the gradient of L = L(batch) + Σ weight · L(graph that is replayed with it), clipped.

    Parameters
    ----------
    potential : whose parameters get the gradients; parts of a sum that have none to train are evaluated once for each
        structure.
    settings, replay_settings : of the loss of the batch, and of what is replayed.
    ranks : over which gradients are added up.
    """

    def __init__(
        self, potential: AtomicPotential, settings: TrainingSettings, replay_settings: TrainingSettings, ranks: Ranks
    ) -> None:
        self.potential, self.settings, self.replay_settings, self.ranks = potential, settings, replay_settings, ranks
        self._trained, self._constant = taken_apart(potential)
        self._compiled = CompiledPotential(self._trained) if settings.compile else None
        self.taken = 0  # gradients so far

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those that are trained."""
        return [p for p in self.potential.parameters() if p.requires_grad]

    def __call__(
        self, graph: AtomGraph, replayed: Sequence[tuple[AtomGraph, float]]
    ) -> tuple[Errors, list[Errors], Tensor | None]:
        """Set the gradients of the parameters.

        Returns
        -------
        Errors of the batch; those of each graph that is replayed; and the norm of the gradient before clipping with
        the loss, (2,), on the device, float64: ``None`` where the loss depends on no parameter.
        """
        parameters = self.parameters
        self.potential.zero_grad(set_to_none=True)
        self.taken += 1
        found, losses = [], []
        with products_in_tf32() if self.settings.precision == "tf32" else nullcontext():
            for part, weight in ((graph, 1.0), *replayed):
                settings = self.settings if part is graph else self.replay_settings
                try:
                    errors, loss = self._of_one(part, settings, weight, parameters)
                except Exception as error:
                    if self._compiled is None or not isinstance(error, self._compiled.compile_errors):
                        raise
                    self._compiled.give_up(error)  # the code for the gradient is made when it is first asked for
                    errors, loss = self._of_one(part, settings, weight, parameters)
                found.append(errors)
                losses.append(loss)
        loss = self.ranks.sum_gradients(parameters, torch.stack(losses).sum())
        if all(p.grad is None for p in parameters):
            return found[0], found[1:], None
        clip = self.settings.clip_grad_norm
        norm = nn.utils.clip_grad_norm_(parameters, math.inf if clip is None else clip)
        return found[0], found[1:], torch.stack([norm.double(), loss])

    def _of_one(
        self, graph: AtomGraph, settings: TrainingSettings, weight: float, parameters: list[nn.Parameter]
    ) -> tuple[Errors, Tensor]:
        errors = label_errors(self.evaluate(graph, settings, create_graph=True), graph, settings)
        loss = weight * total_loss(self.ranks.with_all_counts(errors), settings)
        if loss.requires_grad:  # not in positions, which autograd would also go back to
            torch.autograd.backward(loss, inputs=parameters)
        return errors, loss.detach()

    def validation_errors(self, graph: AtomGraph) -> Errors:
        """Errors of a batch, without a gradient in the parameters and in full precision."""
        with torch.no_grad():
            return label_errors(self.evaluate(graph, self.settings, create_graph=False), graph, self.settings)

    def evaluate(self, graph: AtomGraph, settings: TrainingSettings, create_graph: bool) -> Predictions:
        """Predictions of the labels that have a weight; differentiable in the parameters with ``create_graph``."""
        if len(graph.n_atoms) == 0:  # the share of a rank may be empty
            shapes = ((0,), (0, 3), (0, 3, 3))
            return Predictions(*(torch.zeros(shape, dtype=torch.float64, device=graph.pos.device) for shape in shapes))
        labels = wanted_labels(settings)
        # only matrix products are rounded to bfloat16; positions, sums, the loss and validation stay as they are
        half = create_graph and self.settings.precision == "bf16"
        with torch.autocast(graph.pos.device.type, torch.bfloat16, enabled=half):
            found = evaluate(
                self._compiled if create_graph and self._compiled is not None else self._trained,
                graph,
                forces="forces" in labels,
                stress="stress" in labels,
                create_graph=create_graph,
                recompute_edges=self.settings.recompute_edges if create_graph else None,
            )
        if self._constant is None:
            return found
        return found.plus(self._constant.predictions(graph, "forces" in labels, "stress" in labels))
