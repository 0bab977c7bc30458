"""How long a task's examples are in every wording, and what of them its tokenizer cannot write."""

from slm_jax.data.tensorflow_cpu import tf  # isort: skip  before others load TensorFlow

import dataclasses
import functools
import hashlib
import io
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import seqio
import tqdm

from slm_jax import paths
from slm_jax.data import cache, preprocessors, prompts, seen, shards

_FORMAT = 4  # of the file: raise it when what is measured changes
_SHOWN = 3  # targets with unknown characters


def measure(task: seqio.Task, store: cache.Store, teacher: bool = False) -> dict[str, np.ndarray]:
    """Runs the task's later steps over all texts, in every wording; remembered beside the store.

    Args:
        teacher: whether what a teacher reads is measured too; see `preprocessors.teacher_inputs`.

    Returns:
        Arrays [n]: `used` (by the task), `inputs` and `targets` (the longest, in tokens; also `teacher_inputs`),
        `letters` (of the targets) and `lost` (those that the tokenizer writes as unknown). Also `bad` and `errors`:
        which examples cannot be used, and why; `shown`: some targets of which letters are lost; and `seen_…`, the
        hashes of all `seen.KINDS`.
    """
    path = path_of(task, store, teacher)
    if not path.exists():
        _save(path, _joined([_measure(task, store, range(len(store)), teacher)]))
    return _load(path)


def path_of(task: seqio.Task, store: cache.Store, teacher: bool = False) -> pathlib.Path:
    """The file that remembers what was measured."""
    description = [
        cache.FORMAT,
        _FORMAT,
        task.name,
        cache.describe(steps_after_store(task)),
        {k: cache.describe(f.vocabulary) for k, f in task.output_features.items()},
        dataclasses.asdict(prompts.Prompt()),
        *['teacher'] * teacher,
    ]
    digest = hashlib.sha256(json.dumps(description, sort_keys=True, default=repr).encode())
    return store.directory / f'lengths-{digest.hexdigest()[:12]}.npz'


def part_of(task: seqio.Task, store: cache.Store, number: int) -> pathlib.Path:
    """The file of what was measured of one shard."""
    path = path_of(task, store)
    return path.with_name(f'{path.stem}-{number:05d}.npz')


def measure_shard(task: seqio.Task, store: cache.Store, number: int) -> None:
    """Measures one shard, into its `part_of`."""
    _save(part_of(task, store, number), _measure(task, store, store.shard(number)))


def join(task: seqio.Task, store: cache.Store) -> None:
    """Makes of the parts of all shards the same file as `measure` does."""
    parts = [part_of(task, store, number) for number in range(len(store.sizes))]
    _save(path_of(task, store), _joined([_load(part) for part in parts]))
    for part in parts:
        part.unlink()


def _save(path: pathlib.Path, measured: Mapping[str, np.ndarray]) -> None:
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **measured)
    paths.write(path, content.getvalue())


def _load(path: pathlib.Path) -> dict[str, np.ndarray]:
    with path.open('rb') as file, np.load(file) as arrays:
        return dict(arrays)


def _joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    whole['shown'] = whole['shown'][:_SHOWN]
    return {name: _narrow(array) if array.dtype == np.int32 else array for name, array in whole.items()}


def _measure(task: seqio.Task, store: cache.Store, examples: range, teacher: bool = False) -> dict[str, np.ndarray]:
    n = len(examples)
    lengths = ('inputs', 'targets', *['teacher_inputs'] * teacher)
    result = {name: np.zeros(n, np.int32) for name in (*lengths, 'letters', 'lost')}
    result['used'] = np.zeros(n, bool)
    bad, shown = {}, []
    texts: dict[str, set[str]] = {kind: set() for kind in seen.KINDS}
    empty = {'speech': np.zeros(0, np.int16)} if 'speech' in store.spec else {}
    steps = postcache(task, store.spec, teacher)
    vocabulary = task.output_features['targets'].vocabulary
    number = wordings(task, store)
    bar = tqdm.tqdm(examples, f'Measuring {task.name}', unit='example', delay=5, leave=False, disable=None)
    for i, index in enumerate(bar):
        features = store.features(index)
        for seed in range(number):
            try:
                example = steps(dict(features, **empty, index=np.int64(index), template_seed=np.int64(seed)))
            except preprocessors.BadExampleError as error:
                example = {'error': str(error).encode()}
            if example is None:
                break
            result['used'][i] = True
            for name in lengths:
                result[name][i] = max(result[name][i], len(example.get(name, ())))
            if example.get('error'):
                bad[index] = example['error'].decode()
                break
            said = example.get('targets_pretokenized', b'').decode()
            texts['targets'].add(said)
            texts['instructions'].add(example.get('inputs_pretokenized', b'').decode())
            if seed == 0:
                letters, lost, written = unknown(example['targets'], said, vocabulary)
                result['letters'][i], result['lost'][i] = letters, lost
                if lost and len(shown) < _SHOWN:
                    shown.append(f'{said[:60]!r} as {written[:60]!r}')
    result['bad'] = np.array(list(bad), np.int64)
    result['errors'] = np.array(list(bad.values()), np.str_)
    result['shown'] = np.array(shown, np.str_)
    return result | {f'seen_{kind}': np.unique(seen.hashes(found - {''})) for kind, found in texts.items()}


