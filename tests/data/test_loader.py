"""The loader: the contract, one order for any number of hosts, free resumes, bad input."""

import itertools
import json

import numpy as np
import pytest
import seqio
import soundfile

from slm_jax import tasks  # noqa: F401  registers tasks
from slm_jax.audio.augmentation import WaveformAugmentation
from slm_jax.data import instructions, notices, preprocessors, prompts, seen
from slm_jax.data import loader as loader_lib
from slm_jax.data.tensorflow_cpu import tf
from slm_jax.tasks import registry


@pytest.fixture(autouse=True)
def fresh_registry(vocabulary):
    registries = (seqio.TaskRegistry, seqio.MixtureRegistry)
    known = [dict(r._REGISTRY) for r in registries]
    yield
    for r, names in zip(registries, known):
        r._REGISTRY.clear()
        r._REGISTRY.update(names)


@pytest.fixture
def make(manifest, tmp_path):
    for kind in ('asr', 'ctc', 'instruct'):
        registry.manifest(f'm_{kind}', manifest, kind)
    registry.manifest('m_fr_en', manifest, 'ast', target_lang='en', langs=['fr'])

    def loader(name='m_asr', **kwargs):
        return loader_lib.SpeechTextLoader(
            name, **{'seconds_per_batch': 8.0, 'cache_dir': tmp_path / 'cache', **kwargs}
        )

    return loader


def take(loader, count, start=0):
    return list(itertools.islice(loader.batches(start), count))


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_batches_keep_the_contract(make, vocabulary, manifest):
    loader = make()
    spoken = {
        soundfile.read(p, dtype='int16')[0].tobytes(): json.loads(line)
        for p, line in zip(sorted(manifest.parent.glob('*.wav')), manifest.read_text().splitlines())
    }
    shapes = [{k: shape for k, (shape, _) in s.items()} for s in loader.batch_shapes()]
    for _, batch in take(loader, 12):
        assert {k: v.shape for k, v in batch.items()} in shapes
        for name, (_, dtype) in loader.batch_shapes()[0].items():
            assert batch[name].dtype == dtype
        for row in range(len(batch['speech_lengths'])):
            n = batch['speech_lengths'][row]
            line = spoken[batch['speech_samples'][row, :n].tobytes()]
            assert not batch['speech_samples'][row, n:].any()
            targets = batch['decoder_target_tokens'][row]
            assert vocabulary.decode(targets.tolist()) == line['text']
            assert targets[int((targets > 0).sum()) - 1] == 1  # EOS
            np.testing.assert_array_equal(batch['decoder_input_tokens'][row], np.append(0, targets[:-1]))
            np.testing.assert_array_equal(batch['decoder_loss_weights'][row], targets > 0)
            asked = vocabulary.decode(batch['encoder_input_tokens'][row].tolist())
            assert asked in [
                t.format(language={'en': 'English', 'fr': 'French'}[line['lang']]) for t in registry.TEMPLATES['asr']
            ]


def test_what_was_met_can_be_asked_without_the_data(make, manifest, tmp_path):
    loader = make()
    texts = [json.loads(line)['text'] for line in manifest.read_text().splitlines()]
    seen.write(tmp_path, loader.seen)
    met = seen.read(tmp_path)
    assert np.isin(seen.hashes([text.upper() + ' !' for text in texts]), met['targets']).all()
    assert not np.isin(seen.hashes(['never said']), met['targets']).any()
    asked = [text.format(language='English') for text in instructions.TEMPLATES['asr_language']]
    assert np.isin(seen.hashes(asked), met['instructions']).all(), 'in every wording'
    both = seen.joined([met, {kind: seen.hashes(['more']) for kind in seen.KINDS}])
    assert [len(both[kind]) - len(met[kind]) for kind in seen.KINDS] == [1, 1]
    assert seen.read(tmp_path / 'absent') is None


def test_a_resume_gives_what_would_have_come(make):
    whole = take(make(), 20)
    again = take(make(), 8, start=12)
    for (step, batch), (expected_step, expected) in zip(again, whole[12:]):
        assert step == expected_step
        assert_equal(batch, expected)
    assert make().state() == make().state()
    assert json.loads(json.dumps(make().state())) == make().state()
    assert make(seed=1).state() != make().state()
    assert make('m_instruct').state() != make().state()


def test_recordings_are_augmented_by_seed_and_step(make):
    """Each time in another way, the same after a resume; all else is as without."""
    loader, plain = make(augmentation=WaveformAugmentation(noise=1.0)), make()
    batches, stored = take(loader, 24), take(plain, 24)
    assert_equal(take(loader, 1, 3)[0][1], batches[3][1])
    heard = {}
    for (_, batch), (_, without) in zip(batches, stored, strict=True):
        for row, clip in zip(batch.pop('speech_samples'), without.pop('speech_samples')):
            heard.setdefault(clip.tobytes(), set()).add(row.tobytes())
        assert_equal(batch, without)
    assert min(clip not in rows for clip, rows in heard.items() if any(clip)) and max(map(len, heard.values())) > 1
    assert loader.state()['plan'] == plain.state()['plan'] and loader.state() != plain.state()


