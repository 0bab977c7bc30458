"""Text as a CTC encoder spells it."""

import unicodedata


def normalize(text: str) -> str:
    """NFC, lower case, no punctuation but apostrophes inside words, single spaces.

    The form that the CTC encoder writes, and the one that decides whether two sentences are the
    same. Combining marks (Hindi vowels) are kept.
    """
    text = unicodedata.normalize('NFC', text).lower().replace('’', "'").replace('ʼ', "'")
    kept = [c if c == "'" or unicodedata.category(c)[0] in 'LMN' else ' ' for c in text]
    return ' '.join(word for word in (w.strip("'") for w in ''.join(kept).split()) if word)
