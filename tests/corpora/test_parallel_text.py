"""Parallel text out of packages: what is aligned, cleaned, held out; where it came from."""

import gzip
import json
import subprocess

import polib
import pytest

from slm_jax.corpora import parallel_sources, parallel_text, splits
from slm_jax.corpora.parallel_sources import Pair
from slm_jax.data import debian, json_lines

PAGE = '<h1 id="hd_1">{}</h1><p id="par_1" class="x">{}</p><p id="par_{}">{}</p><p id="par_9"><img/></p>'
CATALOGUES = 'wesnoth-1.16-did'


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """Packages as `fetch` leaves them, of French; `messages` is one of them."""
    folder = tmp_path / 'downloads'
    monkeypatch.setattr(parallel_sources, '_CATALOGUES', [CATALOGUES])
    for package in ('libreoffice-help-en-us', 'libreoffice-help-fr', 'gimp-help-en', 'gimp-help-fr', CATALOGUES):
        (folder / package).mkdir(parents=True)
        (folder / package / 'package.json').write_text(json.dumps({'version': '1', 'sha256': package}))
    for number in range(200):
        texts = {
            'en-us': (f'Title {number}', f'The &amp; sign of the <b>page</b> {number}', 2, 'Cancel'),
            'fr': (f'Titre {number}', f'Le signe &amp; de la page {number}', 3, 'Annuler'),
        }
        for variant, content in texts.items():
            page = folder / f'libreoffice-help-{variant}/usr/share/help/{variant}/text/{number}.html'
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(PAGE.format(*content))
    pages = {
        'en': ('<p>4.1. The first tool.</p><h2>Same</h2>', '<p>One.</p>'),
        'fr': ('<p>4.1. Le premier outil.</p><h2>Same</h2>', '<p>Un.</p><p>Deux.</p>'),
    }
    for lang, (alike, unlike) in pages.items():
        page = folder / f'gimp-help-{lang}/usr/share/gimp/2.0/help/{lang}/alike.html'
        page.parent.mkdir(parents=True)
        page.write_text(alike)
        page.with_name('unlike.html').write_text(unlike)
    catalogue = polib.POFile()
    catalogue.metadata = {'Content-Type': 'text/plain; charset=utf-8'}
    said = {
        'who^You will not pass here': 'Vous ne passerez pas ici', 'Cancel': 'Annuler', 'Stop it': 'Annuler',
        'Held out here': 'Retenu ici', '%d calls': '%d appels',
    }  # fmt: skip
    catalogue.extend(polib.POEntry(msgid=english, msgstr=text) for english, text in said.items())
    path = folder / CATALOGUES / 'usr/share/locale/fr/LC_MESSAGES/game.mo'
    path.parent.mkdir(parents=True)
    catalogue.save_as_mofile(str(path))
    return folder


def build(tmp_path, downloads, **more):
    json_lines.write(tmp_path / 'said.jsonl', [{'text': 'held out: HERE', 'lang': 'en'}])
    return parallel_text.build(
        tmp_path / 'out', ['fr'], ['help', 'gimp', 'messages'], held_out=[tmp_path / 'said.jsonl'],
        downloads=downloads, **more,
    )  # fmt: skip


def test_aligned_cleaned_and_split(tmp_path, downloads, capsys):
    told = build(tmp_path, downloads, times={'messages': 3, 'gimp': 0})
    rows = {split: json_lines.read(tmp_path / f'out/{split}.jsonl') for split in splits.SPLITS}
    held_out = {row['text'] for split in ('validation', 'test') for row in rows[split]}
    assert held_out and all(len(text.split()) > 3 for text in held_out)
    train = rows['train']
    assert {row['lang'] for row in train} == {'en', 'fr'} and {row['lang'] for row in rows['test']} == {'fr'}
    french = {(row['text'], row['translation'], row['task']) for row in train if row['lang'] == 'fr'}
    assert ('Titre 7', 'Title 7', 'help') in french
    assert not {text for text, _, _ in french} & held_out
    assert {each for each in french if each[2] == 'messages'} == {
        ('Annuler', 'Cancel', 'messages'), ('Vous ne passerez pas ici', 'You will not pass here', 'messages'),
    }  # fmt: skip
    assert sum(row['text'] == 'Annuler' and row['task'] == 'messages' for row in train) == 3
    assert not any(row['task'] == 'gimp' for row in train)  # 0 times
    documents = {split: {row['document'] for row in rows[split] if row['task'] == 'help'} for split in rows}
    long = {row['document'] for row in train if len(row['text'].split()) > 3 and row['task'] == 'help'}
    assert not long & (documents['validation'] | documents['test'])
    back = json_lines.read(tmp_path / 'out/from_english_test.jsonl')
    assert [(row['translation'], row['text']) for row in back] == [
        (row['text'], row['translation']) for row in rows['test']
    ]

    assert told == json.loads((tmp_path / 'out/provenance.json').read_text())
    entry = told['corpora']['messages']
    assert entry['packages'] == {CATALOGUES: {'version': '1', 'sha256': CATALOGUES}}
    assert entry['pairs']['fr']['left_out'] | {'repeated': 0} == {
        'empty': 1, 'held out': 1, 'repeated': 0, 'more than 100 to hold out': 0,
    }  # fmt: skip
    assert told['corpora']['gimp']['pairs']['fr']['left_out']['not translated'] == 1
    table = parallel_text.table(told['corpora']).split('\n')
    assert table[-1].split()[1:] == [
        str(sum(told['corpora'][name]['pairs']['fr'][split] for name in told['corpora'])) for split in splits.SPLITS
    ]


