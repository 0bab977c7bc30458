"""Gets the prompts from their publisher or, where that is out of reach, from Debian through apt.

Neither way needs root. What has arrived whole stays, so that a call after a cut goes on from there:

    DIRECTORY/publisher/XX.tar.gz, DIRECTORY/debian/*.deb    as downloaded
    DIRECTORY/XX/                                            unpacked and checked, one per language
"""

import gzip
import hashlib
import os
import pathlib
import shutil
import subprocess
import tarfile
import urllib.error
import urllib.request

import tqdm
from absl import logging

from slm_jax.data import debian

LANGUAGES = ('en', 'es', 'fr', 'it', 'ru')
RELEASE = '1.6.1'
PUBLISHER = (
    'https://downloads.asterisk.org/pub/telephony/sounds/releases/asterisk-core-sounds-{lang}-wav-{release}.tar.gz'
)
DEBIAN_VOICES = {
    'en': 'en_US_f_Allison',
    'es': 'es_MX_f_Allison',
    'fr': 'fr_CA_f_June',
    'it': 'it_IT_m_Carlo',
    'ru': 'ru_RU_f_IvrvoiceRU',
}
# What release 1.6.1 holds: recordings (2,831 in all), and ids in the transcript.
EXPECTED = {
    'en': (568, 569),
    'es': (527, 489),
    'fr': (561, 525),
    'it': (599, 599),
    'ru': (576, 572),
}
# of asterisk-core-sounds-{key}_1.6.1-1_all.deb
DEBIAN_SHA256 = {
    'en-wav': '2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d',
    'en': '973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50',
    'es-wav': '9283a09a6d56fccdcc2bcfe86c48f0f844289cfbd46a3184d8785a6f7f569903',
    'es': '9afdab7f559f036649fb406e625899306ca1004df8ebe39c30bfbd5912d66f74',
    'fr-wav': '8d4e1bc32ed5ba7fbda40841ca1825ed20cc6232724a473c90f8bb0e53e6073e',
    'fr': '04c82c78c570c43a7136cbc5e2488d0c470b775468dff9fbce4a131b18cf1056',
    'it-wav': '5a26638089e134b8ac39363fe249c5c93c50cd8bfdc9b2499ae61ec4a35e2fcb',
    'it': '3884d9457e12f21caa018c18f0d587df5d53ebea14b673d8453a134c5941ab3b',
    'ru-wav': 'ccbfaebfa450b7a9ddf644ae0f3d1e9017d5df7c0aebe816e946345589d38201',
    'ru': '28a61616bb0cd3345a7ea532dec4df9f071e5d0fa9f8c1a563ea9669002f39ab',
}


class FetchError(RuntimeError):
    """The prompts could not be had: `str()` says what each way answered and how to go on."""


def fetch(directory: str | os.PathLike) -> dict[str, pathlib.Path]:
    """Downloads, unpacks and checks the prompts of all languages.

    Args:
        directory: where downloads are kept; made if absent. What lies there already is used.

    Returns:
        {language: directory of its .wav files, in which also lies `core-sounds-XX.txt`}.

    Raises:
        FetchError: neither source can be reached, or what came is not release 1.6.1.
    """
    directory = pathlib.Path(directory)
    missing = [lang for lang in LANGUAGES if not (directory / lang).is_dir()]
    answers = []
    for name, way in (('publisher', _from_publisher), ('apt', _from_debian)):
        if not missing:
            break
        try:
            way(directory, missing)
        except (
            OSError,
            EOFError,
            tarfile.TarError,
            subprocess.SubprocessError,
            FetchError,
        ) as error:
            answers.append(f'{name}: {debian.reason(error)}')
            logging.info('voice prompts, %s', answers[-1])
        missing = [lang for lang in LANGUAGES if not (directory / lang).is_dir()]
    if missing:
        raise FetchError(
            f'The voice prompts ({", ".join(missing)}) could not be had.\n  '
            + '\n  '.join(answers)
            + '\nConnect to the network, make room on the disk, and give the same command again: '
            f'it goes on from {directory}.\nOr put the packages asterisk-core-sounds-XX and '
            f'asterisk-core-sounds-XX-wav (.deb) into {directory / "debian"} yourself.'
        )
    return {lang: directory / lang for lang in LANGUAGES}


