"""Sentences of packages: what nobody can say or is held out is left out, and common words come often."""

import pytest

from slm_jax.corpora import sentences
from slm_jax.data import json_lines


def test_what_can_be_said():
    assert sentences.sayable('the horse ran away ') == 'The horse ran away.'
    assert sentences.sayable('Who’s there tonight?') == "Who's there tonight?"
    for unsaid in ('press any key (or 2)', 'see foo.bar now please', 'the USA and more', 'too short', 'a b ' * 11):
        assert sentences.sayable(unsaid) == ''


def test_sentences_are_chosen_until_every_common_word_comes_five_times():
    pool = [['common', 'again'], *[['nothing', 'new']] * 3, *[['rare', 'word']] * 4, *[['common', 'again']] * 8]
    chosen = sentences.cover(pool, {'common', 'rare'}, 10)
    assert sum('common' in pool[index] for index in chosen) == 5
    assert [index for index in chosen if 'rare' in pool[index]] == [4, 5, 6, 7]
    assert chosen[-1] == 1 and len(set(chosen)) == 10
    assert len(sentences.cover(pool, {'common'}, 99)) == len(pool)


def _package(folder):
    wordnet = folder / 'usr/share/wordnet'
    wordnet.mkdir(parents=True)
    wordnet.joinpath('data.noun').write_text(
        '0 | a thing; "the dog ran after the ball"; "see WordNet 3.0 for more"\n1 | it; "The Dog ran after the ball!"\n'
    )
    cookies = folder / 'usr/share/games/fortunes/es'
    cookies.joinpath('off').mkdir(parents=True)
    cookies.joinpath('a.u8').write_text(
        'El perro duerme en\nla casa. ¿Dónde está?\n\t\t-- Un autor\n%\nHola, buenos días a todos.\n'
    )
    cookies.joinpath('off/b.u8').write_text('Nadie lee esto en casa.\n')
    page = folder / 'usr/share/doc/debian-handbook/html/fr-FR'
    page.mkdir(parents=True)
    page.joinpath('a.html').write_text(
        '<div class="para">Le <em>chien</em> dort dans la maison &amp; rit.\nIl est bien là.</div>'
    )
    return folder


def test_sentences_of_packages_and_of_files(tmp_path, monkeypatch):
    words = {
        'en': 'the dog ran after ball'.split(),
        'es': 'el perro duerme en la casa'.split(),
        'fr': 'il est bien là'.split(),
    }
    monkeypatch.setattr(sentences.Words, '__init__', lambda self: None)
    monkeypatch.setattr(sentences.Words, 'common', lambda self, lang: set(words.get(lang, ())))
    monkeypatch.setattr(sentences.Words, 'of', lambda self, lang, text: text.lower().strip('.?!').split())
    monkeypatch.setattr(sentences.Words, 'familiar', lambda self, lang, text: 'rare' not in text)
    monkeypatch.setattr(sentences.splits, 'split_of', lambda text, parts: 'test' if 'perro' in text else 'train')
    package = _package(tmp_path / 'unpacked')
    texts, held_out, out = (tmp_path / f'{name}.jsonl' for name in ('texts', 'held_out', 'out'))
    json_lines.write(
        texts, [{'text': text, 'lang': 'en'} for text in ('Press one now, please', 'a rare thing', 'Hold the line')]
    )
    json_lines.write(held_out, [{'text': 'hold the line!'}])

    told = sentences.write(package, out, [texts], [held_out], dict.fromkeys(('en', 'es', 'fr'), 2000))
    rows = json_lines.read(out)
    found = {(row['lang'], row['text'], row['source'], row['split']) for row in rows if row['source'] != 'numerals'}
    assert found == {
        ('en', 'Press one now, please.', tmp_path.name, 'train'),
        ('en', 'The dog ran after the ball.', 'wordnet', 'train'),
        ('es', 'El perro duerme en la casa.', 'fortunes', 'test'),
        ('es', 'Hola, buenos días a todos.', 'fortunes', 'train'),
        ('fr', 'Il est bien là.', 'handbook', 'train'),
    }
    assert {lang: (sum(row['lang'] == lang for row in rows), 0) for lang in ('en', 'es', 'fr')} == told
    assert any('Twenty-' in row['text'] for row in rows)
    before = out.read_text()
    sentences.write(package, out, [texts], [held_out], dict.fromkeys(('en', 'es', 'fr'), 2000))
    assert out.read_text() == before


def test_a_folder_without_packages_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sentences.Words, '__init__', lambda self: None)
    with pytest.raises(SystemExit):
        sentences.main([str(tmp_path), str(tmp_path / 'out')])
    assert f'{tmp_path} has no sentences. Unpack there what --help names' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()