@pytest.mark.parametrize(
    ('english', 'other', 'lang', 'why'),
    [
        ('Press 5 now', 'Appuyez sur 5 maintenant', 'fr', ''),
        ('Press 5 now', 'Appuyez sur 6 maintenant', 'fr', 'other numbers'),
        ('See <b>this</b>', 'Voyez ceci', 'fr', 'markup or code'),
        ('Use the getName method', 'Utilisez la méthode getName', 'fr', 'markup or code'),
        ('Open a.txt', 'Ouvrez a.txt', 'fr', 'markup or code'),
        ('A word', '', 'fr', 'empty'),
        ('Ok: Menu!', 'ok menu', 'fr', 'not translated'),
        ('1 + 2 - 3 a', '1 + 2 - 3 à', 'fr', 'few letters'),
        ('Delete it', 'Delete it now', 'ru', 'another script'),
        ('Delete it', 'Удалить', 'ru', ''),
        ('Delete it', 'Удалить', 'fr', 'another script'),
        ('Delete it', '削除する', 'ja', ''),
        ('A word', 'Une phrase qui dit bien plus que ce mot', 'fr', 'unlike lengths'),
        ('long ' * 60, 'long', 'fr', 'long'),
    ],
)
def test_why_a_pair_is_left_out(english, other, lang, why):
    assert parallel_text.fault(Pair('', english, other), lang) == why


def test_first_translations_of_a_dictionary(tmp_path):
    entries = ['amant /amɑ̃/ <n, masc>\nlover\n', 'bille /bij/\n1. marble <n>, ball\n', 'vide /vid/\n\n']
    folder = tmp_path / 'usr/share/dictd'
    folder.mkdir(parents=True)
    digits = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/'

    def number(value):
        return digits[value // 64] + digits[value % 64]

    index, start = ['00-database-info\tA\tB'], 0
    for entry in entries:
        length = len(entry.encode())
        index.append(f'{entry.split()[0]}\t{number(start)}\t{number(length)}')
        start += length
    (folder / 'x.index').write_text('\n'.join(index) + '\n')
    (folder / 'x.dict.dz').write_bytes(gzip.compress(''.join(entries).encode()))
    assert [*parallel_sources._entries(tmp_path)] == [('amant', 'lover'), ('bille', 'marble')]


def test_only_the_files_asked_for_are_kept_of_a_package(tmp_path, monkeypatch):
    root = tmp_path / 'root'
    (root / 'DEBIAN').mkdir(parents=True)
    (root / 'DEBIAN/control').write_text('Package: x\nVersion: 2\nArchitecture: all\nMaintainer: me\nDescription: x\n')
    for name in ('a.html', 'a.png'):
        (root / name).write_text('x')
    calls = []

    def download(packages, directory):
        calls.append(packages)
        subprocess.run(['dpkg-deb', '-b', root, directory / 'x_2_all.deb'], check=True, capture_output=True)

    monkeypatch.setattr(debian, 'download', download)
    for _ in range(2):  # it is fetched once
        folder = parallel_sources.fetch('x', r'.*\.html', tmp_path)
    assert calls == [['x']] and sorted(path.name for path in folder.iterdir()) == ['a.html', 'package.json']
    assert json.loads((folder / 'package.json').read_text())['version'] == '2'


def test_a_package_that_cannot_be_had_is_named(tmp_path, monkeypatch, capsys):
    def download(packages, directory):
        raise subprocess.CalledProcessError(100, ['apt-get'], stderr=b'E: Unable to locate package\n')

    monkeypatch.setattr(debian, 'download', download)
    with pytest.raises(SystemExit) as left:
        parallel_text.main([str(tmp_path), '--corpora', 'help', '--languages', 'nl'])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert 'libreoffice-help-en-us: `apt-get` failed: E: Unable to locate package' in said and 'same command' in said


def test_how_often_is_a_corpus_and_a_number(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parallel_text.main([str(tmp_path), '--times', 'news=2'])
    assert "'news=2' is not a corpus and a number, as prompts=20" in capsys.readouterr().err
