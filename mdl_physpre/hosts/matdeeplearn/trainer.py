"""Two-stage training on MatDeepLearn's trainer: its models, loaders, loop, schedulers, logging and files."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from mdl_physpre.errors import CheckpointError, TrainingError
from mdl_physpre.hosts.matdeeplearn.data import loading_of_datasets
from mdl_physpre.hosts.matdeeplearn.names import host
from mdl_physpre.hosts.matdeeplearn.plan import Plan, Stage, prepare
from mdl_physpre.hosts.matdeeplearn.processes import bare, ranks_of
from mdl_physpre.hosts.matdeeplearn.report import report_on, tell
from mdl_physpre.potentials.checkpoints.matdeeplearn import load_checkpoint
from mdl_physpre.training.ranks import Ranks
from mdl_physpre.training.sam import climb, go_back
from mdl_physpre.utils.files import write_text
from mdl_physpre.utils.processes import run_lock

logger = logging.getLogger(__name__)
PropertyTrainer: Any = host().PropertyTrainer


class TwoStageTrainer(PropertyTrainer):
    """MatDeepLearn's property trainer, once for each stage of each arm of ``physpre.arms``.

    In MatDeepLearn's YAML: ``trainer: mdl_physpre.hosts.matdeeplearn.TwoStageTrainer``, ``dataset.processed: True``,
    and the keys of ``physpre run``. ``results/ID/`` holds ``1-eam`` (the fit), ``2-pretraining-set``, the data as
    MatDeepLearn reads them, and ``ARM/pretrain`` and ``ARM/finetune`` with MatDeepLearn's ``checkpoint_0/`` and
    ``train_results/`` and the ``config.yml`` that opens the checkpoints. With ``physpre.report: true``, ``run`` is a
    folder of ``physpre run`` with the report of all arms.

    ``run_mode: train`` trains every arm; with ``continue_job`` it goes on where ``checkpoint_path``, a folder
    ``results/ID`` or a checkpoint in it, stopped. ``finetune`` trains on DFT alone from ``checkpoint_path``.
    ``predict`` predicts ``dataset.src`` with ``checkpoint_path``.

    Energies in MatDeepLearn are those of the labels less the energies of the elements (``physpre.energy_reference``
    in the written ``config.yml``), so that both stages share one zero.
    """

    plan: Plan
    ranks: Ranks
    stage: Stage | None = None
    best_model_state: list[Any]
    metrics: list[dict[str, Any]]
    _held: list[Any] | None = None

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TwoStageTrainer:
        """Complete the configuration in place, say what MatDeepLearn would do wrong, prepare the data, and build.

        Raises
        ------
        ConfigError, DataError, CheckpointError : before anything is trained, with the remedy.
        """
        ranks = ranks_of(config)
        plan = ranks.from_first(lambda: prepare(config))
        config.update(plan.config)
        plan.config = config
        trainer = super().from_config(config)
        trainer.plan, trainer.ranks = plan, ranks
        trainer.timestamp_id = plan.identifier
        trainer.save_dir = str(plan.save_dir)
        plan.folder.mkdir(parents=True, exist_ok=True)
        return trainer

    @staticmethod
    def _load_dataset(dataset_config: dict[str, Any], task: str) -> Any:
        with loading_of_datasets():
            return PropertyTrainer._load_dataset(dataset_config, task)

    def train(self) -> Any:
        """Every stage that is not done yet, one after another."""
        plan, initial = self.plan, [copy.deepcopy(bare(model).state_dict()) for model in self.model]
        with run_lock(plan.folder) if self.ranks.first else nullcontext():
            try:
                for arm in plan.stages():
                    self._put(initial)
                    if not all(self._run(stage) for stage in arm):
                        logger.info("to go on: task.continue_job: True, task.checkpoint_path: %s", plan.folder)
                        return self.best_model_state
            finally:
                self.timestamp_id = plan.identifier  # MatDeepLearn moves its log there
        if self.ranks.first:
            trained = [[stage.folder for stage in arm] for arm in plan.stages()]
            tell(plan.folder, trained)
            if plan.reported is not None and plan.data is not None:
                report_on(plan.folder, plan.reported, plan.data, trained)
        return self.best_model_state

    def _run(self, stage: Stage) -> bool:
        """One stage from the weights as they are; whether it is done."""
        files = [stage.folder / f"checkpoint_{k}" / "best_checkpoint.pt" for k in range(len(self.model))]
        if self.ranks.from_first(lambda: stage.done):
            logger.info("%s is done", stage.name)
            self._put([load_checkpoint(file, self.device)["state_dict"] for file in files])
            return True
        datasets, optim = self.ranks.from_first(stage.datasets), stage.optim
        logger.info("stage %s: %d epochs, loss %s", stage.name, optim["max_epochs"], optim["loss"]["loss_type"])
        self.stage = stage
        self.timestamp_id = f"{self.plan.identifier}/{stage.name}"
        self.dataset = {k: v for part in datasets for k, v in self._load_dataset(part, "train").items()}
        model = self.plan.config["model"]
        size, rank = self.ranks.size, self.ranks.rank
        self.train_sampler = self._load_sampler(optim, self.dataset, size, rank)
        self.data_loader = self._load_dataloader(optim, datasets[0], self.dataset, self.train_sampler, "train", model)
        self.optimizer = self._load_optimizer(dict(optim), self.model, size)
        self.scheduler = self._load_scheduler(optim["scheduler"], self.optimizer)
        self.loss_fn = self._load_loss(optim["loss"])
        self.max_epochs, self.epoch, self.step = optim["max_epochs"], 0, 0
        self.metrics = [{} for _ in self.model]
        self.best_metric, self.best_epoch = [1e10 for _ in self.model], [0 for _ in self.model]
        self.best_model_state = [None for _ in self.model]
        self.started = time.monotonic()
        self._write_config(stage, self.plan.reference)
        self._go_on(stage)
        try:
            super().train()
        except TypeError as error:
            if any(state is None for state in self.best_model_state):
                raise TrainingError(
                    f"{stage.name}: the validation loss was never a number below 1e10; lower optim.lr, or look at the "
                    "labels with physpre inspect"
                ) from error
            raise
        if self.epoch < self.max_epochs:
            return False
        if self.ranks.first:
            self._finish(stage)
        self.ranks.wait()
        if not self.ranks.first:
            self._put([load_checkpoint(file, self.device)["state_dict"] for file in files])
        return True

    def _finish(self, stage: Stage) -> None:
        """Shift the energies of the elements where that is wanted, and say that the stage is done."""
        reference = self.plan.reference
        if stage.refit_reference:
            reference = self.plan.shifted_reference(self._energy_errors("train"), self._energy_errors("val"))
        self._write_config(stage, reference)
        loader = self.data_loader[0]["train_loader"]
        steps, structures = (self.epoch * len(of) for of in (loader, loader.dataset))
        stage.finish(
            {
                "best_loss": self.best_metric,
                "best_epoch": self.best_epoch,
                "epochs": self.epoch,
                "steps": steps,
                "gradients": steps * (2 if stage.sam else 1),
                "structures": structures,
                "seconds": round(time.monotonic() - self.started, 2),
            }
        )

    def update_best_model(self, metric: Any, index: int = 0, **given: Any) -> None:
        """As MatDeepLearn's; the epoch is noted, counted from 0."""
        self.best_epoch[index] = self.epoch - 1
        super().update_best_model(metric, index, **given)

    def _write_config(self, stage: Stage, reference: Mapping[str, float]) -> None:
        if self.ranks.first:
            write_text(stage.folder / "config.yml", yaml.safe_dump(stage.config(reference), sort_keys=False))

    def _go_on(self, stage: Stage) -> None:
        """The state in which a stopped job left the stage, where it had begun."""
        last = [stage.folder / f"checkpoint_{k}" / "checkpoint.pt" for k in range(len(self.model))]
        if not all(file.is_file() for file in last):
            return
        best_files = [file.with_name("best_checkpoint.pt") for file in last]
        try:  # MatDeepLearn writes over the old file, and may have been killed meanwhile
            for file in (*last, *(file for file in best_files if file.is_file())):
                load_checkpoint(file, self.device)
        except CheckpointError as error:
            logger.warning("%s begins anew, because its files cannot be read: %s", stage.name, error)
            return
        self.checkpoint_path = ",".join(str(file) for file in last)
        super().load_checkpoint(True)
        for k, file in enumerate(best_files):
            if file.is_file():  # MatDeepLearn takes the last weights for the best ones
                best = load_checkpoint(file, self.device)
                self.best_model_state[k], self.best_metric[k] = best["state_dict"], best["best_metric"]
                self.best_epoch[k] = best["epoch"] - 1
            else:
                self.best_model_state[k], self.best_metric[k] = None, 1e10
        logger.info("%s goes on after epoch %d", stage.name, self.epoch)

    def _put(self, states: list[dict[str, Tensor]]) -> None:
        for model, state in zip(self.model, states):
            bare(model).load_state_dict(state)

    def _energy_errors(self, split: str) -> dict[str, float]:
        """Labelled less predicted energy by structure, eV."""
        found = self.predict(self.data_loader[0][f"{split}_loader"], split, write_output=False)
        errors = (found["target"] - found["predict"]).reshape(-1)
        return {str(name): float(e) for name, e in zip(_flat(found["ids"]), errors)}

    def load_checkpoint(self, load_training_state: bool = True) -> None:
        """To continue a job: nothing yet, each stage finds its own. To predict: the weights."""
        if self.plan.mode == "predict":
            super().load_checkpoint(False)

    def load_pre_trained_weights(self, load_training_state: bool = False) -> None:
        """Weights to finetune; what fits and what does not is said.

        Raises
        ------
        CheckpointError : no parameter fits by name, or one has another shape.
        """
        if load_training_state:
            logger.warning("task.load_training_state: finetuning begins with a new optimiser; only weights are loaded")
        files = str(self.checkpoint_path).split(",")
        if len(files) != len(self.model):
            raise CheckpointError(
                f"task.checkpoint_path names {len(files)} files, and model.model_ensemble is {len(self.model)}"
            )
        for file, model in zip(files, self.model):
            state, own = load_checkpoint(Path(file), self.device)["state_dict"], bare(model).state_dict()
            shapes = [k for k in own if k in state and own[k].shape != state[k].shape]
            lost, new = sorted(set(state) - set(own)), sorted(set(own) - set(state))
            if shapes or len(new) == len(own):
                what = f"{', '.join(shapes[:5])} of another shape" if shapes else "no parameter of this model"
                raise CheckpointError(f"{file}: has {what}; take the section model of the run that wrote it")
            if lost or new:
                logger.warning(
                    "%s: %d parameters begin at random (%s), %d are not used (%s)",
                    file, len(new), ", ".join(new[:5]), len(lost), ", ".join(lost[:5]),
                )  # fmt: skip
        super().load_pre_trained_weights(False)

    def predict(self, loader: Any, split: str, *arguments: Any, **given: Any) -> Any:
        """As MatDeepLearn's; its own ``run_mode: predict`` passes all loaders, of which this takes the right one."""
        if isinstance(loader, list):
            loader = loader[0][f"{split}_loader"]
        return super().predict(loader, split, *arguments, **given)

    def _forward(self, batch_data: list[Any]) -> Any:
        if self.stage is not None and self.stage.sam and self.model[0].training:
            self._held = [batch.clone() for batch in batch_data]  # the models strain what they are given
        return super()._forward(batch_data)

    def _backward(self, loss: Tensor, index: int = 0) -> Tensor:
        """A step of the optimiser; with SAM, by the gradient at the worst weights nearby (:mod:`training.sam`)."""
        if self.stage is None or self.stage.sam is None:
            return super()._backward(loss, index)
        assert self._held is not None
        batch = self._held[min(index, len(self._held) - 1)].clone()
        parameters, optimizer = [*self.model[index].parameters()], self.optimizer[index]

        def clip() -> Tensor:
            return torch.nn.utils.clip_grad_norm_(parameters, max_norm=self.clip_grad_norm)

        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip()
        before = climb(parameters, self.stage.sam.rho, self.stage.sam.adaptive)
        try:
            optimizer.zero_grad(set_to_none=True)
            self.loss_fn(self.model[index](batch), batch).backward()
        finally:
            go_back(parameters, before)
        norm = clip()
        optimizer.step()
        return norm


def _flat(names: Any) -> list[str]:
    """MatDeepLearn's names of structures, which come in lists of one."""
    return [str(name[0] if not isinstance(name, str) else name) for name in names]
