"""The optimizers of pretraining, with a learning rate that rises linearly and falls linearly to nothing."""

import optax

from jpeft.pretrain.config import OptimizerConfig
from jpeft.train.optimizer import adamw


def learning_rate(config: OptimizerConfig) -> optax.Schedule:
    """Learning rate of each step, counted from 0: highest at step `warmup_steps`, nothing after the last."""
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps),
            optax.linear_schedule(config.learning_rate, 0.0, max(config.steps - config.warmup_steps, 1)),
        ],
        [config.warmup_steps],
    )


def build_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """AdamW, or Adafactor as T5 was trained with: factored second moments, updates relative to each weight's size."""
    schedule = learning_rate(config)
    if config.optimizer == "adamw":
        return adamw(schedule, weight_decay=config.weight_decay, clip_grad_norm=config.clip_grad_norm)
    tx = optax.adafactor(schedule, decay_rate=0.8, clipping_threshold=1.0, multiply_by_parameter_scale=True)
    return tx if config.clip_grad_norm is None else optax.chain(optax.clip_by_global_norm(config.clip_grad_norm), tx)
