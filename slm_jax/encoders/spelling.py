"""How a language model's tokens are spelt in the labels of an aligner, and which tokens labels spell.

Shape names: b batch, t tokens, l labels of a text, n labels of a token.
"""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int


class Spelt(NamedTuple):
    """A text in labels, and where in it its tokens are.

    Attributes:
        labels: of the text, then 0; -1 stands for any.
        firsts, lasts: the places of the first and the last label of each token that is heard.
        heard: whether a token has such labels; a comma has none, and a mark between words is none.
    """

    labels: Int[Array, 'b l']
    firsts: Int[Array, 'b t']
    lasts: Int[Array, 'b t']
    heard: Bool[Array, 'b t']


@dataclasses.dataclass(frozen=True)
class Spelling:
    """The labels of a language model's tokens. Label 0 is blank, as token 0 is padding.

    Attributes:
        by_token: the labels of each token, () of those that are not heard, -1 for a label that is not known. None:
            each token is a label.
        vocab_size: number of tokens, where each is a label.
        between: the label that stands between two words and belongs to neither's sound; 0: there is none.
    """

    by_token: tuple[tuple[int, ...], ...] | None = None
    vocab_size: int | None = None
    between: int = 0

    def __post_init__(self):
        if (self.by_token is None) == (self.vocab_size is None):
            raise ValueError(
                'Spelling wants either by_token, as of @vocabularies.character_spellings(), or vocab_size, where each '
                'token is a label of its own.'
            )

    @functools.cached_property
    def num_labels(self) -> int:
        """Blank included."""
        return self.vocab_size or 1 + max(max(labels, default=0) for labels in self.by_token or ())

    @functools.cached_property
    def table(self) -> np.ndarray:
        """Labels of each token, 0 behind them."""
        if self.by_token is None:
            return np.arange(self.num_labels, dtype=np.int32)[:, None]
        table = np.array([*itertools.zip_longest(*self.by_token, fillvalue=0)], np.int32).T
        return table.astype(np.int16) if self.num_labels < 1 << 15 else table

    @functools.cached_property
    def alone(self) -> np.ndarray:
        """The token that each label spells by itself, 0 where none does; of several the first."""
        if self.by_token is None:
            return np.arange(self.num_labels, dtype=np.int32)
        result = np.zeros(self.num_labels, np.int32)
        for token, labels in enumerate(self.by_token):
            if len(labels) == 1 and labels[0] > 0 and not result[labels[0]]:
                result[labels[0]] = token
        return result

    @functools.cached_property
    def label_alone(self) -> np.ndarray:
        """The label of each token that one alone spells, 0 of the others."""
        table = self.table
        one = (table[:, 0] > 0) & (table[:, 1:2] == 0).all(axis=1)
        return np.where(one, table[:, 0], 0).astype(np.int32)

    @functools.cached_property
    def _tree(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All beginnings of spellings: by (node, label) in order the node behind it; by node the token it spells."""
        nodes: dict[int, int] = {}
        spells = [0]
        for token, labels in enumerate(self.by_token or ()):
            if not labels or min(labels) < 0:
                continue
            node = 0
            for label in labels:
                key = node * self.num_labels + label
                if (found := nodes.get(key)) is None:
                    found = nodes[key] = len(spells)
                    spells.append(0)
                node = found
            spells[node] = spells[node] or token
        keys = np.array(sorted(nodes), np.int64)
        if len(keys) and keys[-1] >= 1 << 31:
            raise ValueError(
                f'{len(spells):,} beginnings of tokens with {self.num_labels:,} labels are too many for 32 bits. '
                'Choose fewer labels, as with `python -m slm_jax.corpora.token_counts --least`.'
            )
        return keys.astype(np.int32), np.array([nodes[key] for key in keys], np.int32), np.array(spells, np.int32)

    def spell(self, tokens: Int[Array, 'b t'], lengths: Int[Array, ' b'], limit: int) -> Spelt:
        """A transcript in labels; of one with more than `limit` labels the first of them.

        A mark between words is left out where no sound was before it, and where nothing follows or another mark.
        """
        valid = jnp.arange(tokens.shape[1]) < lengths[:, None]
        labels = jnp.where(valid[..., None], jnp.asarray(self.table)[tokens].astype(jnp.int32), 0)
        flat = labels.reshape(len(labels), -1)
        sound = (flat != 0) & (flat != self.between)
        begun = lax.cummax(sound.astype(jnp.int32), axis=1) > 0
        end = flat.shape[1]
        following = lax.cummin(jnp.where(flat != 0, jnp.arange(end), end), axis=1, reverse=True)
        following = jnp.pad(following[:, 1:], ((0, 0), (0, 1)), constant_values=end)
        followed = jnp.take_along_axis(sound, following, axis=1, mode='fill', fill_value=False)
        flat = jnp.where(sound | (begun & followed), flat, 0)
        place = (jnp.cumsum(flat != 0, axis=1) - 1).reshape(labels.shape)
        sound = sound.reshape(labels.shape)
        firsts = jnp.min(jnp.where(sound, place, flat.shape[1]), axis=2)
        lasts = jnp.max(jnp.where(sound, place, 0), axis=2)
        (in_front,) = front(flat != 0, flat)
        return Spelt(in_front[:, :limit], firsts, lasts, jnp.any(sound, axis=2))

    def read(self, labels: Int[Array, 'b l']) -> tuple[Int[Array, 'b l'], Int[Array, ' b'], Spelt]:
        """The tokens that labels spell, their number, and where in the labels they are.

        Read from the left, each as long as can be. Labels that begin no token are passed over.
        """
        if self.by_token is None:
            place = jnp.broadcast_to(jnp.arange(labels.shape[1]), labels.shape)
            return labels, jnp.sum(labels != 0, axis=1), Spelt(labels, place, place, labels != 0)
        keys, children, spells = map(jnp.asarray, self._tree)

        def longer(state, number):
            """One label more from every place on."""
            node, coming, token, size = state
            key = jnp.maximum(node, 0) * self.num_labels + coming
            at = jnp.minimum(jnp.searchsorted(keys, key.reshape(-1)).reshape(key.shape), len(keys) - 1)
            node = jnp.where((node >= 0) & (keys[at] == key) & (coming != 0), children[at], -1)
            spelt = jnp.where(node >= 0, spells[node], 0)
            coming = jnp.pad(coming[:, 1:], ((0, 0), (0, 1)))
            return (node, coming, jnp.where(spelt > 0, spelt, token), jnp.where(spelt > 0, number, size)), None

        nothing = jnp.zeros_like(labels)
        longest = self.table.shape[1]
        (_, _, token, size), _ = lax.scan(longer, (nothing, labels, nothing, nothing), jnp.arange(1, longest + 1))

        def step(rest, column):
            token, size = column
            begins = (rest == 0) & (token > 0)
            return jnp.where(begins, size - 1, jnp.maximum(rest - 1, 0)), begins

        _, begins = lax.scan(step, nothing[:, 0], (token.T, size.T))
        begins = begins.T
        place = jnp.broadcast_to(jnp.arange(labels.shape[1]), labels.shape)
        firsts = jnp.where(labels == self.between, place + 1, place) if self.between else place
        tokens, firsts, lasts = front(begins, token, firsts, place + size - 1)
        return tokens, jnp.sum(begins, axis=1), Spelt(labels, firsts, lasts, (tokens != 0) & (firsts <= lasts))


def front(kept: Bool[Array, 'b l'], *arrays: Int[Array, 'b l']) -> list[Int[Array, 'b l']]:
    """What is kept of each array, moved to the front, and then 0."""
    order = jnp.argsort(~kept, axis=1, stable=True)
    return [jnp.take_along_axis(jnp.where(kept, each, 0), order, axis=1) for each in arrays]


def at(values: Int[Array, 'b l'], places: Int[Array, 'b t']) -> Int[Array, 'b t']:
    """The values of each row at these places."""
    return jnp.take_along_axis(values, places, axis=1, mode='clip')
