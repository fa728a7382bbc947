"""How a network is trained, as the recipe says it: optimizer, schedule, checkpoints, logs."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Training(BaseModel):
    """Settings of one training run.

    Weight decay acts on weights only: parameters with one axis (BatchNorm, biases) and quantizer
    scales are never decayed. The learning rate rises linearly over the warm-up (at most half of the
    run) and falls to zero along a cosine.

    Attributes:
        epochs: Passes over the training part; a fraction is allowed.
        batch_size: Images per step.
        lr: Highest learning rate.
        momentum: Momentum of SGD; first beta of AdamW.
        nesterov: Nesterov momentum (SGD only).
        weight_decay: L2 penalty (SGD) or decoupled decay (AdamW).
        warmup_epochs: Length of the linear warm-up.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        clip_norm: Largest gradient norm of a step, or None for no clipping.
        ema: Decay of an exponential moving average of the weights, which is then what is validated
            and kept; None keeps the last weights.
        optimizer: ``sgd`` or ``adamw``.
        scale_lr: Learning rate of quantizer scales, as a factor of ``lr``.
        checkpoint_every_s: Seconds between mid-stage checkpoints; a kill costs at most this much.
        validate_every: Epochs between validations; the last epoch is always validated.
        log_every_steps: Steps between lines in the metrics log.
        tensorboard: Write TensorBoard events too; needs the ``tensorboard`` extra.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: float = Field(gt=0)
    batch_size: int = Field(default=128, ge=1)
    lr: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(default=5e-4, ge=0)
    warmup_epochs: float = Field(default=0.5, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    clip_norm: float | None = Field(default=5.0, gt=0)
    ema: float | None = Field(default=None, gt=0, lt=1)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    scale_lr: float = Field(default=0.1, ge=0)
    checkpoint_every_s: float = Field(default=60.0, ge=0)
    validate_every: int = Field(default=1, ge=1)
    log_every_steps: int = Field(default=50, ge=1)
    tensorboard: bool = False
