"""Messages of programs: what can be said of them, and which of them become training text."""

import polib
import pytest

from slm_jax.corpora import messages, splits, text_corpora
from slm_jax.data import json_lines


@pytest.mark.parametrize(
    ('message', 'spoken'),
    [
        ('_Enter your password:', 'Enter your password'),
        ('Open &File...', 'Open file'),
        ('Ouvrir\xa0…', 'Ouvrir'),
        ('Удалить (_D)', 'Удалить'),
        ('Close Current Folder', 'Close current folder'),
        ('%d calls', ''),
        ('See <b>help</b>', ''),
        ('The PIN is wrong', ''),
        ('Press 1', ''),
        ('x', ''),
        ('word ' * 30, ''),
    ],
)
def test_only_what_can_be_said_is_kept(message, spoken):
    assert messages.spoken(message) == spoken


def _write(folder, lang, entries):
    catalogue = polib.POFile()
    catalogue.metadata = {'Content-Type': 'text/plain; charset=utf-8'}
    catalogue.extend(polib.POEntry(msgid=english, msgstr=text) for english, text in entries.items())
    path = folder / lang / 'LC_MESSAGES' / 'phone.mo'
    path.parent.mkdir(parents=True)
    catalogue.save_as_mofile(str(path))


def _catalogues(folder, english):
    for lang, word in {'es': 'llamada', 'fr': 'appel', 'it': 'chiamata', 'ru': 'звонок'}.items():
        _write(folder, lang, {text: f'{word} {number}' for number, text in zip('abcdefgh', english, strict=False)})


def test_a_message_is_kept_in_all_languages_or_none(tmp_path):
    _catalogues(tmp_path, ['End the call', 'Untranslated'])
    _write(tmp_path / 'more', 'ru', {'Untranslated': 'Untranslated'})
    (tmp_path / 'more/ru/LC_MESSAGES/phone.mo').rename(tmp_path / 'ru/LC_MESSAGES/phone.mo')
    _write(tmp_path / 'last', 'ru', {'End the call': 'Завершить звонок'})
    (tmp_path / 'last/ru/LC_MESSAGES/phone.mo').rename(tmp_path / 'ru/LC_MESSAGES/other.mo')
    assert messages.translations(tmp_path, ('es', 'fr', 'it', 'ru')) == [
        {'en': 'End the call', 'es': 'llamada a', 'fr': 'appel a', 'it': 'chiamata a', 'ru': 'Завершить звонок'}
    ]
    with pytest.raises(FileNotFoundError, match='de/LC_MESSAGES holds no .mo'):
        messages.translations(tmp_path, ('es', 'de'))


def test_corpora_take_familiar_messages_and_leave_out_what_is_held_out(tmp_path):
    said = {'train': 'Please enter the number of the call.', 'validation': 'Hold on.', 'test': 'End the call'}
    for split in splits.SPLITS:
        row = {'audio': f'{split}.wav', 'text': said[split], 'lang': 'en', 'duration': 1.0}
        json_lines.write(tmp_path / f'{split}.jsonl', [row])
    kept = ['Enter the call', 'Enter the number', 'Please call', 'Call the number']
    _catalogues(tmp_path / 'locale', [*kept, 'End the call', 'Defragment all volumes'])
    text_corpora.build(tmp_path / 'out', [str(tmp_path)], program_messages=str(tmp_path / 'locale'), num_numerals=1)

    def taken(name):
        rows = [
            row for split in ('train', 'validation') for row in json_lines.read(tmp_path / f'out/{name}_{split}.jsonl')
        ]
        return [row for row in rows if row['source'] == 'messages']

    english = {row['text'] for row in taken('text') if row['lang'] == 'en'}
    assert english and english <= {*kept}
    assert len(taken('text')) == 5 * len(english) and len(taken('pairs')) == 6 * len(english)
    assert all(row['lang'] != row['target_lang'] for row in taken('pairs'))
