"""Lists of candidate phrases: what is drawn, by what, and how a task and an evaluation put them into instructions."""

import pytest
import seqio

from slm_jax.data import instructions, json_lines, loader, phrases
from slm_jax.data.phrases import PhraseList
from slm_jax.foundations.tokenizers import Bytes
from slm_jax.inference import queries
from slm_jax.tasks import registry

OWN, TEXT = ['Siobhan', 'Lake Ohrid'], 'Siobhan swam in Lake Ohrid and sang.'


@pytest.fixture
def pool(tmp_path):
    path = tmp_path / 'pool.txt'
    path.write_text('\n'.join(['Swam', 'siobhan', 'lake', 'Siobhan swam', *[f'name{n}' for n in range(60)]] * 2))
    return str(path)


def test_own_phrases_stand_among_others_that_are_not_said(pool):
    draw = PhraseList(pool, (5, 50), without=0, absent=0)
    lists = [draw(OWN, TEXT, seed) for seed in range(60)]
    assert lists == [PhraseList(pool, (5, 50), without=0, absent=0)(OWN, TEXT, seed) for seed in range(60)]
    for listed in lists:
        assert set(OWN) <= set(listed) and len(set(listed)) == len(listed)
        assert all(phrase in OWN or phrase.startswith('name') for phrase in listed)
    counts = [len(listed) - 2 for listed in lists]
    assert min(counts) < 10 and max(counts) > 45 and min(counts) >= 5 and max(counts) <= 50
    places = [listed.index('Siobhan') / len(listed) for listed in lists]
    assert min(places) < 0.2 and max(places) > 0.8


def test_some_have_no_list_and_some_not_what_is_said(pool):
    draw = PhraseList(pool, (3, 3), without=0.2, absent=0.5)
    lists = [draw(OWN, TEXT, seed) for seed in range(300)]
    assert {len(listed) for listed in lists} == {0, 3, 5}
    shares = [sum(len(listed) == count for listed in lists) / 300 for count in (0, 3)]
    assert shares == [pytest.approx(0.2, abs=0.07), pytest.approx(0.4, abs=0.08)]
    assert PhraseList(distractors=(0, 0), without=0, absent=0)([], TEXT, 0) == []


@pytest.mark.parametrize(
    'fields, said',
    [
        ({'distractors': (5, 2)}, r'distractors is \(5, 2\); \(from, to\) was expected, between 0 and 1000'),
        ({'distractors': (0, 2)}, "pool '' has 0 phrases and distractors is up to 2: give a larger"),
        ({'distractors': (0, 0), 'absent': 2}, 'PhraseList.absent is 2; it is a share, 0 to 1'),
        ({'pool': 'no_pool.txt'}, 'no_pool.txt: cannot be read'),
    ],
)
def test_lists_that_cannot_be(fields, said):
    with pytest.raises(ValueError, match=said):
        PhraseList(**fields).check()


def test_a_list_of_texts_or_a_file(pool, tmp_path):
    assert phrases.of_text('') == () and phrases.of_text(' Ann,Bob, Ann\nLake Ohrid ,') == ('Ann', 'Bob', 'Lake Ohrid')
    assert phrases.of_text(pool) == phrases.read(pool) and phrases.of_text('St. Ives') == ('St. Ives',)
    assert phrases.parted(pool) == (pool,), 'who asks from elsewhere names no file'
    assert len(phrases.of_text(', '.join(f'name{n}' for n in range(1000)))) == 1000
    (tmp_path / 'many.txt').write_text('\n'.join(f'name{n}' for n in range(1001)))
    for given, said in (
        ('names.txt', "phrases 'names.txt': there is no such file. Phrases themselves are parted by commas."),
        (', ,', 'phrases: 0 are given; 1 to 1000 can be listed'),
        (str(tmp_path / 'many.txt'), 'phrases: 1001 are given'),
    ):
        with pytest.raises(ValueError, match=said):
            phrases.of_text(given)


@pytest.mark.parametrize('wording', [*instructions.TEMPLATES['asr'], 'Transcribe the French speech.'])
def test_a_request_for_a_transcript_stays_one_with_phrases(wording):
    assert phrases.asked(wording, ()) == wording
    listed = phrases.asked(wording, OWN)
    assert listed == f'{wording} Some of these may be said: Siobhan, Lake Ohrid.' and instructions.transcribes(listed)
    assert phrases.asked('Is one of {phrases} there?', OWN) == 'Is one of Siobhan, Lake Ohrid there?'
    assert not instructions.transcribes(phrases.asked('Who is called?', OWN))


def test_the_option_of_evaluate(pool):
    assert phrases.of_option('', '') is None
    assert phrases.of_option('own', '')(OWN, TEXT, 0) in (OWN, OWN[::-1])
    assert len(phrases.of_option('own+7', pool)(OWN, TEXT, 0)) == 9
    alone = phrases.of_option('7', pool)(OWN, TEXT, 0)
    assert len(alone) == 7 and not set(OWN) & set(alone)
    for given, file, said in (
        ('other+3', pool, "--phrases 'other.3': 'own' lists what a line's `phrases` are, 'own.100' a hundred"),
        ('own3', pool, "--phrases 'own3': "),
        ('', pool, "--phrases '': "),
        ('own+3', '', '--phrases own.3: give --phrase_pool, a file with a phrase a line'),
        ('0', pool, '--phrases 0: nothing is listed; leave it out'),
        ('own+99', pool, 'has 64 phrases and distractors is up to 99'),
    ):
        with pytest.raises(ValueError, match=said):
            phrases.of_option(given, file)


