"""The page in headless Chromium: clips that are chosen and spoken, two widths, dark and light, keys alone.

Screenshots are left in pytest's temporary directory (--basetemp DIR).
"""

import base64
import io
import pathlib
import re
import shutil

import httpx2 as httpx
import numpy as np
import pytest
import soundfile
from served import Seconds, running

from slm_jax.audio import waveforms
from slm_jax.data import phrases
from slm_jax.inference import model as model_lib
from slm_jax.serving import page as page_lib
from slm_jax.serving import service

CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')
playwright = pytest.importorskip('playwright.sync_api', reason='Playwright is not installed (extra browser)')
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason='Chromium is not installed: apt-get install chromium'),
]
EXAMPLES = pathlib.Path(page_lib.__file__).with_name('examples')
SAMPLES = waveforms.read_waveform(next(EXAMPLES.glob('en_*.mp3')))
# Contrasts below what WCAG asks for, of all text that is seen.
PALE = """() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((x) => x / 255)
      .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if (!/^rgba.* 0\\)$/.test(colour)) return colour;
    }
  };
  return [...document.querySelectorAll('body *')].filter((e) => e.checkVisibility() && !e.disabled
    && [...e.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim())
  ).map((e) => {
    const [a, b] = [getComputedStyle(e).color, behind(e)].map(light).sort((x, y) => y - x);
    return [e.id || e.tagName, (a + 0.05) / (b + 0.05)];
  }).filter(([, contrast]) => contrast < 4.5);
}"""
# What stands out to the right, but for what is scrolled.
WIDER = """() => [...document.querySelectorAll('body *')].filter((e) => e.checkVisibility()
  && !e.parentElement.closest('.scroll') && e.getBoundingClientRect().right > innerWidth + 0.5).map((e) => e.id)"""


@pytest.fixture(scope='module')
def address():
    model = model_lib.load('slm_tiny', decode={'max_decode_length': 128})
    with running(service.Service(model, 'tiny'), page_lib.router) as address:
        yield address


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    spoken = tmp_path_factory.mktemp('microphone') / 'spoken.wav'
    soundfile.write(spoken, SAMPLES, 16_000)
    microphone = ['--use-fake-ui-for-media-stream', '--use-fake-device-for-media-stream']
    with playwright.sync_playwright() as started:
        yield started.chromium.launch(
            executable_path=CHROMIUM,
            args=['--no-sandbox', *microphone, f'--use-file-for-fake-audio-capture={spoken}'],
        )


@pytest.fixture
def opened(browser):
    """opened(address, **options): the page, which must load nothing from elsewhere and complain of nothing."""
    contexts, wrong = [], []

    def open_page(address, **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on('console', lambda message: wrong.append(message.text) if message.type == 'error' else None)
        page.on('pageerror', lambda error: wrong.append(str(error)))
        page.on(
            'request',
            lambda request: None if request.url.startswith((address, 'blob:', 'data:')) else wrong.append(request.url),
        )
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [each for each in wrong if '401' not in each] == []


def answered(page):
    """The answer, when it is there."""
    page.get_by_text(re.compile(r'^(Answered in|Cut at the longest answer, after) [\d.]+ s\.$')).wait_for()
    page.locator('#ask:enabled').wait_for()
    return page.get_by_label('Answer', exact=True).text_content()


def asked(address, samples, instruction):
    """What the server answers to another client."""
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format='WAV')
    audio = {
        'type': 'input_audio',
        'input_audio': {'data': base64.b64encode(file.getvalue()).decode(), 'format': 'wav'},
    }
    messages = [{'role': 'user', 'content': [audio, {'type': 'text', 'text': instruction}]}]
    body = {'model': 'tiny', 'messages': messages}
    answer = httpx.post(f'{address}/v1/chat/completions', json=body, timeout=120).json()
    return answer['choices'][0]['message']['content']


@pytest.mark.parametrize('width', [1280, 390])
def test_a_chosen_clip(width, address, opened, tmp_path):
    page = opened(address, viewport={'width': width, 'height': 900}, color_scheme='light')
    page.screenshot(path=tmp_path / f'{width}-empty.png', full_page=True)
    clip = tmp_path / 'clip.wav'
    soundfile.write(clip, SAMPLES, 16_000)
    page.get_by_label('Or choose a file').set_input_files(clip)
    page.get_by_text(f'clip.wav, {len(SAMPLES) / 16_000:.1f} s').wait_for()
    heard = page.evaluate('async () => [...new Int16Array(await wav.slice(44).arrayBuffer())]')
    assert np.abs(np.array(heard) - SAMPLES).max() <= 1, 'what is sent is what was chosen'
    page.get_by_label('Phrases that may be said').fill('Utica\n\n York ')
    page.evaluate("""() => {
      window.grown = new Set();
      new MutationObserver(() => grown.add(at('answer').textContent)).observe(at('answer'), { childList: true });
    }""")
    page.get_by_role('button', name='Ask').click()
    text = answered(page)
    instruction = phrases.LISTED.format(instruction='Transcribe the speech.', phrases='Utica, York')
    assert text and text == asked(address, np.int16(heard), instruction)
    assert page.evaluate('grown.size') > 3, 'it came piece by piece'
    page.get_by_text('Speech tokens as a table').click()
    tokens = page.evaluate('tokens')
    assert len(tokens) > 10 and page.get_by_role('row').count() == len(tokens) + 1
    for scheme in ('light', 'dark'):
        page.emulate_media(color_scheme=scheme)
        page.screenshot(path=tmp_path / f'{width}-{scheme}.png', full_page=True)
        assert page.evaluate(PALE) == [], scheme
        assert page.evaluate(WIDER) == [] and page.evaluate('document.documentElement.scrollWidth') <= width
    for name in ('Waveform', 'Spectrogram', 'Speech tokens over time; the table below has them'):
        data = page.get_by_role('img', name=name, exact=True).evaluate(
            'e => new Set(e.getContext("2d").getImageData(0, 0, e.width, e.height).data).size'
        )
        assert data > 3, f'{name}: nothing is drawn'


