"""Settings of one training stage."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import field_validator, model_validator
from typing_extensions import Self

from mdl_physpre.errors import ConfigError
from mdl_physpre.training.losses import find_loss
from mdl_physpre.utils.settings import Settings, setting


class OptimSettings(Settings):
    """How networks are trained. The defaults are the paper's settings for CGCNN."""

    LATER: ClassVar[dict[str, Any]] = {
        "ema_decay": None, "schedule": "plateau", "warmup_steps": 0, "max_steps": None, "batch_atoms": None,
    }  # fmt: skip

    max_epochs: int = setting(200, "Passes through the training set.", ge=1)
    max_steps: int | None = setting(
        None, "Steps of the optimiser, in place of max_epochs; the last epoch is cut. null: max_epochs counts.", ge=1
    )
    lr: float = setting(5e-4, "Learning rate of AdamW at the start.", gt=0)
    weight_decay: float = setting(0.01, "Weight decay of AdamW; the default is its usual one.", ge=0)
    batch_size: int = setting(16, "Structures in a batch.", ge=1)
    batch_atoms: int | None = setting(
        None,
        "Atoms in a batch, in place of batch_size: it is filled with structures up to so many, and a larger structure "
        "is a batch of its own. null: batch_size counts.",
        ge=1,
    )
    max_edges: int | None = setting(None, "A batch with more edges is split, to limit memory; null: no limit.", ge=1)
    recompute_edges: int | None = setting(
        None,
        "A batch is evaluated in parts of at most so many edges, each computed again for its gradient: the same step "
        "with more work and the memory of one part; null: the whole batch at once.",
        ge=1,
    )
    weight_energy: float = setting(0.01, "Weight of the energy error in eV; 0: not computed.", ge=0)
    weight_force: float = setting(50.0, "Weight of the force error in eV/Å; 0: not computed.", ge=0)
    weight_stress: float = setting(50.0, "Weight of the stress error in eV/Å³; 0: not computed.", ge=0)
    energy_per_atom: bool = setting(
        False, "Compare energies per atom rather than totals; weight_energy must then be much larger."
    )
    loss: str = setting("mae", "Error function: mae, huber, conditional_huber, or another registered loss.")
    huber_energy: float = setting(0.01, "Energy errors below this count quadratically.", "eV (eV/atom)", gt=0)
    huber_force: float = setting(0.01, "Force errors below this count quadratically.", "eV/Å", gt=0)
    huber_stress: float = setting(0.001, "Stress errors below this count quadratically.", "eV/Å³", gt=0)
    force_tail: float | None = setting(
        None, "The error of a force F is divided by 1 + |F|/force_tail; null: all forces count alike.", "eV/Å", gt=0
    )
    stress_tail: float | None = setting(
        None, "The error of a stress σ is divided by 1 + ‖σ‖/stress_tail; null: all count alike.", "eV/Å³", gt=0
    )
    ema_decay: float | None = setting(
        None,
        "Decay of a moving average of the weights over the steps, such as 0.99: the average is validated, kept, tested "
        "and simulated. null: the weights themselves.",
        ge=0,
        lt=1,
    )
    clip_grad_norm: float | None = setting(10.0, "A longer gradient is scaled down to this norm; null: never.", gt=0)
    schedule: Literal["plateau", "cosine", "linear", "constant"] = setting(
        "plateau",
        "Of the learning rate: it falls where the loss does not (the keys scheduler_…), or over the whole training as "
        "a cosine or a line to min_lr, or stays.",
    )
    warmup_steps: int = setting(0, "Steps over which the learning rate rises evenly from 0 at the start.", ge=0)
    scheduler_loss: Literal["train", "validation"] = setting(
        "train",
        "Which loss the learning rate follows. A validation set of 20 to 30 structures fluctuates by more than the "
        "threshold, and would time the steps at random.",
    )
    scheduler_factor: float = setting(0.8, "The learning rate is multiplied by this.", gt=0, lt=1)
    scheduler_patience: int = setting(10, "Epochs without a lower loss after which that is done.", ge=0)
    scheduler_threshold: float = setting(2e-4, "Relative fall of the loss that counts as lower.", ge=0)
    min_lr: float = setting(1e-5, "The learning rate does not fall below this.", ge=0)
    early_stopping_patience: int | None = setting(
        None, "Training stops after so many epochs (validations) without a lower validation loss; null: never.", ge=1
    )
    refit_reference: bool = setting(
        False,
        "At the end, shift the reference energies of the elements by the least-squares fit of the remaining training "
        "errors to composition, if that lowers the validation error of energy; forces and stress do not change.",
    )
    precision: Literal["float32", "tf32", "bf16"] = setting(
        "float32",
        "Of matrix products in training steps on CUDA: tf32 has 10 bits of the mantissa, bf16 (mixed precision) 7. "
        "Positions, sums, the loss and validation stay in full precision.",
    )
    max_seconds: float | None = setting(
        None, "No epoch starts that would be expected to end later than this; null: no limit.", "s", gt=0
    )
    loggers: tuple[Literal["tensorboard", "wandb"], ...] = setting((), "Loggers beside the CSV file.")

    def weights(self) -> dict[str, float]:
        """Weights of the loss by label: energy, forces, stress."""
        return {"energy": self.weight_energy, "forces": self.weight_force, "stress": self.weight_stress}

    @field_validator("loss")
    @classmethod
    def _loss_is_there(cls, name: str) -> str:
        try:
            find_loss(name)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return name

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Self:
        if self.weight_energy == self.weight_force == self.weight_stress == 0:
            raise ValueError(
                "weight_energy, weight_force and weight_stress are all 0, so there is nothing to train on; "
                "give at least one of them a positive value"
            )
        return self


class TrainingSettings(OptimSettings):
    """How one network is trained in one stage, and where."""

    sam_rho: float | None = setting(
        None, "Length of the step to the worst weights nearby in sharpness-aware minimisation; null: plain AdamW.", gt=0
    )
    sam_adaptive: bool = setting(True, "Measure that length relative to the size of each weight.")
    seed: int = setting(0, "Of the order of structures, and of a backbone's own random numbers.")
    device: str = setting("auto", "auto (CUDA where there is a device), cpu, cuda or cuda:1.")
    devices: int = setting(1, "Devices that train the network together; the result is that of one, to rounding.", ge=1)
    compile: bool = setting(False, "Compile the training steps (torch.compile).")
