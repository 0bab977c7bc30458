# Copyright 2026 The slm_jax Authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""English names of languages by ISO 639 code: those of Common Voice, CoVoST 2 and FLEURS."""

NAMES = {
    'ab': 'Abkhaz', 'af': 'Afrikaans', 'am': 'Amharic', 'ar': 'Arabic', 'as': 'Assamese',
    'ast': 'Asturian', 'az': 'Azerbaijani', 'ba': 'Bashkir', 'bas': 'Basaa', 'be': 'Belarusian',
    'bg': 'Bulgarian', 'bn': 'Bengali', 'br': 'Breton', 'bs': 'Bosnian', 'ca': 'Catalan',
    'ceb': 'Cebuano', 'ckb': 'Sorani Kurdish', 'cmn': 'Mandarin Chinese', 'cnh': 'Hakha Chin',
    'cs': 'Czech', 'cv': 'Chuvash', 'cy': 'Welsh', 'da': 'Danish', 'de': 'German',
    'dv': 'Dhivehi', 'el': 'Greek', 'en': 'English', 'eo': 'Esperanto', 'es': 'Spanish',
    'et': 'Estonian', 'eu': 'Basque', 'fa': 'Persian', 'ff': 'Fula', 'fi': 'Finnish',
    'fil': 'Filipino', 'fr': 'French', 'fy': 'Frisian', 'ga': 'Irish', 'gl': 'Galician',
    'gn': 'Guarani', 'gu': 'Gujarati', 'ha': 'Hausa', 'he': 'Hebrew', 'hi': 'Hindi',
    'hr': 'Croatian', 'hsb': 'Upper Sorbian', 'hu': 'Hungarian', 'hy': 'Armenian',
    'ia': 'Interlingua', 'id': 'Indonesian', 'ig': 'Igbo', 'is': 'Icelandic', 'it': 'Italian',
    'ja': 'Japanese', 'jv': 'Javanese', 'ka': 'Georgian', 'kab': 'Kabyle', 'kam': 'Kamba',
    'kea': 'Kabuverdianu', 'kk': 'Kazakh', 'km': 'Khmer', 'kmr': 'Kurmanji Kurdish',
    'kn': 'Kannada', 'ko': 'Korean', 'ku': 'Kurdish', 'ky': 'Kyrgyz', 'lb': 'Luxembourgish',
    'lg': 'Ganda', 'ln': 'Lingala', 'lo': 'Lao', 'lt': 'Lithuanian', 'luo': 'Luo',
    'lv': 'Latvian', 'mhr': 'Meadow Mari', 'mi': 'Maori', 'mk': 'Macedonian', 'ml': 'Malayalam',
    'mn': 'Mongolian', 'mr': 'Marathi', 'ms': 'Malay', 'mt': 'Maltese', 'my': 'Burmese',
    'nb': 'Norwegian', 'ne': 'Nepali', 'nl': 'Dutch', 'nn': 'Norwegian Nynorsk',
    'no': 'Norwegian', 'nso': 'Northern Sotho', 'ny': 'Nyanja', 'oc': 'Occitan', 'om': 'Oromo',
    'or': 'Odia', 'pa': 'Punjabi', 'pl': 'Polish', 'ps': 'Pashto', 'pt': 'Portuguese',
    'rm': 'Romansh', 'ro': 'Romanian', 'ru': 'Russian', 'rw': 'Kinyarwanda', 'sah': 'Sakha',
    'sd': 'Sindhi', 'sk': 'Slovak', 'sl': 'Slovenian', 'sn': 'Shona', 'so': 'Somali',
    'sq': 'Albanian', 'sr': 'Serbian', 'sv': 'Swedish', 'sw': 'Swahili', 'ta': 'Tamil',
    'te': 'Telugu', 'tg': 'Tajik', 'th': 'Thai', 'tr': 'Turkish', 'tt': 'Tatar',
    'ug': 'Uyghur', 'uk': 'Ukrainian', 'umb': 'Umbundu', 'ur': 'Urdu', 'uz': 'Uzbek',
    'vi': 'Vietnamese', 'vot': 'Votic', 'wo': 'Wolof', 'xh': 'Xhosa', 'yo': 'Yoruba',
    'yue': 'Cantonese', 'zh': 'Chinese', 'zu': 'Zulu',
}


def name(code: str) -> str | None:
    """'pt-BR' → 'Portuguese', '' and what is not known → None."""
    return NAMES.get(code.replace('_', '-').split('-')[0].lower())
