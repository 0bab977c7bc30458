"""Single examples in the report: which are shown, their word-by-word alignment, their audio."""

import base64
import io
from collections.abc import Sequence

import numpy as np

from slm_jax.evaluation import metrics, normalizers, page

_SAMPLE_RATE = 16000
_KEY = (
    '<p class="key small pairs"><span class="same"><span>as said</span><span>as heard</span></span>'
    '<span class="sub"><span>said</span><span>heard</span></span> substituted '
    '<span class="del"><span>said</span><span>–</span></span> deleted '
    '<span class="ins"><span>–</span><span>heard</span></span> inserted</p>'
)


def errors(predictions: Sequence[metrics.Prediction], normalizer: str) -> list[float]:
    """The error rate of each example, in percent, as `metrics.error_rate`."""
    return [metrics.error_rate(prediction, normalizer) for prediction in predictions]


def chosen(
    predictions: Sequence[metrics.Prediction], error_rates: Sequence[float], worst: int
) -> dict[str, tuple[list[int], list[int]]]:
    """Chooses the examples to show.

    Args:
        predictions: all of them.
        error_rates: one for each.
        worst: how many of each kind.

    Returns:
        {kind: (positions of the worst, worst first, none of them right; positions of at most 8
        others at even distances from the best to the worst, since the worst alone mislead)}.
    """
    result = {}
    for kind in metrics.KINDS:
        positions = [i for i, p in enumerate(predictions) if metrics.kind_of(p) == kind]
        ranked = sorted(positions, key=lambda i: error_rates[i])
        bad = [i for i in ranked[::-1][:worst] if error_rates[i] > 0]
        others = [i for i in ranked if i not in set(bad)]
        places = np.linspace(0, len(others) - 1, min(worst, 8, len(others))).round().astype(int)
        if positions:
            result[kind] = bad, [others[i] for i in places]
    return result


class AudioBudget:
    """Hands out audio players until the page's bytes of audio are spent."""

    def __init__(self, left: int):
        self.left = left

    def player(self, samples: np.ndarray | None, identity: str) -> str:
        """HTML: an audio player of int16 samples [n] at 16 kHz, or a word on why there is none."""
        if samples is None or not len(samples):
            return ''
        encoded = encode_audio(samples)
        if len(encoded) > self.left:
            return '<p class="soft small">Audio left out: the page has reached its size limit.</p>'
        self.left -= len(encoded)
        source = base64.b64encode(encoded).decode('ascii')
        return (
            f'<audio controls preload="metadata" aria-label="Audio of {page.escape(identity)}" '
            f'src="data:audio/mpeg;base64,{source}"></audio>'
        )


def encode_audio(samples: np.ndarray) -> bytes:
    """Int16 samples [n] at 16 kHz as MP3, which every browser plays; 2 to 4 kB a second."""
    import soundfile

    stream = io.BytesIO()
    soundfile.write(
        stream,
        np.asarray(samples, np.int16),
        _SAMPLE_RATE,
        format='MP3',
        subtype='MPEG_LAYER_III',
        bitrate_mode='VARIABLE',
        compression_level=0.6,
    )
    return stream.getvalue()


def alignment(reference: Sequence[str], prediction: Sequence[str]) -> list[tuple[str, str, str]]:
    """Aligns two texts by the least number of edits.

    Args:
        reference: its words, or its characters.
        prediction: likewise.

    Returns:
        (kind, word of the reference, word of the prediction), kind one of 'same', 'sub', 'del',
        'ins'; where there is no word it is ''.
    """
    import jiwer

    kinds = {'equal': 'same', 'substitute': 'sub', 'delete': 'del', 'insert': 'ins'}
    as_is = jiwer.Compose([jiwer.ReduceToListOfListOfWords(word_delimiter='\x1f')])
    output = jiwer.process_words(
        '\x1f'.join(reference),
        '\x1f'.join(prediction),
        reference_transform=as_is,
        hypothesis_transform=as_is,
    )
    result = []
    for chunk in output.alignments[0]:
        length = max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
        said = list(reference[chunk.ref_start_idx : chunk.ref_end_idx]) or [''] * length
        heard = list(prediction[chunk.hyp_start_idx : chunk.hyp_end_idx]) or [''] * length
        result += [(kinds[chunk.type], r, p) for r, p in zip(said, heard, strict=True)]
    return result


