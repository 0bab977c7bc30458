"""Phrases that may be said in a recording, found among a million: an index of their keys, and what reads it.

INDEX/phrases.txt    a phrase a line
      keys.npy       float16 [n, k], of a phrase each
      index.usearch  above `BRUTE` phrases: a graph of the keys (HNSW); below they are all compared
      index.json     which retriever they are of, written last
"""

import functools
import json
import os
import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int16

from slm_jax import paths
from slm_jax.data import ctc_text
from slm_jax.foundations import tokenizers
from slm_jax.inference import queries

BRUTE = 20_000
_WHOLE = 'index.json'
_ROWS = 512  # phrases whose keys are made at once
_LETTERS = (16, 32, 64, 128)  # shapes that phrases fall into; more letters no phrase has


class Retriever:
    """What makes keys of recordings and of phrases.

    Args:
        model: of a system `PhraseRetriever`, as `inference.model.load` reads it.

    Raises:
        ValueError: it is of another system.
    """

    def __init__(self, model: Any):
        if not hasattr(model.system, 'phrase_keys'):
            raise ValueError(
                f'{model.directory} is {type(model.system).__name__}, no phrase retriever. Train one '
                '(gin/runs/phrase_retriever_tiny.gin).'
            )
        self._model, self._compiled = model, {}
        self.seconds: list[float] = []  # that each recording took, compilation left out
        self._speech, self._text = jax.jit(model.system.speech_keys), jax.jit(model.system.phrase_keys)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the keys of phrases."""
        return {'retriever': str(paths.absolute(self._model.directory)), 'step': self._model.step}

    def of_speech(self, samples: Int16[np.ndarray, ' n']) -> Float[np.ndarray, 's k']:
        """The keys of a recording at 16 kHz."""
        seconds = queries.seconds_bound(len(samples) / queries.SAMPLE_RATE, fine=True)
        padded = round(min(seconds, self._model.encoder_seconds or seconds) * queries.SAMPLE_RATE)
        filled = np.zeros((1, padded), np.int16)
        filled[0, : len(samples)] = samples
        batch = {'speech_samples': filled, 'speech_lengths': np.array([len(samples)], np.int32)}
        if padded not in self._compiled:
            self._compiled[padded] = self._speech.lower(self._model.params, batch).compile()
        started = time.perf_counter()
        keys, lengths = jax.block_until_ready(self._compiled[padded](self._model.params, batch))
        self.seconds.append(time.perf_counter() - started)
        return np.asarray(keys)[0, : int(lengths[0])]

    def of_phrases(self, phrases: Sequence[str]) -> Iterator[Float[np.ndarray, 'b k']]:
        """The keys of phrases, some hundreds at a time."""
        for start in range(0, len(phrases), _ROWS):
            ids = [tokenizers.Bytes().encode(ctc_text.normalize(phrase)) for phrase in phrases[start : start + _ROWS]]
            longest = max(map(len, ids))
            letters = np.zeros((_ROWS, next((n for n in _LETTERS if n >= longest), _LETTERS[-1])), np.int32)
            for row, each in zip(letters, ids):
                row[: len(each)] = each[: len(row)]
            yield np.asarray(self._text(self._model.params, letters))[: len(ids)]


class Index:
    """Phrases by the keys of a retriever.

    Args:
        phrases: of which each has a key.
        keys: of length 1.
        graph: usearch's, of the same keys; None: all are compared.
    """

    def __init__(self, phrases: Sequence[str], keys: Float[np.ndarray, 'n k'], graph: Any = None):
        self.phrases, self._keys, self._graph = phrases, keys, graph

    def nearest(self, keys: Float[np.ndarray, 's k'], count: int) -> list[tuple[str, float]]:
        """The phrases that are nearest to any of a recording's keys, nearest first, and their cosines."""
        count = min(count, len(self.phrases))
        if self._graph is None:
            near = (keys @ self._all.T).max(axis=0) if len(keys) else np.full(len(self.phrases), -1.0)
            best = np.argpartition(-near, count - 1)[:count]
            found = {int(number): float(near[number]) for number in best}
        else:
            found = {}
            matches = self._graph.search(keys, count, threads=1)
            for number, distance in zip(np.ravel(matches.keys).tolist(), np.ravel(matches.distances).tolist()):
                found[number] = max(found.get(number, -1.0), 1.0 - distance)
        ranked = sorted(found.items(), key=lambda each: (-each[1], each[0]))[:count]
        return [(self.phrases[number], cosine) for number, cosine in ranked]

    @functools.cached_property
    def _all(self) -> Float[np.ndarray, 'n k']:
        return self._keys.astype(np.float32)

    def write(self, directory: pathlib.Path, identity: Mapping[str, Any]) -> None:
        """Writes the files of the module's docstring; the directory is whole or absent."""
        part = directory.with_name(f'{directory.name}.part')
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        (part / 'phrases.txt').write_text(''.join(f'{phrase}\n' for phrase in self.phrases), encoding='utf-8')
        np.save(part / 'keys.npy', self._keys)
        if self._graph is not None:
            self._graph.save(str(part / 'index.usearch'))
        (part / _WHOLE).write_text(json.dumps({**identity, 'phrases': len(self.phrases)}), encoding='utf-8')
        part.rename(directory)


def build(retriever: Retriever, phrases: Sequence[str], progress: Any = lambda done: None) -> Index:
    """An index of these phrases, by usearch if there are more than `BRUTE`.

    Args:
        progress: is told how many further ones are done.

    Raises:
        ImportError: usearch is wanted and not installed.
    """
    keys, graph = [], None
    for part in retriever.of_phrases(phrases):
        keys.append(part.astype(np.float16))
        if len(phrases) > BRUTE:
            from usearch.index import Index as Graph

            graph = graph if graph is not None else Graph(ndim=part.shape[1], metric='ip', dtype='f16')
            graph.add(np.arange(len(graph), len(graph) + len(part)), keys[-1])
        progress(len(part))
    return Index(phrases, np.concatenate(keys), graph)


def read(directory: str | os.PathLike, identity: Mapping[str, Any]) -> Index:
    """An index that was written.

    Raises:
        ValueError: it is none, or of another retriever.
    """
    directory = pathlib.Path(directory)
    try:
        said = json.loads((directory / _WHOLE).read_text(encoding='utf-8'))
        phrases = (directory / 'phrases.txt').read_text(encoding='utf-8').split('\n')[:-1]
        keys = np.load(directory / 'keys.npy', mmap_mode='r', allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f'{directory}: is no index of phrases ({error}). Remove it, and it is made again.') from None
    if said != {**identity, 'phrases': len(phrases)} or len(keys) != len(phrases):
        raise ValueError(
            f'{directory}: is the index of {said.get("retriever")}, step {said.get("step")}, and not of '
            f'{identity["retriever"]}, step {identity["step"]}. Remove it, or give another --index.'
        )
    graph = None
    if (directory / 'index.usearch').exists():
        from usearch.index import Index as Graph

        graph = Graph.restore(str(directory / 'index.usearch'), view=True)
    return Index(phrases, keys, graph)
