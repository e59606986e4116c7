"""The Lightning module: batches, one training step, validation, and what happens at the end of an epoch."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from mdl_physpre.errors import TrainingError
from mdl_physpre.potentials.base import AtomicPotential
from mdl_physpre.potentials.checkpoints.own import save_potential
from mdl_physpre.potentials.training_energies import TrainingEnergies
from mdl_physpre.structures.graph import AtomGraph, GraphDataset
from mdl_physpre.training.arms import Online
from mdl_physpre.training.average import WeightAverage
from mdl_physpre.training.data import GraphBatches, epoch_batches
from mdl_physpre.training.epoch_progress import EpochProgress
from mdl_physpre.training.gradient import LossGradient
from mdl_physpre.training.history import EpochLog, EpochSums, training_record
from mdl_physpre.training.loss import check_labels
from mdl_physpre.training.optimizer import make_optimizer, take_step
from mdl_physpre.training.ranks import Ranks
from mdl_physpre.training.replay import Replay, Steps
from mdl_physpre.training.resume import STATE, VERSION
from mdl_physpre.training.sam import climb, go_back
from mdl_physpre.training.settings import TrainingSettings
from mdl_physpre.training.stopping import epochs_expected, reason_to_stop, steps_of

NAN_EPOCHS = 3  # epochs in a row with a loss that is not a number, after which training stops
SAVE_EVERY = 1.0  # seconds between writes of the state: what a kill loses at most, beyond the epoch that runs


class PotentialTraining(pl.LightningModule):
    """Trains a potential on energies, forces and stress.

    Everything that decides how training goes on is part of the checkpoint written at the end of each epoch: weights,
    their average, optimiser, schedule, the best weights so far, early stopping, and the record of all epochs.
    """

    def __init__(
        self,
        potential: AtomicPotential,
        train: GraphDataset,
        validation: GraphDataset,
        settings: TrainingSettings,
        out: Path,
        online: Online | None = None,
        identity: str = "",
        replay: Replay | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # the norm of the gradient decides whether a step is taken at all
        self.potential, self.settings, self.out = potential, settings, out
        potential.training_energies = TrainingEnergies.of(train.structures)
        self.train_set = self._epoch_set = train
        self.validation_set = validation
        self.ranks = ranks or Ranks()
        self.log_file = EpochLog()
        self.best: dict[str, Any] = {"loss": math.inf, "epoch": -1, "weights": None}
        self.stopped_by: str | None = None
        self.progress: EpochProgress | None = None
        self._online, self._identity, self._replay = online, identity, replay
        self._replay_settings = settings if replay is None else replay.settings
        self.gradient = LossGradient(potential, settings, self._replay_settings, self.ranks)
        decay = settings.ema_decay
        self.average = None if decay is None else WeightAverage(self.gradient.parameters, decay)
        self._train_epoch = -1
        self._nan_epochs = 0
        self._validation_batches: GraphBatches | None = None
        self._last_saved = -math.inf
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._started = time.perf_counter()
        self.counts: Counter[str] = Counter()
        self.gradient.taken = 0
        self._norm_sum = 0.0
        self._rate = math.nan  # of the last step that was taken
        self._nan_batch: int | None = None
        self._train_sums, self._validation_sums = (EpochSums(self.settings, self.ranks) for _ in range(2))
        self._replay_sums = EpochSums(self._replay_settings, self.ranks)

    @property
    def history(self) -> list[dict[str, Any]]:
        """One row for each epoch."""
        return self.log_file.rows

    @property
    def epoch(self) -> int:
        """The epoch being trained, from 0: as many as are complete."""
        return len(self.history)

    # --- data ---------------------------------------------------------------------------------------------------------

    @property
    def _loading(self) -> dict[str, Any]:
        """How batches are cut."""
        return {"ranks": self.ranks, "gpu": self.device if self.device.type == "cuda" else None}

    def train_dataloader(self) -> Steps:
        if self._train_epoch != self.epoch:
            s = self.settings
            if self._online is not None:
                online, epoch = self._online, self.epoch
                self._epoch_set = self.ranks.from_first(lambda: online(epoch))
                check_labels(self._epoch_set, "training", s)
            batches = epoch_batches(self._epoch_set, s, self.epoch)
            self._steps_before = steps_of(self.history)  # asked for before the epoch begins
            if s.max_steps is not None:
                batches = batches[: s.max_steps - self._steps_before]
            graphs = GraphBatches(self._epoch_set, batches, **self._loading)
            self._train_steps = Steps(graphs, self._replay, s, self.epoch, **self._loading)
            self._train_epoch = self.epoch
        return self._train_steps

    def val_dataloader(self) -> GraphBatches:
        if self._validation_batches is None:
            batches = epoch_batches(self.validation_set, self.settings)
            self._validation_batches = GraphBatches(self.validation_set, batches, **self._loading)
        return self._validation_batches

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        if isinstance(batch, tuple):
            graph, replayed = batch
            return graph.on(device), [(other.on(device), weight) for other, weight in replayed]
        return batch.on(device)

    # --- steps --------------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = make_optimizer(self.potential, self.settings)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def training_step(self, batch: tuple[AtomGraph, list[tuple[AtomGraph, float]]], index: int) -> None:
        graph, replayed = batch
        self.counts["structures"] += self._train_steps.structures[index]
        self.counts["steps"] += 1
        errors, replay_errors, outcome = self.gradient(graph, replayed)
        if outcome is None:
            return
        outcomes = [outcome]
        if self.settings.sam_rho is not None:
            parameters = self.gradient.parameters
            before = climb(parameters, self.settings.sam_rho, self.settings.sam_adaptive)
            _, _, second = self.gradient(graph, replayed)
            go_back(parameters, before)
            outcomes.append(torch.full_like(outcome, math.nan) if second is None else second)
        # the one time in a step that the host waits for the device
        norms, losses = torch.stack(outcomes).T.tolist()
        if self._nan_batch is None and not all(map(math.isfinite, losses)):
            self._nan_batch = index
        if not all(map(math.isfinite, [*norms, *losses])):
            self.counts["skipped_steps"] += 1
            return
        clip, norm = self.settings.clip_grad_norm, max(norms)
        self._norm_sum += norm
        self.counts["clipped_steps"] += clip is not None and norm > clip
        step = self._steps_before + self.counts["steps"] - 1
        optimizer = self.optimizers().optimizer  # type: ignore[union-attr]
        self._rate = take_step(optimizer, self.settings, step, self._part_done(step, index))
        if self.average is not None:
            self.average.update()
        self._train_sums.add(errors)
        for found in replay_errors:
            self._replay_sums.add(found)

    def on_validation_start(self) -> None:
        if self.average is not None:
            self.average.exchange()  # until the best weights are kept

    def _part_done(self, step: int, index: int) -> float:
        """Of the whole training, before a step."""
        if self.settings.max_steps is not None:
            return step / self.settings.max_steps
        return (self.epoch + index / len(self._train_steps)) / self.settings.max_epochs

    def validation_step(self, graph: AtomGraph, index: int) -> None:
        self._validation_sums.add(self.gradient.validation_errors(graph))

    # --- epochs -------------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        expected = epochs_expected(self.history, len(epoch_batches(self.train_set, self.settings)), self.settings)
        self.progress = EpochProgress(expected, self.epoch, bar=self.ranks.first)

    def on_train_epoch_start(self) -> None:
        self._begin_epoch()
        # a backbone with random numbers of its own (dropout) draws the same ones after an interruption
        torch.manual_seed((self.settings.seed * 1_000_003 + self.epoch) % 2**63)

    def on_train_epoch_end(self) -> None:
        row: dict[str, Any] = {"epoch": self.epoch, "lr": self._rate}
        row |= self._train_sums.summary("train") | self._validation_sums.summary("validation")
        if self._replay is not None:
            row |= self._replay_sums.summary("replay")
        taken = self.counts["steps"] - self.counts["skipped_steps"]
        row["gradient_norm"] = self._norm_sum / taken if taken else math.nan
        row |= {key: self.counts[key] for key in ("clipped_steps", "skipped_steps", "steps")}
        row |= {"gradients": self.gradient.taken, "structures": self.counts["structures"]}
        due = time.monotonic() - self._last_saved > SAVE_EVERY
        row["seconds"], due = self.ranks.from_first(lambda: (time.perf_counter() - self._started, due))
        self.log_file.append(row)
        self._stop_on_nan(row, taken)
        followed = row["train_loss" if self.settings.scheduler_loss == "train" else "validation_loss"]
        if self.settings.schedule == "plateau" and math.isfinite(followed):
            self.lr_schedulers().step(followed)  # type: ignore[union-attr, call-arg]
        self._keep_best(row)
        if self.average is not None:
            self.average.exchange()
        self.stopped_by = reason_to_stop(self.history, self.best["epoch"], self.settings)
        self.trainer.should_stop = self.stopped_by is not None
        self._save(row, due or self.stopped_by is not None)
        if self.progress is not None:
            self.progress.tell(row, self.best, last=self.stopped_by is not None)

    def _stop_on_nan(self, row: dict[str, Any], taken: int) -> None:
        if self._nan_batch is None and taken and math.isfinite(row["validation_loss"]):
            self._nan_epochs = 0
            return
        self._nan_epochs += 1
        if self._nan_epochs < NAN_EPOCHS:
            return
        if self._nan_batch is not None:
            structures = ", ".join(map(str, self._train_steps.batches.batches[self._nan_batch][:16]))
            where = f"the loss of batch {self._nan_batch} (structures {structures} of the training set) is not a number"
        elif not taken:
            where = f"the gradient of every batch, 0 to {row['steps'] - 1}, is not finite"
        else:
            where = "the validation loss is not a number"
        raise TrainingError(
            f"{self.out}: epoch {row['epoch']}: {where}, the third epoch in a row with such a loss; "
            "check these structures (coincident atoms, labels out of range), or lower the learning rate"
        )

    def _keep_best(self, row: dict[str, Any]) -> None:
        if row["validation_loss"] < self.best["loss"]:
            weights = {k: v.detach().cpu().clone() for k, v in self.potential.state_dict().items()}
            self.best = {"loss": row["validation_loss"], "epoch": row["epoch"], "weights": weights}
            if self.ranks.first:
                save_potential(self.out / "best.pt", self.potential, training=training_record(self.best, self.settings))

    # --- state --------------------------------------------------------------------------------------------------------

    def _save(self, row: dict[str, Any], due: bool) -> None:
        # the checkpoint comes first: the log is written anew from it when training is taken up again
        if due:
            part = self.out / "last.ckpt.part"
            self.trainer.save_checkpoint(part)  # the first rank does, and the others wait
            if self.ranks.first:
                os.replace(part, self.out / "last.ckpt")
            self._last_saved = time.monotonic()
        if self.ranks.first:
            self.log_file.write(self.out / "log.csv")
        for log in self.trainer.loggers:
            log.log_metrics({k: v for k, v in row.items() if k != "epoch"}, step=row["epoch"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[STATE] = {
            "version": VERSION,
            "settings": self.settings.model_dump(),
            "identity": self._identity,
            "history": self.log_file.text(),
            "best": self.best,
            "average": None if self.average is None else self.average.state(),
            "nan_epochs": self._nan_epochs,
            "stopped_by": self.stopped_by,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.restore(checkpoint[STATE])

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what an earlier part of the training left, but for weights, optimiser and schedule."""
        self.log_file = EpochLog(state["history"])
        self.best = dict(state["best"])
        self._nan_epochs, self.stopped_by = state["nan_epochs"], state["stopped_by"]
        if self.average is not None:
            self.average.restore(state["average"])
