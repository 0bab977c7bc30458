"""Text normalisers, in several scripts."""

import pytest

from slm_jax.evaluation import normalizers


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('Hello,  World!', 'hello world'),
        ("Don't say 'never'.", "don't say never"),
        ('l’homme, l\u00b4air; rock ‘n’ roll', "l'homme l'air rock n roll"),
        ('Straße — naïve café', 'straße naïve café'),
        ('cafe\u0301', 'café'),
        ('well-known', 'well known'),
        ('«Привет», — сказала она.', 'привет сказала она'),
        ("Сім'я", "сім'я"),
        ('İstanbul', 'i̇stanbul'),
        ('你好,世界。', '你好 世界'),
        ('カタカナ・テスト', 'カタカナ テスト'),
        ('สวัสดีครับ!', 'สวัสดีครับ'),
        ('नमस्ते दुनिया।', 'नमस्ते दुनिया'),
        ('مرحبا، كيف الحال؟', 'مرحبا كيف الحال'),
        ('می\u200cروم', 'میروم'),
        ('\uff21\uff22\uff23\u3000\uff11\uff12', 'abc 12'),
        ('$5 + 3 = 8 ☺', '5 3 8'),
        ('...', ''),
        ('', ''),
    ],
)
def test_basic(text, expected):
    assert normalizers.basic(text) == expected
    assert normalizers.basic(expected) == expected, 'normalising twice must change nothing'


def test_thai_tone_marks_and_sara_am_survive():
    # NFKC writes sara am as two code points; both sides of a comparison get the same treatment.
    assert normalizers.basic('น้ำ!') == normalizers.basic('น้ำ')
    assert len(normalizers.basic('น้ำ')) >= len('น้ำ')


@pytest.mark.parametrize(
    ('text', 'expected'),
    [  # what OpenAI publishes of it
        ("Let's", 'let us'),
        ("he's like", 'he is like'),
        ("she's been like", 'she has been like'),
        ('10km', '10 km'),
        ('Mr. Park visited Assoc. Prof. Kim Jr.', 'mister park visited associate professor kim junior'),
        ('thirty one', '31'),
        ('five twenty four', '524'),
        ('nineteen ninety nine', '1999'),
        ('The colour, (cough) um, is [inaudible] grey.', 'the color is gray'),
        ('Hmm.', ''),
    ],
)
def test_whisper_english(text, expected):
    assert normalizers.whisper_english(text) == expected


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('The  Eiffel-Tower, in a city.', 'eiffeltower in city'),
        ('An apple; anthem', 'apple anthem'),
        ('The.', ''),
        ('U.S.A.', 'usa'),
        ('¿Qué?', '¿qué'),
    ],
)
def test_squad(text, expected):
    assert normalizers.squad(text) == expected


def test_names():
    assert normalizers.get('none')('As, it is.') == 'As, it is.'
    with pytest.raises(ValueError, match="'basik' is unknown.*basic"):
        normalizers.get('basik')