def test_hosts_take_rows_of_one_plan_and_fill_it_up(make):
    alone = take(make(), 10)
    hosts = [lambda rows, h=h: range(h, -(-rows // 4) * 4, 4) for h in range(4)]  # a mesh need not give blocks
    parts = [list(itertools.islice(make().batches(0, host), 10)) for host in hosts]
    for step, whole in alone:
        count = len(whole['speech_lengths'])
        for name, array in whole.items():
            together = np.stack([part[step][1][name] for part in parts], 1).reshape(-1, *array.shape[1:])
            np.testing.assert_array_equal(together[:count], array)
            assert len(together) == -(-count // 4) * 4 and not together[count:].any()
    infos = [info for host in hosts for _, rows in make(split='test').examples(host) for info in rows if info]
    assert len(infos) == len({info.audio for info in infos}) == 24


def test_some_examples_show_what_kinds_there_are(make):
    """Without their samples; a task's first line may be of another kind than all others."""
    seen = make(split='test').some_examples()
    assert seen['speech_samples'].shape == (24, 0) and (seen['speech_lengths'] > 0).all()
    assert len({*map(bytes, seen['encoder_input_tokens'])}) > 1, 'of both languages'


def test_evaluation_gives_every_example_once_with_what_a_report_needs(make, manifest, vocabulary):
    infos = []
    for batch, rows in make(split='test', row_multiple=4).examples():
        assert len(rows) == len(batch['speech_lengths'])
        for row, info in enumerate(rows):
            if info is None:
                assert all(not batch[name][row].any() for name in batch)
            else:
                assert vocabulary.decode(batch['decoder_target_tokens'][row].tolist()) == info.reference
        infos += [info for info in rows if info]
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    infos.sort(key=lambda info: info.audio)
    assert [info.reference for info in infos] == [line['text'] for line in lines]
    assert [info.lang for info in infos] == [line['lang'] for line in lines]
    assert {info.instruction for info in infos} == {
        'Transcribe the English speech.',
        'Transcribe the French speech.',
    }
    assert {info.task for info in infos} == {'m_asr'}
    np.testing.assert_allclose([info.seconds for info in infos], [line['duration'] for line in lines], atol=1e-3)


def test_translation_instruction_and_ctc(make, manifest, vocabulary):
    lines = {str(manifest.parent / line['audio']): line for line in map(json.loads, manifest.read_text().splitlines())}
    for _, infos in make('m_fr_en').examples():
        for info in filter(None, infos):
            assert info.reference == lines[info.audio]['translation']['en']
            assert (info.lang, info.target_lang) == ('fr', 'en')
            assert info.instruction == 'Translate this speech to English.'
    for _, infos in make('m_instruct').examples():
        for info in filter(None, infos):
            assert info.instruction == lines[info.audio]['instruction']
            assert info.reference == lines[info.audio]['target']
    for batch, infos in make('m_ctc').examples():
        assert batch['encoder_input_tokens'].shape[1] == 0
        assert not (batch['decoder_target_tokens'] == 1).any()
        for row, info in enumerate(infos):
            if info:
                assert vocabulary.decode(batch['decoder_target_tokens'][row].tolist()) == (
                    info.reference.lower().strip(' .!')
                )


def test_a_mixture_on_the_spot(make):
    names = [info.task for _, infos in make({'m_asr': 3.0, 'm_fr_en': 1.0}).examples() for info in infos if info]
    assert sorted(set(names)) == ['m_asr', 'm_fr_en'] and len(names) == 24 + 8
    loader = make({registry.mixture({'m_asr': 1, 'm_instruct': 1}): 3.0, 'm_fr_en': 1.0})
    np.testing.assert_allclose(loader.plan._shares, [3 / 8, 3 / 8, 1 / 4])
    with pytest.raises(ValueError, match="'m_asf'; did you mean m_asr"):
        make('m_asf')


def test_speech_beside_text_only_examples(make):
    seqio.TaskRegistry.add(
        'text',
        source=seqio.FunctionDataSource(
            lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(
                {
                    'id': [b'a', b'b', b'c'],
                    'inputs': ['say one', 'say two', 'say three'],
                    'targets': ['one', 'two', 'three'],
                }
            ),
            splits=['train'],
        ),
        preprocessors=[
            seqio.CacheDatasetPlaceholder(),
            seqio.preprocessors.tokenize,
            seqio.preprocessors.append_eos,
        ],
        output_features=preprocessors_features(),
    )
    loader = make({'m_asr': 1.0, 'text': 1.0}, teacher=True)
    kinds = set()
    for _, batch in take(loader, 30):
        text_only = batch['speech_samples'].shape[1] == 0
        kinds.add(text_only)
        assert (batch['teacher_input_tokens'].shape[1] == 0) == text_only
        assert (batch['speech_lengths'] == 0).all() == text_only
    assert kinds == {True, False}


def preprocessors_features():
    from slm_jax.data import output_features

    return {k: f for k, f in output_features.output_features().items() if k != 'speech'}


def test_what_a_teacher_reads(make, vocabulary, manifest):
    """The prompt with the transcript in the place of the speech; all else is as without a teacher."""
    lines = {str(manifest.parent / line['audio']): line for line in map(json.loads, manifest.read_text().splitlines())}
    loader = make('m_instruct', teacher=True)
    shapes = [{k: shape for k, (shape, _) in s.items()} for s in loader.batch_shapes()]
    for (batch, infos), (without, _) in zip(loader.examples(), make('m_instruct').examples(), strict=True):
        assert {k: v.shape for k, v in batch.items()} in shapes
        taught = batch.pop('teacher_input_tokens')
        assert_equal(batch, without)
        for row, info in zip(taught, infos):
            line = lines[info.audio] if info else None
            read = prompts.Prompt().tokens(vocabulary, line['instruction'], line['text']) if line else ()
            np.testing.assert_array_equal(row, np.pad(np.array(read, np.int32), (0, len(row) - len(read))))
    assert loader.state()['plan'] != make('m_instruct').state()['plan']
    assert loader.state() == make('m_instruct', teacher=True).state()
    with pytest.raises(preprocessors.BadExampleError, match='of teacher_inputs where 9 are allowed'):
        make('m_instruct', teacher=True, task_feature_lengths={'teacher_inputs': 9})


def test_a_teacher_needs_the_transcript(make, manifest):
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    del lines[5]['text']
    manifest.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    assert not make('m_instruct').skipped
    with pytest.raises(preprocessors.BadExampleError, match=f'{manifest}:6: field "text" is missing. The transcript'):
        make('m_instruct', teacher=True)
    assert len(make('m_instruct', teacher=True, on_bad_example='skip').skipped) == 1


@pytest.mark.parametrize(
    'change, limits, said',
    [
        ({'text': None}, {}, 'field "text" is missing'),
        ({'audio': None}, {}, 'field "audio" is missing'),
        ({'lang': 'xx'}, {}, "unknown language 'xx'"),
        ({}, {'speech': 16000 * 2}, r's of speech where 2\.0 s are allowed'),
        ({'text': 'word ' * 50}, {'targets': 40}, 'tokens of targets where 40 are allowed'),
    ],
)
def test_bad_examples_stop_or_are_listed(make, manifest, change, limits, said):
    lines = manifest.read_text().splitlines()
    if change:
        lines[5] = json.dumps({k: v for k, v in {**json.loads(lines[5]), **change}.items() if v})
        manifest.write_text('\n'.join(lines))
    registry.manifest('spoilt', manifest, 'asr')
    with pytest.raises(preprocessors.BadExampleError, match=said) as error:
        make('spoilt', task_feature_lengths=limits)
    assert (
        'clip05.wav' in str(error.value)
        or f'{manifest}:6' in str(error.value)
        or (not change and str(manifest.parent) in str(error.value))
    )
    assert "on_bad_example='skip'" in str(error.value)
    loader = make('spoilt', task_feature_lengths=limits, on_bad_example='skip')
    kept = sum(info is not None for _, infos in loader.examples() for info in infos)
    assert kept + len(loader.skipped) == 24
    assert len(loader.skipped) == (1 if change else sum(json.loads(line)['duration'] > 2 for line in lines))


def test_a_step_that_fails_names_its_example(make, manifest, monkeypatch):
    tokenize = preprocessors._tokenize

    def fails(example, *rest):
        if example['targets'] == b'number 7':
            raise KeyError('seven')
        return tokenize(example, *rest)

    step = preprocessors.ExampleStep(fails, preprocessors.tokenize.reads, preprocessors.tokenize.adds)
    monkeypatch.setattr(preprocessors, 'tokenize', step)
    registry.manifest('fails', manifest, 'instruct')
    with pytest.raises(preprocessors.BadExampleError, match=r"clip07.wav: a step .* fails \(KeyError: 'seven'"):
        make('fails')
    assert len(make('fails', on_bad_example='skip').skipped) == 1


def test_a_limit_takes_the_first_examples(make):
    ids = {info.id for _, infos in make().examples() for info in infos if info}
    first = {info.id for _, infos in make(limit=5).examples() for info in infos if info}
    assert len(first) == 5 and first == set(sorted(ids, key=lambda id: int(id.rsplit(':')[-1]))[:5])
    with pytest.raises(ValueError, match='limit'):
        make(limit=0)


def test_rows_count_as_what_the_encoder_computes(make):
    assert {bucket.rows for bucket in make(encoder_seconds=4.0).plan.buckets} == {2}
    assert max(bucket.rows for bucket in make().plan.buckets) > 2


def test_what_is_skipped_is_listed(make, manifest, capsys, monkeypatch):
    loader = make(task_feature_lengths={'speech': 16000}, on_bad_example='skip')
    said, count = capsys.readouterr().err, len(loader.skipped)
    assert 'm_asr train: ' in said and f'm_asr train: {count} bad examples skipped:' in said
    assert said.count('s of speech where 1.0 s are allowed') == min(count, 20)
    monkeypatch.setattr(notices, 'silent', True)
    make(task_feature_lengths={'speech': 16000}, on_bad_example='skip')
    assert not capsys.readouterr().err, 'the first host speaks for all'


@pytest.mark.parametrize(
    'arguments, said',
    [
        ({'seconds_per_batch': 0}, r'seconds_per_batch \(BATCH_SECONDS\) is 0; a number of seconds above 0'),
        ({'seconds_per_batch': 'abc'}, r"seconds_per_batch \(BATCH_SECONDS\) is 'abc'"),
        ({'seconds_per_batch': float('nan')}, 'BATCH_SECONDS'),
        ({'num_buckets': 0}, r'num_buckets \(NUM_BUCKETS\) is 0; a whole number from 1 on'),
        ({'num_buckets': 2.5}, r'num_buckets \(NUM_BUCKETS\) is 2.5'),
        ({'num_buckets': True}, 'NUM_BUCKETS'),
        ({'seed': -1}, r'seed \(RANDOM_SEED\) is -1'),
        ({'encoder_seconds': -1.0}, r'encoder_seconds \(ENCODER_SECONDS\) is -1.0'),
        ({'shape_cost': '1%'}, r"shape_cost \(SHAPE_COST\) is '1%'; a share of the training, from 0 on, was expected"),
        ({'tokens_per_batch': 0}, 'tokens_per_batch is 0'),
        ({'task_feature_lengths': {'spech': 1}}, r"\(TASK_FEATURE_LENGTHS\) has no 'spech'; did you mean 'speech'"),
        ({'task_feature_lengths': {'speech': 0}}, r"\(TASK_FEATURE_LENGTHS\): 'speech' is 0; .* samples from 1 on"),
        ({'task_feature_lengths': {'targets': 6.4}}, "'targets' is 6.4; a whole number of tokens"),
        ({'task_feature_lengths': 16000}, r'\(TASK_FEATURE_LENGTHS\) is 16000'),
    ],
)
def test_arguments_that_cannot_be_name_their_macro(make, arguments, said):
    with pytest.raises(ValueError, match=said):
        make(**arguments)


def test_an_error_in_the_thread_reaches_the_consumer(make, monkeypatch):
    loader = make()
    monkeypatch.setattr(loader, '_example', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(loader.batches())


def test_waiting_is_measured(make, monkeypatch):
    import time

    loader = make(prefetch=1)
    slow = loader._batch
    monkeypatch.setattr(loader, '_batch', lambda *batch: (time.sleep(0.02), slow(*batch))[1])
    take(loader, 10)
    assert loader.wait_share > 0.5


def test_gin_names_manifests_and_rates(manifest, tmp_path):
    import gin
    from slm_jax import configuration

    path = tmp_path / 'run.gin'
    path.write_text(f"""
from __gin__ import dynamic_registration
from slm_jax import tasks
from slm_jax.data import loader
MIXTURE_OR_TASK_NAME = {{@mine/tasks.manifest(): 1.0, @french/tasks.manifest(): 2.0}}
mine/tasks.manifest.name = 'mine'
mine/tasks.manifest.path = '{manifest}'
french/tasks.manifest:
  name = 'french'
  path = {{'train': '{manifest}'}}
  task = 'ast'
  target_lang = 'en'
  langs = ('fr',)
loader.SpeechTextLoader:
  mixture_or_task_name = %MIXTURE_OR_TASK_NAME
  seconds_per_batch = 8.0
  cache_dir = '{tmp_path / 'cache'}'
""")
    try:
        configuration.parse_gin([str(path)])
        for _ in range(2):  # registering is idempotent
            loader = configuration.configured(loader_lib.SpeechTextLoader)()
        assert [task.name for task in loader._tasks] == ['mine', 'french']
        np.testing.assert_allclose(loader.plan._shares, [1 / 3, 2 / 3])
    finally:
        gin.clear_config()
