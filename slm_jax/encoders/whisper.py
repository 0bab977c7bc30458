"""Whisper's encoder (arXiv 2212.04356, section 2.2): two convolutions and a Transformer over a window of 30 s.

Reference: `transformers`' `WhisperEncoder`, whose names the parameters have. It attends to the silence after a clip
as to the clip, so a short clip costs as much as one of 30 s, and nothing has to be masked. A shorter window, for those
who ask for it, is a function of the clip's own length.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from slm_jax.encoders.layers import FRAMES, conv, dense, layer_norm, stack_of

_WINDOW, _RATE = 1500, 50  # frames of the encoder: of its longest window, and a second
_SILENT_FEATURES = 3  # frames of silence, at 100 Hz, that a frontend leaves after a batch's longest clip


@dataclasses.dataclass(frozen=True)
class WhisperConfig:
    """Sizes, and the type of activations. Public models have `mlp_dim` = 4 · `emb_dim` and heads of 64.

    `window_seconds` is the step of the windows that clips are computed in. None: every clip in 30 s, as Whisper was
    trained. Else a clip's length is rounded up to a multiple of it, one second of silence follows, and that is all that
    there is of the clip: with 2.0 a clip of 3 s has a window of 5 s. A batch costs what the window of its longest clip
    does, and a clip gives the same frames whatever it is batched with. They differ from those of 30 s the more, the
    shorter the window is. What was trained on one window is to be used with the same.
    """

    num_layers: int
    emb_dim: int
    num_heads: int
    mlp_dim: int
    window_seconds: float | None = None
    dtype: Any = jnp.float32

    def __post_init__(self):
        seconds = self.window_seconds
        if seconds is not None and not (type(seconds) in (int, float) and 1 / _RATE <= seconds <= 30):
            raise ValueError(
                f'WhisperConfig.window_seconds is {seconds!r}; it must be None, for windows of 30 s, or the seconds '
                f'that their lengths are multiples of, from {1 / _RATE:g} to 30.'
            )

    def window(self, frames: Any) -> Any:
        """Frames that are computed of a clip of so many: of an int, or of each in an array."""
        if self.window_seconds is None:
            return _WINDOW
        step = round(self.window_seconds * _RATE)
        window = -(-frames // step) * step + _RATE
        return min(window, _WINDOW) if isinstance(window, int) else jnp.minimum(window, _WINDOW)


@dataclasses.dataclass(frozen=True)
class OneWindowConfig(WhisperConfig):
    """Whisper whose every clip is computed in one window that is shorter than 30 s, as ComSL's are in one of 11 s.

    Longer clips are refused. What was trained on one window is to be used with the same.
    """

    seconds: float = 30.0

    def __post_init__(self):
        super().__post_init__()
        if self.window_seconds is not None or not 1 / _RATE <= self.seconds <= 30:
            raise ValueError(
                f'OneWindowConfig: window_seconds is {self.window_seconds!r} and seconds {self.seconds!r}; they must '
                f'be None, as all windows are of one length, and from {1 / _RATE:g} to 30.'
            )

    def window(self, frames: Any) -> Any:
        """See `WhisperConfig`."""
        return round(self.seconds * _RATE)


def encoder_seconds(config: WhisperConfig) -> float:
    """Seconds that are computed of any clip at least: what a model file says as `ENCODER_SECONDS`."""
    return config.window(1) / _RATE


def _attend_by_head(
    query: Float[Array, 'b t h k'],
    key: Float[Array, 'b t h k'],
    value: Float[Array, 'b t h k'],
    windows: Int[Array, ' b'] | None = None,
) -> Float[Array, 'b t h k']:
    """`_attend`, one head of one clip at a time: its 9 MB of scores fit into a CPU's cache.

    Four clips of Whisper base have 288 MB of them, in every layer. They are normalised after the product with the
    values, which is narrower.
    """

    def attend(head: tuple[Any, ...]) -> Float[Array, 't k']:
        query, key, value, window = head
        scores = jnp.matmul(query, key.T, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
        if window is not None:
            scores = jnp.where(jnp.arange(len(key)) < window, scores, -jnp.inf)
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
        y = jnp.matmul(weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
        return (y / weights.sum(axis=-1, keepdims=True)).astype(value.dtype)

    b, t, h, k = query.shape
    heads = [x.swapaxes(1, 2).reshape(b * h, t, k) for x in (query, key, value)]
    of_heads = None if windows is None else jnp.repeat(windows, h)
    return jax.lax.map(attend, (*heads, of_heads)).reshape(b, h, t, k).swapaxes(1, 2)


def _attend(
    query: Float[Array, 'b t h k'],
    key: Float[Array, 'b t h k'],
    value: Float[Array, 'b t h k'],
    windows: Int[Array, ' b'] | None = None,
) -> Float[Array, 'b t h k']:
    """Attention to the first `windows` frames, or to all."""
    return jax.nn.dot_product_attention(query, key, value, key_value_seq_lengths=windows)


class _SelfAttention(nn.Module):
    config: WhisperConfig

    @nn.compact
    def __call__(self, x: Float[Array, 'b t d'], windows: Int[Array, ' b'] | None) -> Float[Array, 'b t d']:
        d, axes, dtype = self.config.emb_dim, ('embed', 'joined_kv'), self.config.dtype

        def heads_of(name: str, use_bias: bool = True) -> Float[Array, 'b t h k']:
            y = dense(d, axes, dtype, name, use_bias)(x)
            y = y.reshape(*y.shape[:2], self.config.num_heads, -1)
            return nn.with_logical_constraint(y, ('batch', 'length', 'heads', 'kv'))

        query, key, value = heads_of('q_proj'), heads_of('k_proj', use_bias=False), heads_of('v_proj')
        y = jax.lax.platform_dependent(query, key, value, windows, cpu=_attend_by_head, default=_attend)
        y = nn.with_logical_constraint(y.reshape(x.shape), ('batch', 'length', 'joined_kv'))
        return dense(d, axes[::-1], dtype, 'out_proj')(y)


class _Layer(nn.Module):
    """Self-attention and a GELU block, each pre-normalised; (output, None) for nn.scan."""

    config: WhisperConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, 'b t d'], windows: Int[Array, ' b'] | None
    ) -> tuple[Float[Array, 'b t d'], None]:
        config, dtype = self.config, self.config.dtype
        y = layer_norm(1e-5, dtype, 'self_attn_layer_norm')(x)
        x = nn.with_logical_constraint(x + _SelfAttention(config, name='self_attn')(y, windows), FRAMES)
        y = layer_norm(1e-5, dtype, 'final_layer_norm')(x)
        y = nn.with_logical_constraint(
            dense(config.mlp_dim, ('embed', 'mlp'), dtype, 'fc1')(y), ('batch', 'length', 'mlp')
        )
        x = x + dense(config.emb_dim, ('mlp', 'embed'), dtype, 'fc2')(nn.gelu(y, approximate=False))
        return nn.with_logical_constraint(x, FRAMES), None


def layers(
    config: WhisperConfig, x: Float[Array, 'b t d'], windows: Int[Array, ' b'] | None, layer: int | None = None
) -> Float[Array, 'b t d']:
    """The Transformer's layers, or the first `layer` of them, which attend to the first `windows` frames.

    They are `layers` of the module that calls.
    """
    x, _ = stack_of(_Layer, config.num_layers, layer)(config, name='layers')(x, windows)
    return x


class WhisperEncoder(nn.Module):
    """Log-mel frames at 100 Hz -> frames at 50 Hz."""

    config: WhisperConfig

    @nn.compact
    def __call__(
        self,
        features: Float[Array, 'b t mel'],
        lengths: Int[Array, ' b'],
        deterministic: bool = True,
        layer: int | None = None,
    ) -> tuple[Float[Array, 'b u d'], Int[Array, ' b']]:
        """Features as `WhisperFrontend` makes them: after the last frame comes its like, silence, up to 30 s.

        Returns the frames of the clips, zero beyond them, and their number. There is no dropout, as in Whisper's own
        training: `deterministic` changes nothing. With `layer`, what that layer of the stack gives: its last norm,
        which is of the whole stack, is not applied.
        """
        config = self.config
        u, lengths = -(-features.shape[1] // 2), -(-lengths // 2)
        t = config.window(-(-max(features.shape[1] - _SILENT_FEATURES, 0) // 2))
        if features.shape[1] > 2 * t + _SILENT_FEATURES:
            raise ValueError(
                f'The speech encoder computes {t / _RATE:g} s (OneWindowConfig.seconds), and a clip has '
                f"{features.shape[1] / 2 / _RATE:.1f} s. Set TASK_FEATURE_LENGTHS['speech'] to {t * 320} or less."
            )
        x = jnp.pad(features[:, : 2 * t], ((0, 0), (0, max(2 * t - features.shape[1], 0)), (0, 0)), mode='edge')
        x, u = x.astype(config.dtype), min(u, t)
        windows = None
        if config.window_seconds is not None:
            windows = config.window(lengths)
            x = jnp.where((jnp.arange(2 * t) < 2 * windows[:, None])[..., None], x, 0)
        for name, stride in (('conv1', 1), ('conv2', 2)):
            x = nn.with_logical_constraint(conv(config.emb_dim, 3, stride, 1, config.dtype, name)(x), FRAMES)
            x = nn.gelu(x, approximate=False)
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ('length', 'embed'))
        positions = self.param('embed_positions', init, (_WINDOW, config.emb_dim), jnp.float32)
        x = x + positions[:t].astype(config.dtype)
        x = layers(config, x, windows, layer)[:, :u]
        if layer is None:
            x = layer_norm(1e-5, config.dtype, 'layer_norm')(x)
        return jnp.where((jnp.arange(u) < lengths[:, None])[..., None], x, 0.0), lengths