@pytest.fixture
def listing(manifest):
    """The manifest, each line with its first two words as a phrase."""
    rows = [{k: v for k, v in r.items() if k not in ('instruction', 'target')} for r in json_lines.read(manifest)]
    json_lines.write(manifest, [{**row, 'phrases': [' '.join(row['text'].split()[:2])]} for row in rows])
    return manifest


def test_a_task_lists_phrases_by_seed_and_step(listing, pool, vocabulary, tmp_path):
    draw = PhraseList(pool, (2, 4), without=0.3, absent=0.0)
    registry.manifest('contextual', listing, phrases=draw)
    try:
        data = loader.SpeechTextLoader('contextual', seconds_per_batch=8.0, cache_dir=tmp_path / 'cache')
        batches = [batch for _, (_, batch) in zip(range(12), data.batches())]
        asked = [vocabulary.decode(row[row != 0].tolist()) for b in batches for row in b['encoder_input_tokens']]
        infos = {info.id: info for _, each in data.examples() for info in each if info}
        with pytest.raises(ValueError, match="a task 'contextual' is registered already"):
            registry.manifest('contextual', listing)
    finally:
        seqio.TaskRegistry.remove('contextual')
    without = [wording for wording in asked if wording in instructions.TEMPLATES['asr']]
    assert 0.1 < len(without) / len(asked) < 0.5
    counts = {wording.count(',') + 1 for wording in asked if wording not in without}
    assert counts == {3, 4, 5}
    rows = json_lines.read(listing)
    assert {tuple(info.phrases) for info in infos.values()} == {tuple(row['phrases']) for row in rows}
    with pytest.raises(ValueError, match="phrases are listed where a transcript is asked for, task = 'asr', not 'ctc'"):
        registry.manifest('contextual_ctc', listing, 'ctc', phrases=draw)


def test_an_evaluation_lists_phrases(listing, pool, vocabulary):
    def asked(option, instruction=''):
        listed = phrases.of_option(option, pool if option else '')
        question = queries.Question(instruction, listed=listed)
        found = queries.from_manifest(listing, [question], vocabulary, 30.0, queries.prompts.Prompt(), listen=False)
        return [query for query in found]

    rows = json_lines.read(listing)
    for query, row in zip(asked('own+9'), rows, strict=True):
        assert query.info['phrases'] == row['phrases'] and query.transcribed
        start, end = instructions.TEMPLATES['asr_phrases'][0].split('{phrases}')
        listed = query.info['instruction'].removeprefix(start).removesuffix(end).split(', ')
        assert len(listed) == 10 and row['phrases'][0] in listed
    assert all(query.info['phrases'] not in query.info['instruction'].split(', ') for query in asked('9'))
    assert asked('own', 'Names: {phrases}. Transcribe.')[0].info['instruction'] == (
        f'Names: {rows[0]["phrases"][0]}. Transcribe.'
    )
    assert '{' not in asked('')[0].info['instruction'] and asked('')[0].info['phrases'] == rows[0]['phrases']
    with pytest.raises(
        ValueError, match=r"instruction 'Transcribe.': it has no place {phrases} for those that are listed. Give"
    ):
        asked('own', 'Transcribe.')
    with pytest.raises(ValueError, match=r'there are no phrases to list. Leave out {phrases}, or give some'):
        asked('', 'Names: {phrases}.')


@pytest.mark.parametrize('wrong', ['Siobhan', [1], ['']])
def test_phrases_that_are_no_list_of_texts(manifest, wrong):
    rows = json_lines.read(manifest)
    json_lines.write(manifest, [{**rows[0], 'phrases': wrong}])
    (line,) = registry.sources.ManifestSource({'train': str(manifest)}).examples('train')
    assert line['error'] == f'{manifest}:1: field "phrases" is {wrong!r}; a list of texts was expected.'


def test_stores_of_manifests_without_phrases_stay(manifest, monkeypatch):
    source = registry.sources.ManifestSource({'train': str(manifest)})
    before, examples = source.state('train'), list(source.examples('train'))
    assert all(example.pop('phrases') == '' for example in examples)  # as they were before there was this field
    monkeypatch.setattr(registry.sources.ManifestSource, 'read', lambda *_: iter([dict(each) for each in examples]))
    assert source.state('train') == before


def test_one_phrase_of_a_recording_is_drawn(manifest, vocabulary, tmp_path):
    drawn = [phrases.one_of((), 'It was Siobhan, who swam!', seed) for seed in range(60)]
    assert drawn == [phrases.one_of((), 'It was Siobhan, who swam!', seed) for seed in range(60)]
    assert all(f' {phrase} ' in ' it was siobhan who swam ' for phrase in drawn)
    assert {'siobhan', 'was siobhan', 'siobhan who swam'} <= set(drawn) and not {'it', 'was', 'swam'} & set(drawn)
    assert phrases.one_of(['Lake Ohrid!'], 'In Lake Ohrid.', 0) == 'lake ohrid' and phrases.one_of((), 'No.', 0) == 'no'
    registry.manifest('phrase_of_each', manifest, 'phrase')
    try:
        data = loader.SpeechTextLoader('phrase_of_each', seconds_per_batch=8.0, cache_dir=tmp_path / 'cache')
        letters = Bytes()
        for batch, infos in data.examples():
            for row, info in zip(batch['decoder_target_tokens'], infos):
                assert info is None or letters.encode(info.reference) == row[row != 0].tolist() != []
    finally:
        seqio.TaskRegistry.remove('phrase_of_each')
