"""Two ways to minimise the loss of an embedded-atom fit: AdamW as in the paper, and L-BFGS on tabulated distances."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from mdl_physpre.eam_fit.objective import FitObjective, Loss
from mdl_physpre.eam_fit.settings import EAMFitSettings
from mdl_physpre.eam_fit.wall import WallPrior
from mdl_physpre.errors import FitError
from mdl_physpre.potentials.eam.covalent_radii import covalent_radius
from mdl_physpre.potentials.eam.potential import EAMInteraction
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.structures.graph import GraphDataset
from mdl_physpre.structures.labels import LABELS

NAMES = ("A", "beta", "D", "alpha", "r_e", "B", "rho0", "E0")


def parameters_of(potential: EAMInteraction) -> dict[str, Tensor]:
    """The parameters by name, detached, with ``B`` itself for the stored ``b``."""
    return {name: getattr(potential, name).detach().clone() for name in NAMES}


def set_parameters(potential: EAMInteraction, parameters: dict[str, Tensor]) -> None:
    """Write parameters by name into a potential."""
    with torch.no_grad():
        for name in NAMES:
            getattr(potential, "b" if name == "B" else name).copy_(parameters[name])


@dataclass
class BestState:
    """The parameters with the lowest validation loss (and wall penalty, where there is one) so far, and how it went."""

    validation: FitObjective
    started: float = field(default_factory=time.perf_counter)
    loss: float = float("inf")
    parameters: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)

    def add(self, epoch: int, train_loss: float, parameters: dict[str, Tensor], **more: float) -> None:
        """Judge ``parameters`` after ``epoch`` passes over the training data; ``more`` goes into the history.

        Raises FitError, naming the epoch and the parameter, where a parameter or a loss is not finite.
        """
        for name, values in parameters.items():
            if not bool(values.isfinite().all()):
                raise FitError(
                    f"the fit diverged in epoch {epoch}: parameter {name} is {values.flatten().tolist()[:4]}…; "
                    "lower the learning rate, or look for structures with extreme forces in the training data"
                )
        loss = self.validation(parameters, gradient=False)
        if not np.isfinite(train_loss) or not np.isfinite(loss.value):
            extreme = max(parameters, key=lambda n: float(parameters[n].abs().max()))
            raise FitError(
                f"the fit diverged in epoch {epoch}: training loss {train_loss}, validation loss {loss.value}, largest "
                f"parameter {extreme} = {float(parameters[extreme].abs().max()):.3g}; lower the learning rate, or look "
                "for structures with extreme labels in the training data"
            )
        row = {"epoch": epoch, "train_loss": train_loss, "val_loss": loss.value}
        row |= {f"val_{name}": value for name, value in loss.errors.items()}
        self.history.append({**row, **more, "seconds": time.perf_counter() - self.started})
        score = loss.value + more.get("wall", 0.0)
        if score < self.loss:
            self.loss, self.parameters = score, {n: p.clone() for n, p in parameters.items()}


def fit_reference(
    potential: EAMInteraction,
    train: GraphDataset,
    best: BestState,
    passes: Iterable[int],
    settings: EAMFitSettings,
    seed: int,
) -> None:
    """The paper's route: AdamW on mini-batches, gradients clipped at norm 10, learning rate lowered on a plateau.

    ReduceLROnPlateau (factor 0.8, patience 10, threshold 2e-4, least rate 1e-5) sees the training loss; the state kept
    is the one of lowest validation loss.
    """
    generator = np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(potential.parameters(), lr=settings.lr)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, factor=0.8, patience=10, threshold=2e-4, min_lr=1e-5
    )
    for epoch in passes:
        order = generator.permutation(len(train))
        total = 0.0
        for start in range(0, len(order), settings.batch_size):
            indices = order[start : start + settings.batch_size]
            loss = batch_loss(potential, train, indices, settings.weights)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(potential.parameters(), 10.0)
            optimiser.step()
            total += float(loss.detach()) * len(indices)
        rate = optimiser.param_groups[0]["lr"]
        best.add(epoch, total / len(order), parameters_of(potential), learning_rate=rate)
        schedule.step(total / len(order))


def batch_loss(
    potential: EAMInteraction, dataset: GraphDataset, indices: np.ndarray, weights: tuple[float, float, float]
) -> Tensor:
    """Σ_l w_l · mean |prediction − label| of a mini-batch, differentiable in the parameters."""
    graph = dataset.batch(indices).on(potential.E0.device)
    predicted = evaluate(potential, graph, create_graph=True)
    loss = torch.zeros((), dtype=torch.float64, device=potential.E0.device)
    for weight, name, values in zip(weights, LABELS, (predicted.energies, predicted.forces, predicted.stress)):
        known = graph[name].isfinite()
        if weight and bool(known.any()):
            loss = loss + weight * (values[known] - graph[name][known]).abs().mean()  # type: ignore[index]
    if not loss.requires_grad:
        loss = loss + 0.0 * potential.E0.sum()
    return loss


# how far each kind of free variable usually moves: what L-BFGS takes for one
UNITS = {"A": 0.1, "beta": 0.3, "D": 1.0, "alpha": 0.5, "r_e": 0.2, "B": 0.5, "rho0": 1.0, "E0": 5.0}
SMOOTHING = 0.1  # |x| is rounded off over this share of the mean absolute error
FAR_OFF = 1e12  # loss given to L-BFGS where a step was so long that the loss is not finite


class Scaling:
    """Free variables of the fast route: one vector, each entry of order one, with bounds.

    Per pair: a_k = A_k exp(−β_k r_c), the density at the covalent distance r_c, whose optimum hardly moves with β_k;
    ln β_k; ln D; α; r_e/r_c. Per element: B, ρ0, and E0 less its start. The bounds keep every Morse term a well with a
    wall: 0.05 ≤ D ≤ 20 eV, 0.8 ≤ α ≤ 4 /Å, 0.7 ≤ r_e/r_c ≤ 1.5; and 0.3 ≤ β ≤ 4 /Å, B ≥ 0 unless signed.
    """

    def __init__(self, potential: EAMInteraction, start: dict[str, Tensor]) -> None:
        radii = [covalent_radius(zi) + covalent_radius(zj) for zi, zj in potential.pairs]
        self.r_c = torch.tensor(radii, dtype=torch.float64)
        self.e0 = start["E0"].clone()
        limits = {"beta": np.log((0.3, 4.0)), "D": np.log((0.05, 20.0)), "alpha": (0.8, 4.0), "r_e": (0.7, 1.5)}
        if not potential.signed_embedding:
            limits["B"] = (0.0, np.inf)
        self.shapes = {name: start[name].shape for name in NAMES}
        self.sizes = [start[name].numel() for name in NAMES]
        units = [UNITS[n] for n, size in zip(NAMES, self.sizes) for _ in range(size)]
        self.units = torch.tensor(units, dtype=torch.float64)
        both = np.array([limits.get(n, (-np.inf, np.inf)) for n, size in zip(NAMES, self.sizes) for _ in range(size)])
        self.bounds = both / self.units.numpy()[:, None]

    def vector(self, parameters: dict[str, Tensor]) -> np.ndarray:
        """The free variables of ``parameters``, held within the bounds."""
        p = parameters
        free = {
            **p,
            "A": p["A"] * torch.exp(-p["beta"] * self.r_c[:, None]),
            "beta": p["beta"].log(),
            "D": p["D"].clamp(min=1e-6).log(),
            "r_e": p["r_e"] / self.r_c,
            "E0": p["E0"] - self.e0,
        }
        x = (torch.cat([free[name].reshape(-1) for name in NAMES]) / self.units).numpy()
        clipped: np.ndarray = np.clip(x, self.bounds[:, 0], self.bounds[:, 1])
        return clipped

    def parameters(self, x: Tensor) -> dict[str, Tensor]:
        """The parameters of free variables, differentiable."""
        parts = (x * self.units).split(self.sizes)
        free = {name: part.reshape(self.shapes[name]) for name, part in zip(NAMES, parts)}
        beta = free["beta"].exp()
        return {
            **free,
            "A": free["A"] * torch.exp(beta * self.r_c[:, None]),
            "beta": beta,
            "D": free["D"].exp(),
            "r_e": free["r_e"] * self.r_c,
            "E0": self.e0 + free["E0"],
        }


def fit_fast(
    potential: EAMInteraction,
    objective: FitObjective,
    wall: WallPrior,
    best: BestState,
    passes: Iterable[int],
    epochs: int,
) -> None:
    """L-BFGS with bounds on the whole training set, its absolute values rounded off at zero, plus the wall penalty.

    An epoch is one evaluation of loss and gradient over all training structures. |x| is rounded off over a tenth of the
    mean absolute error of its label, first of the errors at the start, then anew of those reached after half of the
    epochs left, and so on, until that lowers the loss by less than a thousandth. E0, which the loss hardly weighs, is
    solved for at each step (:func:`energy_shift`). Both the minimised loss and the validation loss by which the best
    state is chosen include :class:`WallPrior`.
    """
    start = parameters_of(potential)
    scaling = Scaling(potential, start)
    steps = _Steps(objective, wall, scaling, best, iter(passes), objective(start, gradient=False))
    x = scaling.vector(start)
    steps.judge(x)
    reached = steps.latest.value
    while steps.done < epochs:
        smoothing = {name: SMOOTHING * error for name, error in steps.latest.errors.items() if np.isfinite(error)}
        left = epochs - steps.done
        options = {"maxfun": max(left // 2, min(left, 30)), "maxiter": left, "maxcor": 30, "ftol": 1e-6}
        x = minimize(
            steps, x, (smoothing,), "L-BFGS-B", jac=True, bounds=scaling.bounds, callback=steps.judge, options=options
        ).x
        parameters = scaling.parameters(torch.tensor(x))
        shift = energy_shift(objective.composition, objective(parameters, gradient=False).energies_left)
        parameters["E0"] = parameters["E0"] + shift
        x = scaling.vector(parameters)
        steps.latest = objective(parameters, gradient=False)
        if steps.latest.value > 0.999 * reached:
            break
        reached = steps.latest.value
    for _ in steps.ticks:
        pass


@dataclass
class _Steps:
    """Loss and gradient of the fast route, counted. ``latest`` is of the last point seen, the one L-BFGS accepts."""

    objective: FitObjective
    wall: WallPrior
    scaling: Scaling
    best: BestState
    ticks: Iterator[int]
    latest: Loss
    done: int = 0

    def __call__(self, x: np.ndarray, smoothing: dict[str, float]) -> tuple[float, np.ndarray]:
        self.done += 1
        next(self.ticks, None)
        free = torch.tensor(x, requires_grad=True)
        parameters = self.scaling.parameters(free)
        loss = self.objective(parameters, smoothing)
        penalty = self.wall(parameters)
        value = loss.value + float(penalty.detach())
        outputs = [*parameters.values(), penalty]
        gradients = [*(loss.gradient[name] for name in parameters), torch.ones_like(penalty)]  # type: ignore[index]
        torch.autograd.backward(outputs, gradients)
        slope = free.grad.numpy()  # type: ignore[union-attr]
        if not (np.isfinite(value) and np.isfinite(slope).all()):
            return FAR_OFF, np.zeros_like(slope)  # too long a step: the line search comes back
        self.latest = loss
        return value, slope

    def judge(self, x: np.ndarray) -> None:
        """Keep the parameters at ``x`` where they are the best so far."""
        parameters = {name: p.detach() for name, p in self.scaling.parameters(torch.tensor(x)).items()}
        parameters["E0"] = parameters["E0"] + energy_shift(self.objective.composition, self.latest.energies_left)
        counted = {name: w for name, w in self.objective.weights.items() if self.objective.counts[name]}
        train_loss = sum(w * self.latest.errors[name] for name, w in counted.items())
        self.best.add(self.done, train_loss, parameters, wall=float(self.wall(parameters)))


def energy_shift(composition: Tensor, left: Tensor) -> Tensor:
    """The E0 of least Σ |left − composition · E0|, (n_elements,), eV, by reweighted least squares of minimum norm.

    ``composition`` (n_structures, n_elements); ``left`` (n_structures,) eV, NaN where there is no energy.
    """
    known = left.isfinite()
    shift = torch.zeros(composition.shape[1], dtype=torch.float64)
    if not bool(known.any()):
        return shift
    matrix, target = composition[known], left[known]
    for _ in range(30):
        weight = (target - matrix @ shift).abs().clamp(min=1e-4).rsqrt()[:, None]
        shift = torch.linalg.lstsq(matrix * weight, target[:, None] * weight, rcond=1e-8, driver="gelsd").solution[:, 0]
    return shift
