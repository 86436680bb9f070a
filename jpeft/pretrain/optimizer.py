"""The optimizers of pretraining, whose steps are relative to each weight's root mean square.

The weights of one name in all layers of a stack are one array and share one root mean square.

T5 depends on relative steps: it has no 1/sqrt(d_kv) in its attention but folds it into the initial scale of the query
projections, which is an eighth of the other projections' at d_kv = 64. Steps of one absolute size would soon saturate
the attention.
"""

import dataclasses

import optax

from jpeft.pretrain.config import OptimizerConfig
from jpeft.train.optimizer import decay_mask


@dataclasses.dataclass(frozen=True)
class RelativeOptimizer:
    """AdamW, or Adafactor (Shazeer and Stern 2018), which T5 was trained with and whose state is much smaller.

    Attributes:
      name: `adamw` or `adafactor`.
      weight_decay: of matrices; adamw only.
      clip_grad_norm: largest norm of the gradient; None does not clip.
    """

    name: str
    weight_decay: float
    clip_grad_norm: float | None

    @classmethod
    def of(cls, config: OptimizerConfig) -> "RelativeOptimizer":
        """The optimizer of a config's section `train`."""
        return cls(config.optimizer, config.weight_decay, config.clip_grad_norm)

    def __call__(self, schedule: optax.Schedule) -> optax.GradientTransformation:
        clip = optax.identity() if self.clip_grad_norm is None else optax.clip_by_global_norm(self.clip_grad_norm)
        if self.name == "adafactor":
            return optax.chain(clip, optax.adafactor(schedule, decay_rate=0.8, multiply_by_parameter_scale=True))
        return optax.chain(
            clip,
            optax.scale_by_adam(b1=0.9, b2=0.98),
            optax.scale_by_param_block_rms(),
            optax.add_decayed_weights(self.weight_decay, mask=decay_mask),
            optax.scale_by_learning_rate(schedule),
        )
