"""The optimizers of pretraining, with a learning rate that rises linearly and falls linearly to nothing.

Both make steps relative to each weight's own size (its root mean square). T5 relies on it: the initial spread of its
query projections holds the 1/sqrt(d_kv) that its attention lacks, a seventh of the other projections', and steps of one
size for all would soon saturate the attention.
"""

import optax

from jpeft.pretrain.config import OptimizerConfig
from jpeft.train.optimizer import decay_mask


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
    """AdamW, or Adafactor (Shazeer and Stern 2018), which T5 was trained with and whose state is much smaller."""
    clip = optax.identity() if config.clip_grad_norm is None else optax.clip_by_global_norm(config.clip_grad_norm)
    if config.optimizer == "adafactor":
        return optax.chain(
            clip, optax.adafactor(learning_rate(config), decay_rate=0.8, multiply_by_parameter_scale=True)
        )
    return optax.chain(
        clip,
        optax.scale_by_adam(b1=0.9, b2=0.98),
        optax.scale_by_param_block_rms(),
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
        optax.scale_by_learning_rate(learning_rate(config)),
    )
