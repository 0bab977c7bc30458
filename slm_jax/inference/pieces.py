"""Recordings that are longer than a model hears at once, and prompts of several: heard piece by piece, read as one.

Each piece goes through the speech encoder and the adapter by itself, so that memory does not grow with a recording. The
language model then reads the embeddings of all pieces, of which there are as many as the adapter makes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from slm_jax.inference import chunks, queries

_SECONDS = 60.0  # of audio that is heard together


def limit(system: Any) -> int | None:
    """Samples that a system hears at once where it takes longer recordings too, in pieces; None: it takes none."""
    seconds = getattr(system, 'piece', None)
    return None if seconds is None else round(seconds * queries.SAMPLE_RATE)


def listened(model: Any, batch: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """A batch as the model's system takes it.

    Args:
        model: see `slm_jax.inference.model`.
        batch: of `queries.batch_of`.

    Returns:
        The same, if it has no more to hear than is heard at once; else one with embeddings in the place of samples, see
        `slm_jax.systems.spoken_prompt`.

    Raises:
        ValueError: a prompt of several recordings for a system that takes one.
    """
    most, lengths = limit(model.system), batch['speech_lengths']
    several = batch.get('recording_lengths')
    if several is None:
        if most is None or batch['speech_samples'].shape[1] <= most:
            return batch
        if lengths.max() <= most:
            return {**batch, 'speech_samples': batch['speech_samples'][:, :most]}
        several = lengths[:, None]
    if not hasattr(model.system, 'listen'):
        raise ValueError(f'{model.directory.name} hears one recording at a time, and a prompt has several.')
    owners, pieces = [], []
    for row, of_row in enumerate(several):
        ends = np.cumsum(of_row)
        for number, (start, end) in enumerate(zip(ends - of_row, ends, strict=True)):
            if start == end:  # another row has more recordings, or this one fills the batch up
                continue
            samples = batch['speech_samples'][row, start:end]
            bounds = [(0, len(samples))]
            if most is not None and len(samples) > most:
                bounds = chunks.cut(samples, most / queries.SAMPLE_RATE)
            owners += [(row, number)] * len(bounds)
            pieces += [samples[first:last] for first, last in bounds]
    kept = {name: array for name, array in batch.items() if name != 'recording_lengths'}
    return (
        kept
        | _joined(_heard(model, pieces, most), owners, several.shape)
        | {'speech_samples': batch['speech_samples'][:, :0]}
    )


def _heard(model: Any, pieces: list[np.ndarray], most: int | None) -> list[np.ndarray]:
    """The embeddings of each piece. Equal ones are heard once, and not again if the batch before had them.

    So are the choices of a question, and the examples that come before each question.
    """
    longest = model.encoder_seconds if most is None else most / queries.SAMPLE_RATE
    limits = {'longest': longest, 'computed': model.computed_seconds}
    keys = [piece.tobytes() for piece in pieces]
    found = {key: model.pieces[key] for key in keys if key in model.pieces}
    new = {key: piece for key, piece in zip(keys, pieces, strict=True) if key not in found}
    asked, names = (queries.Query((), piece) for piece in new.values()), list(new)
    for group, batch in queries.batched(asked, _SECONDS, model.row_multiple, **limits):
        embeddings, lengths = model.run('listen', model.system.listen, batch)
        for (place, _), row, length in zip(group, embeddings, lengths, strict=False):
            found[names[place]] = row[:length]
    model.pieces = found
    return [found[key] for key in keys]


def _joined(found: list[np.ndarray], owners: list[tuple[int, int]], shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The embeddings of the pieces as those of their rows, filled up to one of few lengths."""
    lengths, rows = np.zeros(shape, np.int32), [[] for _ in range(shape[0])]
    for (row, number), embeddings in zip(owners, found, strict=True):
        rows[row].append(embeddings)
        lengths[row, number] += len(embeddings)
    joined = np.zeros((shape[0], _room(int(lengths.sum(axis=1).max())), found[0].shape[1]), found[0].dtype)
    for row, of_row in enumerate(rows):
        if of_row:
            whole = np.concatenate(of_row)
            joined[row, : len(whole)] = whole
    return {'speech_embeddings': joined, 'speech_embedding_lengths': lengths}


def _room(count: int) -> int:
    """32, 48, 64, 96, 128 … places."""
    room = 32
    while room < count:
        room *= 2
    return room * 3 // 4 if room > 32 and count <= room * 3 // 4 else room
