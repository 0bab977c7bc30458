"""A system under T5X's own `train.py`, by `gin/runs/t5x.gin`; docs/t5x.md says how, and what it gives up.

Nothing else of the package imports this file: T5X (github.com/google-research/t5x) is on no package index.
"""

from collections.abc import Mapping, Sequence

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics
from flax.linen import partitioning as flax_partitioning
from jaxtyping import Array, Float, Int, UInt32
from t5x import models, optimizers, train_state, utils

from slm_jax.data import feature_converter
from slm_jax.decoding import DecodeConfig
from slm_jax.foundations import flatten, unflatten
from slm_jax.systems import Batch, Params, System
from slm_jax.training import origins as origins_lib
from slm_jax.training import state as state_lib

FROZEN = 'frozen'


class SystemModel(models.BaseModel):
    """A system as T5X sees a model.

    Frozen parameters are a variable collection beside `params`, which T5X keeps in its train state as `flax_mutables`:
    it differentiates `params` only, so no gradient and no optimizer slot exists for them.

    Attributes:
        system: see `slm_jax.systems.System`.
        trainable: regular expressions; a parameter trains if one matches its whole path ('adapter/.*').
        optimizer_def: T5X's, such as `t5x.optimizers.OptaxWrapper` around one of `slm_jax.training.optimizers`.
        decode: how T5X's `infer.py` generates.
    """

    FEATURE_CONVERTER_CLS = feature_converter.SpeechTextFeatureConverter

    def __init__(
        self,
        system: System,
        trainable: Sequence[str],
        optimizer_def: optimizers.OptimizerDefType,
        decode: DecodeConfig,
    ):
        super().__init__(optimizer_def)
        self.system = system
        self.trainable = trainable
        self.decode = decode

    def get_initial_variables(
        self,
        rng: UInt32[Array, '...'],
        input_shapes: Mapping[str, Sequence[int]],
        input_types: Mapping[str, jnp.dtype],
    ) -> dict[str, Params]:
        """Fresh trainable parameters and zeros for the frozen ones, which `FoundationInitializer` fills; with axes."""
        batch = {name: jnp.zeros(shape, input_types[name]) for name, shape in input_shapes.items()}
        boxed = self.system.init(jax.random.wrap_key_data(rng), batch)
        trainable, frozen = state_lib.split(state_lib.unboxed(boxed), self.trainable)
        dtype = jnp.float32 if jax.default_backend() == 'cpu' else jnp.bfloat16  # as slm_jax.train
        variables = {'params': trainable}
        if frozen:
            variables[FROZEN] = jax.tree.map(
                lambda leaf: jnp.zeros(leaf.shape, dtype if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype),
                frozen,
            )
        names = flatten(nn.get_partition_spec(boxed))
        axes = {
            f'{collection}_axes': unflatten(
                {f'{path}_axes': flax_partitioning.AxisMetadata(tuple(names[path])) for path in flatten(tree)}
            )
            for collection, tree in variables.items()
        }
        return variables | axes

    def _loss(
        self, params: Params, batch: Batch, rng: UInt32[Array, '...'] | None, flax_mutables: Params | None
    ) -> tuple[Float[Array, ''], dict[str, clu_metrics.Metric]]:
        key = None if rng is None else jax.random.wrap_key_data(rng)
        loss, metrics = self.system.loss(_merged(params, flax_mutables), batch, key)
        return loss, {name: clu_metrics.Average(total=total, count=weight) for name, (total, weight) in metrics.items()}

    def loss_fn(
        self,
        params: Params,
        batch: Batch,
        dropout_rng: UInt32[Array, '...'] | None,
        flax_mutables: Params | None = None,
    ) -> tuple[Float[Array, ''], dict[str, clu_metrics.Metric] | tuple[dict[str, clu_metrics.Metric], Params]]:
        """The system's loss and metrics, and the frozen parameters as they were where there are some."""
        loss, metrics = self._loss(params, batch, dropout_rng, flax_mutables)
        return loss, metrics if flax_mutables is None else (metrics, flax_mutables)

    def eval_fn(
        self, params: Params, batch: Batch, flax_mutables: Params | None = None
    ) -> tuple[Float[Array, ''], dict[str, clu_metrics.Metric]]:
        """The system's loss and metrics, without dropout and masks."""
        return self._loss(params, batch, None, flax_mutables)

    def predict_batch(
        self,
        params: Params,
        batch: Batch,
        rng: UInt32[Array, '...'] | None = None,
        flax_mutables: Params | None = None,
    ) -> Int[Array, 'b l']:
        """Generated tokens, 0 after the end."""
        return self.system.predict(_merged(params, flax_mutables), batch, self.decode)

    def predict_batch_with_aux(
        self,
        params: Params,
        batch: Batch,
        rng: UInt32[Array, '...'] | None = None,
        flax_mutables: Params | None = None,
    ) -> tuple[Int[Array, 'b l'], dict[str, Array]]:
        """Generated tokens, and nothing else."""
        return self.predict_batch(params, batch, rng, flax_mutables), {}

    def score_batch(self, params: Params, batch: Batch, return_intermediates: bool = False) -> Float[Array, ' b']:
        """No system states the score of single examples.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError('A system gives the loss of a batch, not scores of its examples: use mode "predict".')


class FoundationInitializer(utils.TrainStateInitializer):
    """T5X's initializer of a new training, which also reads `foundations`, each array straight into its shards.

    `foundations` as in `slm_jax.train.train`. A training that resumes has all parameters in its T5X checkpoint.
    """

    def __init__(self, *args, foundations: Mapping[str, str], **kwargs):
        super().__init__(*args, **kwargs)
        self._foundations = foundations

    def from_scratch(self, init_rng: UInt32[Array, '...']) -> train_state.TrainState:
        """The train state before the first step.

        Raises:
            FoundationError: a foundation is absent or of another shape, or a frozen parameter comes from none.
        """
        origins = origins_lib.find(self._foundations)
        shapes = self.global_train_state_shape
        frozen = flax.core.unfreeze(shapes.flax_mutables).get(FROZEN, {})
        origins_lib.check(origins, flax.core.unfreeze(shapes.params), frozen)
        state = super().from_scratch(init_rng)
        collections = {name: _read(origins, tree) for name, tree in state.flax_mutables.items()}
        state = state.replace_flax_mutables(flax.core.freeze(collections))
        return state.replace_params(_read(origins, state.params))


def _merged(params: Params, flax_mutables: Params | None) -> Params:
    frozen = flax.core.unfreeze(flax_mutables or {}).get(FROZEN, {})
    return state_lib.merge(flax.core.unfreeze(params), frozen)


def _read(origins: Sequence[origins_lib.Origin], params: Params) -> Params:
    """`params`, with the leaves that the origins have read in place of those that are there, which are freed first."""
    leaves = flatten(flax.core.unfreeze(params))
    given = {path: leaf for path, leaf in leaves.items() if any(path in origin.paths for origin in origins)}
    wanted = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding) for path, leaf in given.items()
    }
    for leaf in given.values():
        leaf.delete()
    return flax.core.freeze(unflatten(leaves | flatten(origins_lib.load(origins, unflatten(wanted)))))
