"""Every wording in which a task is put to the language model, in one readable place.

`TEMPLATES[kind]` holds several wordings of one request; the fields in braces are filled from the
example. The tasks on speech and the tasks on text share `asr…` and `ast…`: the language model
meets the same request with a transcript in the place of the speech, so that an adapter trained
on these kinds alone reaches the others (SLM, arXiv 2310.00230, section on zero-shot instructions).
"""

import itertools
import random
import re
from collections.abc import Sequence

from slm_jax.data import ctc_text, languages, phrases

TEMPLATES = {
    # The adapter is trained on these.
    'asr': (
        'Transcribe the speech.',
        'Write down what is said.',
        'What does the speaker say?',
        'Transcribe this recording.',
    ),
    'asr_language': (
        'Transcribe the {language} speech.',
        'Write down what is said in {language}.',
        'This is {language}. What does the speaker say?',
        'Transcribe this {language} recording.',
    ),
    # Where phrases that may be said are listed: contextual biasing.
    'asr_phrases': (
        'Transcribe the speech. Some of these may be said: {phrases}.',
        'Write down what is said. It may have some of these names and words: {phrases}.',
        'These names and words may occur: {phrases}. What does the speaker say?',
        'Transcribe this recording. Perhaps these are in it: {phrases}.',
    ),
    'ast': (
        'Translate this speech to {target_language}.',
        'Translate the speech into {target_language}.',
        'Say in {target_language} what the speaker says.',
        'What does the speaker say, in {target_language}?',
    ),
    'ast_language': (
        'Translate this {language} speech to {target_language}.',
        'Translate the speech from {language} into {target_language}.',
        'Say in {target_language} what the {language} speaker says.',
        'This is {language}. What does the speaker say, in {target_language}?',
    ),
    # The language model learns these from text; no adapter is trained on them.
    'slot/size': (
        'Which size was ordered?',
        'What size is the drink?',
        'How large is the drink?',
        'Name the size.',
    ),
    'slot/coffeeDrink': (
        'Which drink was ordered?',
        'What drink is it?',
        'What does the customer want to drink?',
        'Name the drink.',
    ),
    'slot/roast': (
        'Which roast was ordered?',
        'How strong a roast is it?',
        'What roast does the customer want?',
        'Name the roast.',
    ),
    'slot/numberOfShots': (
        'How many shots were ordered?',
        'How many shots are in the drink?',
        'What number of shots does the customer want?',
        'Name the number of shots.',
    ),
    'slot/milkAmount': (
        'Which milk was ordered?',
        'How much milk or cream is in the drink?',
        'What milk does the customer want?',
        'Name the milk.',
    ),
    'slot/sugarAmount': (
        'How much sugar was ordered?',
        'Which sugar was ordered?',
        'What sweetener does the customer want?',
        'Name the sugar.',
    ),
    'first_word': ('Repeat only the first word.', 'What is the first word?'),
    'last_word': ('Repeat only the last word.', 'What is the last word?'),
    'count_words': ('How many words are there?', 'Count the words.'),
    'language': ('Which language is this?', 'Name the language.', 'What language is spoken?'),
    'next_digit': ('Which digit comes next?', 'Add one to the last digit.'),
    'repeat_twice': ('Say it twice.', 'Repeat the sentence two times.'),
    'contains': ('Does the speaker say "{word}"?', 'Is the word "{word}" in it?'),
    'what_follows': ('Which word comes after "{word}"?', 'What follows "{word}"?'),
    # A language model answers these to transcripts (`slm-jax answers`); its answers are what an adapter then trains on.
    'response/repeat': ('Repeat what is said, word for word.', 'Say the same again.'),
    'response/answer': ('Answer what is said.', 'Reply to the speaker.', 'What would you say to that?'),
    'response/summary': ('Summarize what is said in a few words.', 'Give the gist of it in one short sentence.'),
    'response/continuation': ('Continue what is said by one more sentence.', 'What might the speaker say next?'),
    'response/translation': (
        'Translate what is said into {target_language}.',
        'How do you say this in {target_language}?',
    ),
    'response/question': ('Ask the speaker a question about it.', 'Which question does this answer?'),
    'response/topic': ('What is this about?', 'Name the topic in one or two words.'),
    'response/rephrasing': ('Say it in other words.', 'Write it more formally.', 'Write it as one would to a friend.'),
    'response/keywords': ('List the most important words.', 'Which words matter most here?'),
    'response/mood': ('Does this sound glad, sad, angry or neutral?', 'Who might say this, and to whom?'),
}
# What responses are translated into.
TARGET_LANGUAGES = ('en', 'es', 'fr', 'de', 'it', 'pt', 'ru', 'zh')
SLOTS = tuple(kind.removeprefix('slot/') for kind in TEMPLATES if kind.startswith('slot/'))
NO_VALUE = 'none'  # The answer to a question about a slot that the order does not fill.
# A known language, and perhaps a word about it: 'swiss german', 'norwegian bokmål'. Not 'the first half of the'.
_LANGUAGE = rf'(?:\w+ )?(?:{"|".join(map(ctc_text.normalize, languages.NAMES.values()))})(?: \w+)?'


