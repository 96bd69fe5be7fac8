"""Every option of a training run, in one frozen dataclass."""

from dataclasses import asdict, dataclass
from typing import Any

from lrdata.errors import LongRecipeError
from lrtrain.activations import Activations
from lrtrain.attention_scale import AttentionScale, parse_attention_scale
from lrtrain.optim import Storage
from lrtrain.weights import WEIGHTS

STAGES = ("extend", "anneal", "merge")
SCHEDULES = ("cosine", "linear", "constant")
DTYPES = ("bf16", "fp32")
MASTERS = ("fp32", "none")
GRADIENTS = ("fp32", "bf16")
MOMENTS = ("fp32", "8bit")
OFFLOAD = ("optimizer", "activations")


@dataclass(frozen=True)
class TrainRecipe:
    """How a model is trained. Two runs with equal recipes on one CPU give equal losses."""

    stages: tuple[str, ...] = STAGES
    """In order; `anneal` is left out when the shards hold no replay rows."""
    rows_per_step: int = 96
    """Rows of an optimizer step, as in the paper."""
    micro_tokens: int = 0
    """Rows are joined to flat batches of at most so many tokens; 0 means one row at a time."""
    steps: int | None = None
    """Steps of the extend stage; default one epoch."""
    anneal_steps: int | None = None
    """Steps of the anneal stage; default one epoch of the replay rows."""
    lr: float = 5e-5
    anneal_lr: float = 5e-6
    warmup: float = 0.05
    """Share of the extend steps over which the learning rate rises."""
    schedule: str = "cosine"
    """Of the extend stage, to a tenth of `lr`; anneal is linear, to zero."""
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    """Largest norm of the gradient; 0 turns clipping off."""
    dtype: str = "bf16"
    """Of the parameters."""
    masters: str = "fp32"
    """fp32: what bf16 parameters lack is kept beside them; none: updates are rounded to bf16 by
    chance, right on average."""
    gradients: str = "fp32"
    """Of accumulated gradients of bf16 parameters; bf16: added up with stochastic rounding."""
    moments: str = "fp32"
    """Of AdamW's running averages; 8bit needs bitsandbytes."""
    offload: tuple[str, ...] = ()
    """What waits in host memory: optimizer (moments and what masters add), activations (the inputs
    of layers, with checkpointing)."""
    rope: str = "auto"
    attention_scale: AttentionScale = 1.0
    """Factor on the softmax scale, for extend rows only; inference is unchanged. auto:
    log L / log T, see `lrtrain.attention_scale`."""
    token_weights: str = "none"
    """What a token weighs in the loss, for extend rows only; the names of `lrtrain.weights`."""
    attention: str = "auto"
    merge_weight: float = 0.5
    """Share of the trained model in the merge."""
    checkpointing: bool = False
    """Recompute the layers in the backward pass."""
    mlp_tokens: int = 0
    """Tokens of an MLP at once; 0: all. With long rows MLPs take most of a layer's memory."""
    compile: bool = False
    """Fuse the kernels of MLPs and norms with torch.compile."""
    chunk_tokens: int = 1024
    holdout_every: int = 0
    """Measure the loss on holdout windows every so many steps; 0 means at the end only."""
    holdout_rows: int = 4
    checkpoint_every: int | None = None
    """Steps between checkpoints; 0: only when a signal stops the run or a model cannot be saved;
    None: after the step in which 20 minutes have passed since the last one."""
    keep_checkpoints: int = 1
    """How many of the last ones stay."""
    tensorboard: bool = False
    context_parallel: int = 1
    """Of many ranks, how many share a row; the others take other rows."""
    data_parallel: int | None = None
    """Among how many, or groups of those that share one, rows are dealt out; default all."""
    rank_timeout: int = 600
    """Seconds after which a rank that does not answer is given up, and the run ends."""
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if not self.stages or any(stage not in STAGES for stage in self.stages):
            raise LongRecipeError(
                f"--stages {','.join(self.stages)} is unknown; choose from {','.join(STAGES)}"
            )
        if [stage for stage in STAGES if stage in self.stages] != list(self.stages):
            raise LongRecipeError(f"--stages go in this order: {','.join(STAGES)}")
        for name, value, known in (
            ("--schedule", self.schedule, SCHEDULES),
            ("--dtype", self.dtype, DTYPES),
            ("--token-weights", self.token_weights, tuple(WEIGHTS)),
            ("--masters", self.masters, MASTERS),
            ("--gradients", self.gradients, GRADIENTS),
            ("--moments", self.moments, MOMENTS),
            *(("--offload", what, OFFLOAD) for what in self.offload),
        ):
            if value not in known:
                raise LongRecipeError(
                    f"{name} {value} is unknown; choose one of {', '.join(known)}"
                )
        for name, number in (
            ("--rows-per-step", self.rows_per_step),
            ("--steps", 1 if self.steps is None else self.steps),
            ("--anneal-steps", 1 if self.anneal_steps is None else self.anneal_steps),
            ("--chunk-tokens", self.chunk_tokens),
            ("--keep-checkpoints", self.keep_checkpoints),
            ("--context-parallel", self.context_parallel),
            ("--data-parallel", 1 if self.data_parallel is None else self.data_parallel),
            ("--rank-timeout", self.rank_timeout),
        ):
            if number < 1:
                raise LongRecipeError(f"{name} {number} must be at least 1")
        for name, positive in (
            ("--lr", self.lr),
            ("--anneal-lr", self.anneal_lr),
        ):
            if not positive > 0:
                raise LongRecipeError(f"{name} {positive} must be above 0")
        parse_attention_scale(str(self.attention_scale))
        for name, least in (
            ("--micro-tokens", self.micro_tokens),
            ("--mlp-tokens", self.mlp_tokens),
            ("--holdout-every", self.holdout_every),
            ("--holdout-rows", self.holdout_rows),
            ("--checkpoint-every", self.checkpoint_every or 0),
            ("--weight-decay", self.weight_decay),
            ("--clip", self.clip),
        ):
            if not least >= 0:
                raise LongRecipeError(f"{name} {least} must be at least 0")
        if "activations" in self.offload and not self.checkpointing:
            raise LongRecipeError("--offload activations needs --checkpointing")
        for name, beta in (("--beta1", self.beta1), ("--beta2", self.beta2)):
            if not 0 <= beta < 1:
                raise LongRecipeError(f"{name} {beta} must be at least 0 and below 1")
        for name, share in (("--warmup", self.warmup), ("--merge-weight", self.merge_weight)):
            if not 0 <= share <= 1:
                raise LongRecipeError(f"{name} {share} must be between 0 and 1")

    @property
    def storage(self) -> Storage:
        """How the optimizer keeps what it needs."""
        offload = "optimizer" in self.offload
        return Storage(self.masters, self.gradients, self.moments, offload)

    @property
    def activations(self) -> Activations:
        """What is done about activations."""
        offload = "activations" in self.offload
        return Activations(self.checkpointing, offload, self.mlp_tokens, self.compile)

    def as_json(self) -> dict[str, Any]:
        """The recipe as plain JSON values."""
        values = asdict(self)
        values["stages"], values["offload"] = list(self.stages), list(self.offload)
        return values