def _from_publisher(directory: pathlib.Path, languages: list[str]) -> None:
    (directory / 'publisher').mkdir(parents=True, exist_ok=True)
    for lang in languages:
        archive = directory / 'publisher' / f'{lang}.tar.gz'
        if not archive.exists():
            url = PUBLISHER.format(lang=lang, release=RELEASE)
            partial = archive.with_suffix('.part')
            with urllib.request.urlopen(url, timeout=30) as response, open(partial, 'wb') as file:
                size = int(response.headers.get('Content-Length', 0)) or None
                with tqdm.tqdm.wrapattr(file, 'write', desc=f'Downloading {url}', total=size) as out:
                    shutil.copyfileobj(response, out)
            partial.rename(archive)
        unpacked = _empty(directory / f'{lang}.part')
        try:
            with tarfile.open(archive) as tar:
                tar.extraction_filter = getattr(tarfile, 'data_filter', None)  # before Python 3.11.4 there is none
                tar.extractall(unpacked)
        except (tarfile.TarError, EOFError, OSError):
            archive.unlink()  # cut short: the next call fetches it anew
            raise
        _finish(unpacked, unpacked, directory / lang, lang)


def _from_debian(directory: pathlib.Path, languages: list[str]) -> None:
    debs = directory / 'debian'
    debs.mkdir(parents=True, exist_ok=True)
    wanted = [f'asterisk-core-sounds-{lang}{kind}' for lang in languages for kind in ('', '-wav')]
    absent = [package for package in wanted if not list(debs.glob(f'{package}_*.deb'))]
    if absent:
        debian.download(absent, debs, 'the voice prompts')
    for lang in languages:
        unpacked = _empty(directory / f'{lang}.part')
        for key in (lang, f'{lang}-wav'):
            deb = max(debs.glob(f'asterisk-core-sounds-{key}_*.deb'))
            expected = DEBIAN_SHA256[key] if f'_{RELEASE}-1_' in deb.name else None
            if expected and hashlib.sha256(deb.read_bytes()).hexdigest() != expected:
                deb.unlink()
                raise FetchError(f'{deb.name} came damaged (its SHA-256 is wrong) and was removed')
            subprocess.run(['dpkg-deb', '-x', deb, unpacked], check=True, capture_output=True)
        share = unpacked / 'usr/share'
        sounds = share / 'asterisk/sounds' / DEBIAN_VOICES[lang]
        transcript = share / f'doc/asterisk-core-sounds-{lang}/core-sounds-{lang}.txt.gz'
        (sounds / f'core-sounds-{lang}.txt').write_bytes(gzip.decompress(transcript.read_bytes()))
        _finish(unpacked, sounds, directory / lang, lang)


def _empty(directory: pathlib.Path) -> pathlib.Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def _finish(unpacked: pathlib.Path, sounds: pathlib.Path, final: pathlib.Path, lang: str) -> None:
    """Checks what is in `sounds`, then gives it its final name in one step."""
    transcript = sounds / f'core-sounds-{lang}.txt'
    if not transcript.exists():
        raise FetchError(f'the {lang} archive holds no {transcript.name}')
    recordings = sum(1 for _ in sounds.rglob('*.wav'))
    lines = len(read_transcript(transcript))
    if (recordings, lines) != EXPECTED[lang]:
        raise FetchError(
            f'the {lang} archive holds {recordings} recordings and {lines} '
            f'transcripts where release {RELEASE} has {EXPECTED[lang]}'
        )
    sounds.rename(final)
    if unpacked != sounds:
        shutil.rmtree(unpacked)


def read_transcript(path: pathlib.Path) -> dict[str, str]:
    """{prompt id: line as printed}; of an id printed twice the first line stands."""
    prompts = {}
    for line in path.read_text(encoding='utf-8-sig').splitlines():
        prompt, colon, text = line.partition(':')
        if colon and not line.startswith(';'):
            prompts.setdefault(prompt.strip(), ' '.join(text.split()))
    return prompts