def test_the_microphone(address, opened, tmp_path):
    page = opened(address, permissions=['microphone'])
    page.get_by_role('button', name='Record').click()
    page.get_by_text('s at most').wait_for()
    page.wait_for_timeout(1000 * len(SAMPLES) / 16_000 + 500)
    page.screenshot(path=tmp_path / 'recording.png')
    page.get_by_role('button', name='Stop recording').click()
    page.get_by_text('Your recording, ').wait_for()
    heard = np.array(page.evaluate('[...samples]'))
    loudness = [np.convolve(np.abs(x / np.abs(x).max()), np.ones(800) / 800)[::80] for x in (heard, SAMPLES / 32768)]
    loudness = [x - x.mean() for x in loudness]
    likeness = np.correlate(*loudness, 'full').max() / np.prod([np.linalg.norm(x) for x in loudness])
    assert len(heard) > len(SAMPLES) and likeness > 0.7
    page.get_by_role('button', name='Ask').click()
    assert answered(page) and len(page.evaluate('tokens')) > 5
    assert page.get_by_role('button', name='Record').is_enabled()


def test_keys_alone(address, opened, tmp_path):
    page = opened(address)
    page.get_by_role('button', name='A sentence in English').focus()
    page.keyboard.press('Enter')
    page.get_by_text('A sentence in English, ').wait_for()
    page.get_by_label('Instruction').focus()
    page.keyboard.press('Control+Enter')
    assert answered(page)
    page.mouse.click(2, 2)  # Tab goes on from there
    reached = []
    for _ in range(40):
        page.keyboard.press('Tab')
        here = page.evaluate('[document.activeElement.id, getComputedStyle(document.activeElement).outlineStyle]')
        reached.append(here[0])
        if here[0] == 'instruction':
            page.screenshot(path=tmp_path / 'focus.png')
        # Nothing is focused where Tab leaves the page; what stands in a player is the browser's own.
        assert here[0] in ('', 'player') or here[1] != 'none', f'{here[0]}: its focus is not seen'
    for name in ('record', 'file', 'player', 'instruction', 'phrases', 'ask', 'timeline'):
        assert name in reached, f'{name} is not reached by Tab'
    known = [name for name in reached if name in ('record', 'file', 'instruction', 'ask', 'timeline')]
    assert known[:5] == ['record', 'file', 'instruction', 'ask', 'timeline']


def test_a_token_and_what_goes_wrong(opened, tmp_path):
    model = Seconds()
    with running(service.Service(model, 'mine', token='secret'), page_lib.router) as address:
        page = opened(address, viewport={'width': 390, 'height': 900})
        alert = page.get_by_role('alert')
        page.get_by_role('button', name='Ask').click()
        assert 'There is no recording yet' in alert.text_content()
        page.get_by_role('button', name='A sentence in English').click()
        alert.get_by_text('The token is missing or wrong').wait_for()
        assert page.evaluate('document.activeElement.id') == 'token'
        page.screenshot(path=tmp_path / 'token.png', full_page=True)
        page.get_by_label('This server answers those who have its token').fill('secret')
        page.get_by_role('button', name='A sentence in English').click()
        page.get_by_text('A sentence in English, ').wait_for()
        assert not alert.is_visible() and page.get_by_text('mine has no CTC head').is_visible()
        page.get_by_role('button', name='Ask').click()
        assert answered(page).startswith('heard ')
        (tmp_path / 'no.wav').write_text('no audio')
        page.get_by_label('Or choose a file').set_input_files(tmp_path / 'no.wav')
        alert.get_by_text('no.wav: this browser finds no audio').wait_for()
        model.may.clear()
        page.get_by_role('button', name='Ask').click()
        page.get_by_role('button', name='Stop', exact=True).click()
        page.get_by_text('Stopped.').wait_for()
        model.may.set()


def test_the_spectrum_is_that_of_numpy(address, opened):
    noise = np.random.default_rng(0).normal(size=512)
    transformed = """(x) => {
      const re = Float64Array.from(x), im = new Float64Array(x.length);
      transform(re, im);
      return [[...re], [...im]];
    }"""
    found = opened(address).evaluate(transformed, noise.tolist())
    np.testing.assert_allclose(np.array([1, 1j]) @ found, np.fft.fft(noise), atol=1e-9)
