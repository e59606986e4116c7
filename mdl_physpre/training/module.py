"""The Lightning module: one training step, validation, and what happens at the end of an epoch."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from mdl_physpre.errors import TrainingError
from mdl_physpre.potentials.base import AtomicPotential, Potential, Predictions, evaluate
from mdl_physpre.potentials.compiled import CompiledPotential
from mdl_physpre.structures.graph import AtomGraph, GraphDataset
from mdl_physpre.training.arms import Online
from mdl_physpre.training.data import GraphBatches, batch_indices
from mdl_physpre.training.history import EpochLog, EpochSums, training_record
from mdl_physpre.training.loss import LabelError, check_labels, label_errors, total_loss, wanted_labels
from mdl_physpre.training.optimizer import make_optimizer
from mdl_physpre.training.ranks import Ranks
from mdl_physpre.training.replay import Replay, Steps
from mdl_physpre.training.sam import climb, go_back
from mdl_physpre.training.settings import TrainingSettings
from mdl_physpre.utils.progress import progress, shows_bars

logger = logging.getLogger(__name__)

STATE = "physpre"  # key of our part of a Lightning checkpoint
STATE_VERSION = 2
NAN_EPOCHS = 3  # epochs in a row with a loss that is not a number, after which training stops
LINE_EVERY = 10.0  # seconds between lines on progress
SAVE_EVERY = 1.0  # seconds between writes of the state: what a kill loses at most, beyond the epoch that runs


@contextmanager
def products_in_tf32() -> Iterator[None]:
    """Matrix products of float32 in TF32 on CUDA; afterwards as before."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class PotentialTraining(pl.LightningModule):
    """Trains a potential on energies, forces and stress.

    Everything that decides how training goes on is part of the checkpoint written at the end of each epoch: weights,
    optimiser, schedule, the best weights so far, early stopping, and the record of all epochs.
    """

    def __init__(
        self,
        potential: AtomicPotential,
        train: GraphDataset,
        validation: GraphDataset,
        settings: TrainingSettings,
        out: Path,
        online: Online | None = None,
        save_best: Callable[[Potential, dict[str, Any]], Any] | None = None,
        identity: str = "",
        replay: Replay | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # the norm of the gradient decides whether a step is taken at all
        self.potential = potential
        self.settings = settings
        self.out = out
        self._train_set, self._validation_set, self._online = train, validation, online
        self._train_epoch = -1
        self._save_best = save_best
        self._identity = identity
        self._replay = replay
        self.ranks = ranks or Ranks()
        self.log_file = EpochLog(self._log_path)
        self.best: dict[str, Any] = {"loss": math.inf, "epoch": -1, "weights": None}
        self.stopped_by: str | None = None
        self._nan_epochs = 0
        self._nan_batch: int | None = None
        self._validation_batches: GraphBatches | None = None
        # in a tuple: a part of this module would be stored with it
        self._evaluated = (CompiledPotential(potential) if settings.compile else potential,)
        self._train_sums = self._validation_sums = self._replay_sums = EpochSums(settings, self.ranks)
        self._last_line = self._last_saved = -math.inf
        self._bar: Any = None

    # --- data ---------------------------------------------------------------------------------------------------------

    @property
    def history(self) -> list[dict[str, Any]]:
        """One row for each epoch."""
        return self.log_file.rows

    @property
    def epoch(self) -> int:
        """The epoch being trained, from 0: as many as are complete."""
        return len(self.history)

    @property
    def _log_path(self) -> Path | None:
        return self.out / "log.csv" if self.ranks.first else None

    @property
    def _loading(self) -> dict[str, Any]:
        """How batches are cut."""
        return {"ranks": self.ranks, "gpu": self.device if self.device.type == "cuda" else None}

    def train_dataloader(self) -> Steps:
        if self._train_epoch != self.epoch:
            settings = self.settings
            if self._online is not None:
                online, epoch = self._online, self.epoch
                self._train_set = self.ranks.from_first(lambda: online(epoch))
                check_labels(self._train_set, "training", settings)
            batches = batch_indices(
                self._train_set.n_edges, settings.batch_size, settings.max_edges, settings.seed, self.epoch
            )
            self._train_steps = Steps(
                GraphBatches(self._train_set, batches, **self._loading),
                self._replay, settings, self.epoch, **self._loading,
            )  # fmt: skip
            self._train_epoch = self.epoch
        return self._train_steps

    def val_dataloader(self) -> GraphBatches:
        if self._validation_batches is None:
            n_edges = self._validation_set.n_edges
            batches = batch_indices(n_edges, self.settings.batch_size, self.settings.max_edges)
            self._validation_batches = GraphBatches(self._validation_set, batches, **self._loading)
        return self._validation_batches

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        if isinstance(batch, tuple):
            graph, replayed = batch
            return graph.on(device), [(other.on(device), weight) for other, weight in replayed]
        return batch.on(device)

    # --- one step -----------------------------------------------------------------------------------------------------

    @property
    def _learning(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [p for p in self.potential.parameters() if p.requires_grad]

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = make_optimizer(self.potential, self.settings)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def _evaluate(self, graph: AtomGraph, settings: TrainingSettings, create_graph: bool) -> Predictions:
        if len(graph.n_atoms) == 0:  # the share of a rank may be empty
            shapes = ((0,), (0, 3), (0, 3, 3))
            return Predictions(*(torch.zeros(shape, dtype=torch.float64, device=graph.pos.device) for shape in shapes))
        labels = wanted_labels(settings)
        # only matrix products are rounded to bfloat16; positions, sums, the loss and validation stay as they are
        half = create_graph and self.settings.precision == "bf16"
        with torch.autocast(graph.pos.device.type, torch.bfloat16, enabled=half):
            return evaluate(
                self._evaluated[0] if create_graph else self.potential,
                graph,
                forces="forces" in labels,
                stress="stress" in labels,
                create_graph=create_graph,
                recompute_edges=self.settings.recompute_edges if create_graph else None,
            )

    def training_step(self, batch: tuple[AtomGraph, list[tuple[AtomGraph, float]]], index: int) -> None:
        graph, replayed = batch
        self._structures += self._train_steps.structures[index]
        self._steps += 1
        errors, replay_errors, outcome = self._gradient(graph, replayed, index)
        if outcome is None:
            return
        outcomes = [outcome]
        if self.settings.sam_rho is not None:
            parameters = self._learning
            before = climb(parameters, self.settings.sam_rho, self.settings.sam_adaptive)
            _, _, second = self._gradient(graph, replayed, index)
            go_back(parameters, before)
            outcomes.append(torch.full_like(outcome, math.nan) if second is None else second)
        # the one time in a step that the host waits for the device
        norms, losses = torch.stack(outcomes).T.tolist()
        if self._nan_batch is None and not all(map(math.isfinite, losses)):
            self._nan_batch = index
        if not all(map(math.isfinite, [*norms, *losses])):
            self._skipped += 1
            return
        clip, norm = self.settings.clip_grad_norm, max(norms)
        self._norm_sum += norm
        self._clipped += clip is not None and norm > clip
        self.optimizers().optimizer.step()  # type: ignore[union-attr]
        self._train_sums.add(errors)
        for found in replay_errors:
            self._replay_sums.add(found)

    def _gradient(
        self, graph: AtomGraph, replayed: list[tuple[AtomGraph, float]], index: int
    ) -> tuple[dict[str, LabelError], list[dict[str, LabelError]], Tensor | None]:
        """Errors of the batch and of what is replayed with it; the norm of the gradient before clipping, and the loss,
        (2,), on the device, float64.

        The last is ``None`` where the loss depends on no parameter.
        """
        parameters = self._learning
        self.zero_grad(set_to_none=True)
        self._gradients += 1
        found, losses = [], []
        with products_in_tf32() if self.settings.precision == "tf32" else nullcontext():
            for part, weight in ((graph, 1.0), *replayed):
                settings = self.settings if self._replay is None or part is graph else self._replay.settings
                try:
                    errors, loss = self._errors_and_loss(part, settings, weight, parameters)
                except Exception as error:
                    compiled = self._evaluated[0]
                    if not (isinstance(compiled, CompiledPotential) and isinstance(error, compiled.compile_errors)):
                        raise
                    compiled.give_up(error)  # the code for the gradient is made when it is first asked for
                    errors, loss = self._errors_and_loss(part, settings, weight, parameters)
                found.append(errors)
                losses.append(loss)
        loss = self.ranks.sum_gradients(parameters, torch.stack(losses).sum())
        if all(p.grad is None for p in parameters):
            return found[0], found[1:], None
        clip = self.settings.clip_grad_norm
        norm = nn.utils.clip_grad_norm_(parameters, math.inf if clip is None else clip)
        return found[0], found[1:], torch.stack([norm.double(), loss])

    def _errors_and_loss(
        self, graph: AtomGraph, settings: TrainingSettings, weight: float, parameters: list[nn.Parameter]
    ) -> tuple[dict[str, LabelError], Tensor]:
        """Errors and loss of a batch; the gradient of the loss is added to that of the parameters."""
        errors = label_errors(self._evaluate(graph, settings, create_graph=True), graph, settings)
        loss = weight * total_loss(self.ranks.with_all_counts(errors), settings)
        if loss.requires_grad:  # not in positions, which autograd would also go back to
            torch.autograd.backward(loss, inputs=parameters)
        return errors, loss.detach()

    def validation_step(self, graph: AtomGraph, index: int) -> None:
        with torch.no_grad():
            self._validation_sums.add(
                label_errors(self._evaluate(graph, self.settings, create_graph=False), graph, self.settings)
            )

    # --- progress -----------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        left = self.settings.max_epochs - self.epoch
        if shows_bars() and self.ranks.first:  # elsewhere the lines of the log tell it
            self._bar = progress(range(left + 1), total=left, description=f"training, epochs after {self.epoch}")
            next(self._bar, None)

    def close_bar(self) -> None:
        """Take the bar off the terminal, at the end or after an error."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    # --- epochs -------------------------------------------------------------------------------------------------------

    def on_train_epoch_start(self) -> None:
        self._started = time.perf_counter()
        self._structures = self._steps = self._gradients = self._skipped = self._clipped = 0
        self._norm_sum = 0.0
        self._nan_batch = None
        self._train_sums = EpochSums(self.settings, self.ranks)
        self._validation_sums = EpochSums(self.settings, self.ranks)
        self._replay_sums = EpochSums(self._replay.settings if self._replay is not None else self.settings, self.ranks)
        # a backbone with random numbers of its own (dropout) draws the same ones after an interruption
        torch.manual_seed((self.settings.seed * 1_000_003 + self.epoch) % 2**63)

    def on_train_epoch_end(self) -> None:
        optimizer = self.optimizers().optimizer  # type: ignore[union-attr]
        row: dict[str, Any] = {"epoch": self.epoch, "lr": float(optimizer.param_groups[0]["lr"])}
        taken = self._steps - self._skipped
        row |= self._train_sums.summary("train") | self._validation_sums.summary("validation")
        if self._replay is not None:
            row |= self._replay_sums.summary("replay")
        row |= {
            "gradient_norm": self._norm_sum / taken if taken else math.nan,
            "clipped_steps": int(self._clipped),
            "skipped_steps": self._skipped,
            "steps": self._steps,
            "gradients": self._gradients,
            "structures": self._structures,
        }
        due = time.monotonic() - self._last_saved > SAVE_EVERY
        row["seconds"], due = self.ranks.from_first(lambda: (time.perf_counter() - self._started, due))
        self.log_file.append(row)
        self._stop_on_nan(row, taken)
        followed = row["train_loss" if self.settings.scheduler_loss == "train" else "validation_loss"]
        if math.isfinite(followed):
            self.lr_schedulers().step(followed)  # type: ignore[union-attr, call-arg]
        self._keep_best(row)
        self.stopped_by = self._reason_to_stop()
        self.trainer.should_stop = self.stopped_by is not None
        self._save(row, due or self.stopped_by is not None)

    def _stop_on_nan(self, row: dict[str, Any], taken: int) -> None:
        if self._nan_batch is None and taken and math.isfinite(row["validation_loss"]):
            self._nan_epochs = 0
            return
        self._nan_epochs += 1
        if self._nan_epochs < NAN_EPOCHS:
            return
        epoch = row["epoch"]
        if self._nan_batch is not None:
            structures = ", ".join(map(str, self._train_steps.batches.batches[self._nan_batch][:16]))
            where = f"the loss of batch {self._nan_batch} (structures {structures} of the training set) is not a number"
        elif not taken:
            where = f"the gradient of every batch, 0 to {self._steps - 1}, is not finite"
        else:
            where = "the validation loss is not a number"
        raise TrainingError(
            f"{self.out}: epoch {epoch}: {where}, the third epoch in a row with such a loss; "
            "check these structures (coincident atoms, labels out of range), or lower the learning rate"
        )

    def _keep_best(self, row: dict[str, Any]) -> None:
        if row["validation_loss"] < self.best["loss"]:
            weights = {k: v.detach().cpu().clone() for k, v in self.potential.state_dict().items()}
            self.best = {"loss": row["validation_loss"], "epoch": row["epoch"], "weights": weights}
            if self._save_best is not None and self.ranks.first:
                self._save_best(self.potential, training_record(self.best, self.settings))

    def _reason_to_stop(self) -> str | None:
        s = self.settings
        done = self.epoch
        if s.early_stopping_patience is not None and done - 1 - self.best["epoch"] >= s.early_stopping_patience:
            return "early stopping"
        if done >= s.max_epochs:
            return "max_epochs"
        if s.max_seconds is not None:
            spent = sum(row["seconds"] for row in self.history)
            if spent + spent / done > s.max_seconds:
                return "max_seconds"
        return None

    def _save(self, row: dict[str, Any], due: bool) -> None:
        # the checkpoint comes first: the log is written anew from it when training is taken up again
        if due:
            part = self.out / "last.ckpt.part"
            self.trainer.save_checkpoint(part)  # the first rank does, and the others wait
            if self.ranks.first:
                os.replace(part, self.out / "last.ckpt")
            self._last_saved = time.monotonic()
        self.log_file.write()
        for log in self.trainer.loggers:
            log.log_metrics({k: v for k, v in row.items() if k != "epoch"}, step=row["epoch"])
        if self._bar is not None:
            next(self._bar, None)
        if self.stopped_by or time.monotonic() - self._last_line > LINE_EVERY:
            self._last_line = time.monotonic()
            logger.info(
                "epoch %d of %d: training loss %.4g, validation loss %.4g (best %.4g in epoch %d), lr %.2g, %.1f s",
                row["epoch"] + 1,
                self.settings.max_epochs,
                row["train_loss"],
                row["validation_loss"],
                self.best["loss"],
                self.best["epoch"] + 1,
                row["lr"],
                row["seconds"],
            )

    # --- state --------------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[STATE] = {
            "version": STATE_VERSION,
            "settings": self.settings.model_dump(),
            "identity": self._identity,
            "history": self.log_file.text(),
            "best": self.best,
            "nan_epochs": self._nan_epochs,
            "stopped_by": self.stopped_by,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint[STATE]
        self.log_file = EpochLog(self._log_path, state["history"])
        self.best = dict(state["best"])
        self._nan_epochs = state["nan_epochs"]