def _wordings(*kinds: str) -> str:
    texts = (ctc_text.normalize(wording) for kind in kinds for wording in TEMPLATES[kind])
    return '|'.join(text.replace('language', _LANGUAGE).replace('phrases', '.*') for text in texts)


_LISTED = ctc_text.normalize(phrases.LISTED.replace('{instruction}', '')).replace('phrases', '.*')
_TRANSCRIPTION = re.compile(f'{_wordings("asr_phrases")}|(?:{_wordings("asr", "asr_language")})(?: {_LISTED})?')


def _asking(kind: str) -> re.Pattern[str]:
    """What matches the wordings of a kind, normalised, with the languages that they name."""
    names = '|'.join(sorted({ctc_text.normalize(name) for name in languages.NAMES.values()}, key=len, reverse=True))
    wordings, number = '|'.join(map(ctc_text.normalize, TEMPLATES[kind])), itertools.count()

    def group(found: re.Match[str]) -> str:
        # Perhaps with a word about it, as `_LANGUAGE` has it.
        return rf'(?:\w+ )??(?P<{"to" if found[1] else "of"}{next(number)}>{names})(?: \w+)??'

    return re.compile(re.sub('(target )?language', group, wordings))


_ASKING = {kind: _asking(kind) for kind in ('asr', 'asr_language', 'ast', 'ast_language')}


def instruction(kind: str, number: int, **fields: str) -> str:
    """Wording `number` (modulo how many there are) of a kind, its fields filled in.

    Raises:
        KeyError: there is no such kind, or a field of the template is not given.
    """
    wordings = TEMPLATES[kind]
    return wordings[number % len(wordings)].format(**fields)


def responses(count: int, key: str, lang: str, wordings: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """Some requests for a response to one transcript, each of another kind as long as there are kinds.

    Args:
        count: how many.
        key: decides which; the same key gives the same.
        lang: of the transcript; '' where it is not known: then no wording that names it is taken.
        wordings: instead of those above. `{language}` and `{target_language}` are filled in.

    Returns:
        (instruction, code of the language to answer in; '' where it names none); fewer where there are fewer.
    """
    kinds = [TEMPLATES[kind] for kind in TEMPLATES if kind.startswith('response/')]
    if wordings is not None:
        kinds = [(wording,) for wording in wordings]
    rng = random.Random(key)
    shuffled = [rng.sample(kind, len(kind)) for kind in rng.sample(kinds, len(kinds))]
    in_turn = [wording for turn in itertools.zip_longest(*shuffled) for wording in turn if wording]
    name = languages.name(lang)
    usable = [wording for wording in in_turn if name or '{language}' not in wording]
    others = [code for code in TARGET_LANGUAGES if languages.name(code) != name]
    result = []
    for wording in usable[:count]:
        target = rng.choice(others) if '{target_language}' in wording else ''
        result.append((wording.format(language=name, target_language=languages.name(target)), target))
    return result


def transcribes(text: str) -> bool:
    """Whether `text` asks for a transcript, in one of the wordings above and of any language.

    Case, punctuation and spaces do not count, nor which phrases are listed.
    """
    return bool(_TRANSCRIPTION.fullmatch(ctc_text.normalize(text)))


def spoken_and_wanted(text: str) -> tuple[str, str] | None:
    """(language of the speech, language of the answer) that a request for a transcript or a translation names.

    Codes; '' where it names none. Of a transcript both are the same. None: it is no such request.
    """
    codes = {ctc_text.normalize(name): code for code, name in reversed(languages.NAMES.items())}
    for kind, pattern in _ASKING.items():
        if found := pattern.fullmatch(ctc_text.normalize(text)):
            named = {group[:2]: codes[name] for group, name in found.groupdict().items() if name}
            spoken = named.get('of', '')
            return spoken, named['to'] if kind.startswith('ast') else spoken
    return None