def _narrow(numbers: np.ndarray) -> np.ndarray:
    return numbers.astype(np.min_scalar_type(numbers.max(initial=0)))


def unknown(tokens: np.ndarray, said: str, vocabulary: seqio.Vocabulary) -> tuple[int, int, str]:
    """(letters and digits of a text, those that its tokens have as unknown, what the other tokens say).

    `said` may be '' where it is not known; then an unknown token counts as one letter.
    """
    ids = [int(token) for token in tokens]
    unknowns = 0 if vocabulary.unk_id is None else ids.count(vocabulary.unk_id)
    if not unknowns:
        return _letters(said), 0, said
    written = vocabulary.decode([token for token in ids if token != vocabulary.unk_id])
    lost = max(_letters(said) - _letters(written), unknowns)
    return max(_letters(said), lost), lost, written


def _letters(text: str) -> int:
    return sum(map(str.isalnum, text))


def wordings(task: seqio.Task, store: cache.Store) -> int:
    """How many wordings are measured: all, or where a step draws freely those of some seeds.

    All are one where the prompt has no place for the instruction. What a step draws later may be longer, see
    `SpeechTextLoader.fitting`.
    """
    if all(isinstance(step, preprocessors.ExampleStep) for step in steps_after_store(task)):
        written = [step.wordings if 'template_seed' in step.reads else 1 for step in steps_after_store(task)]
        if None not in written:
            return max(written) if prompts.Prompt().instructed else 1
    return preprocessors.MAX_TEMPLATES if 'speech' in store.spec else 3


def name_of(features: Mapping[str, np.ndarray | bytes]) -> str:
    """What people know an example by."""
    texts = (features.get(field) for field in ('audio', 'origin', 'id'))
    name = next((text for text in texts if isinstance(text, bytes) and text), b'an example').decode()
    if offset := features.get('offset'):
        return f'{name} from {float(offset):g} s'
    return name


def postcache(task: seqio.Task, spec: Mapping, teacher: bool = False) -> Callable[[dict], dict | None]:
    """The task's steps after the placeholder, as a function of one example.

    Steps that are `preprocessors.ExampleStep`s are called as they are. Any other SeqIO step is run
    by TensorFlow over a dataset of that one example: right, but milliseconds instead of
    microseconds. What a step raises becomes a `BadExampleError` with the example's name.
    `teacher` adds what a teacher reads.
    """
    steps = steps_after_store(task)
    plain = all(isinstance(step, preprocessors.ExampleStep) for step in steps)
    run = functools.partial(_in_python, task, steps) if plain else _in_tensorflow(task, spec)

    def call(example):
        try:
            given = run(example)
            taught = {} if given is None or not teacher else preprocessors.teacher_inputs(given, task.output_features)
            return given and {**given, **taught}
        except Exception as error:
            known = isinstance(error, tf.errors.OpError)
            reason = shards.reason_of(error) if known else f'{type(error).__name__}: {error}'
            raise preprocessors.BadExampleError(
                f'{name_of(example)}: a step of task {task.name!r} fails ({reason}). Leave the example out, or mend it.'
            ) from error

    return call


def steps_after_store(task: seqio.Task) -> list:
    """The steps after the placeholder."""
    return list(task.preprocessors[task._cache_step_idx + 1 :])


def _in_python(task: seqio.Task, steps: Sequence[preprocessors.ExampleStep], example: dict) -> dict | None:
    for step in steps:
        added = step.function({k: example[k] for k in step.reads if k in example}, task.output_features, None)
        if added is None:
            return None
        example = {**example, **added}
    return example


def _in_tensorflow(task: seqio.Task, spec: Mapping) -> Callable[[dict], dict | None]:
    signature = {name: tf.TensorSpec([None] * rank, dtype) for name, (dtype, rank) in spec.items()}
    signature |= dict.fromkeys(('template_seed', 'index'), tf.TensorSpec((), tf.int64))

    @functools.partial(tf.function, input_signature=[signature], autograph=False)
    def run(example):
        dataset = tf.data.Dataset.from_tensors(example)
        return task.preprocess_postcache(dataset, sequence_length=None, seed=0).get_single_element()

    def call(example):
        try:
            result = run({k: tf.constant(v) for k, v in example.items()})
        except tf.errors.InvalidArgumentError as error:
            if 'empty' in str(error):  # a filter left the example out
                return None
            raise
        return {k: v.numpy() for k, v in result.items()}

    return call