def listing(items: Sequence[str], key: bool) -> tuple[str, ...]:
    """The examples as a list, under a key to the colours if asked; () where there is none."""
    if not items:
        return ()
    cards = ''.join(f'<li class="card">{item}</li>' for item in items)
    return (_KEY if key else '', f'<ol class="examples">{cards}</ol>')


def show(
    prediction: metrics.Prediction,
    error: float,
    samples: np.ndarray | None,
    normalizer: str,
    budget: AudioBudget,
) -> str:
    """One example as HTML: its name, score, audio, texts, and for a transcription the alignment."""
    identity = str(prediction.get('id'))
    kind = metrics.kind_of(prediction)
    if kind in ('slots', 'choices'):
        verdict = 'right' if error == 0 else 'wrong'
    elif kind == 'answers':
        verdict = f'F1 {100 - error:.0f}' if error else 'right'
    elif kind == 'translation':
        verdict = f'chrF {100 - error:.0f}'
    elif kind == 'likelihood':
        verdict = f'{prediction["log_likelihoods"][0]:.1f} nats'
    else:
        verdict = f'{"CER" if metrics.is_unspaced(prediction.get("lang")) else "WER"} {error:.0f}%'
    seconds = f' · {prediction["duration"]:.1f} s' if prediction.get('duration') else ''
    note = f'{metrics.group_of(prediction)} · {verdict}{seconds}'
    texts = _texts(prediction)
    aligned = _aligned(prediction, normalizer) if kind == 'transcription' else ''
    return (
        f'<header><h3>{page.escape(identity)}</h3>'
        f'<span class="soft small">{page.escape(note)}</span></header>'
        f'{budget.player(samples, identity)}{aligned}{texts}'
    )


def _texts(prediction: metrics.Prediction) -> str:
    target = page.escape(prediction.get('target_lang') or prediction.get('lang') or '')
    rows: list[tuple[str, str, str]] = []
    for name, field in (
        ('Instruction', 'instruction'),
        ('Reference', 'reference'),
        ('Prediction', 'prediction'),
    ):
        text = prediction.get(field)
        if field == 'reference' and prediction.get('answers'):
            text = ' / '.join(prediction['answers'])
        if text or field == 'prediction':
            language = f' lang="{target}"' if target and field != 'instruction' else ''
            # dir=auto: Arabic and Hebrew run from the right by themselves.
            rows.append((name, f'{language} dir="auto"', page.escape(text) if text else '(nothing)'))
    return '<dl class="texts">{}</dl>'.format(
        ''.join(f'<dt>{name}</dt><dd{attributes}>{text}</dd>' for name, attributes, text in rows)
    )


def _aligned(prediction: metrics.Prediction, normalizer: str) -> str:
    """The alignment as two rows of coloured words; a screen reader gets the plain texts instead."""
    normalize = normalizers.get(metrics.normalizer_of(prediction, normalizer))
    texts = normalize(prediction['reference']), normalize(prediction['prediction'])
    unspaced = metrics.is_unspaced(prediction.get('lang'))
    reference, answer = (list(''.join(t.split())) if unspaced else t.split() for t in texts)
    cells = ''.join(
        f'<span class="{kind}"><span>{page.escape(said) or "–"}</span><span>{page.escape(heard) or "–"}</span></span>'
        for kind, said, heard in alignment(reference, answer)
    )
    return f'<div class="pairs" dir="auto" aria-hidden="true">{cells}</div>'
