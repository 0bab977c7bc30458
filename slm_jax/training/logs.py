"""Where numbers go while training: terminal, TensorBoard, and a record of every step's loss."""

import io
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

import jax
from tqdm import tqdm

from slm_jax import paths, terminal

_LOSSES = 'losses.jsonl'
_PART_LINES = 2000  # of a record of losses in an object store
_UPLOAD_SECONDS = 60  # between two times that events are brought to an object store

# Order and format on the terminal; other metrics follow with four digits.
_FORMATS = {
    'loss': 'loss {:.4f}',
    'accuracy': 'accuracy {:.1%}',
    'grad_norm': 'grad {:.3g}',
    'param_norm': 'params {:.4g}',
    'learning_rate': None,
    'speech_text_cosine': 'cosine {:.3f}',
    'audio_seconds_per_second': '{:.0f} s/s',
    'padding_share': 'padding {:.1%}',
    'step_seconds': '{:.3f} s/step',
    'input_wait_share': 'waiting {:.1%}',
}


def say(text: str) -> None:
    """A line on the terminal, above the progress bar; the first host speaks for all."""
    if jax.process_index() == 0:
        terminal.say(text)


class Progress:
    """How far a training is: the first host's progress bar; of JSON lines, the step."""

    def __init__(self, steps: int, done: int):
        silent = True if jax.process_index() or terminal.structured() else None
        self._bar = tqdm(total=steps, initial=done, unit='step', disable=silent)
        terminal.step = self._done = done

    def update(self) -> None:
        """One step more."""
        self._bar.update()
        terminal.step = self._done = self._done + 1

    def close(self) -> None:
        """The bar stays as it is."""
        self._bar.close()
        terminal.step = None


class TerminalWriter:
    """Prints scalars as one line, texts as they are; as far as needed here, one of CLU's metric writers."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """One line, with the part before the last slash of the names (`train`, `dev`) in front."""
        if terminal.structured():
            return terminal.write({'step': step, **{name: float(value) for name, value in scalars.items()}})
        group = next(iter(scalars)).rpartition('/')[0]
        values = {name.rpartition('/')[2]: float(value) for name, value in scalars.items()}
        known = [form.format(values.pop(name)) for name, form in _FORMATS.items() if form and name in values]
        values.pop('learning_rate', None)
        say(f'{group} {step}: ' + ', '.join(known + [f'{name} {value:.4g}' for name, value in values.items()]))

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Each text below its name."""
        if terminal.structured():
            return terminal.write({'step': step, **texts})
        for name, text in texts.items():
            say(f'{name} {step}:\n{text}')

    def close(self) -> None:
        """Lines are flushed as they are written."""


class Writers:
    """Writes to several: terminal, and TensorBoard if asked; on hosts other than the first, to none.

    TensorBoard's events grow, which no object does: where `model_dir` is a URL they are in a local folder, and are
    brought there from time to time.
    """

    def __init__(self, model_dir: str | os.PathLike, tensorboard: bool):
        self._writers: list[Any] = [] if jax.process_index() else [TerminalWriter()]
        self._events: Any = None
        self._model_dir, self._uploaded = paths.path(model_dir), time.monotonic()
        if self._writers and tensorboard:
            import slm_jax.data.tensorflow_cpu  # isort: skip  # noqa: F401  CLU imports the TensorFlow that writes events

            from clu import metric_writers

            if paths.is_url(model_dir):
                self._events = tempfile.TemporaryDirectory()
                model_dir = self._events.name
            self._writers.append(metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(model_dir))))

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Numbers by name, at a step."""
        for writer in self._writers:
            writer.write_scalars(step, scalars)
        if self._events and time.monotonic() - self._uploaded > _UPLOAD_SECONDS:
            self._writers[-1].flush()
            self._upload()

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Texts by name, at a step."""
        for writer in self._writers:
            writer.write_texts(step, texts)

    def close(self) -> None:
        """All is written then."""
        for writer in self._writers:
            writer.close()
        if self._events:
            self._upload()
            self._events.cleanup()

    def _upload(self) -> None:
        folder = pathlib.Path(self._events.name)
        for name in paths.files(folder):
            paths.upload(folder / name, self._model_dir / name)
        self._uploaded = time.monotonic()


class LossRecord:
    """`losses.jsonl`: one line per step, the loss exactly (as a hexadecimal float).

    A killed run repeats the steps after its last checkpoint; the lines of both passes stand in the file, and are
    equal. In an object store, where no file grows, they are in `losses-<run>-<part>.jsonl`.
    """

    def __init__(self, model_dir: str | os.PathLike):
        path = paths.path(model_dir) / _LOSSES
        if jax.process_index():
            path = pathlib.Path(os.devnull)
        self._file: TextIO
        if paths.is_url(path):
            self._file = _Parts(path.parent)
            return
        torn = path.is_file() and path.stat().st_size and not path.read_bytes().endswith(b'\n')
        self._file = path.open('a', encoding='utf-8')
        if torn:
            self._file.write('\n')

    def write(self, losses: Iterable[tuple[int, float]]) -> None:
        """Appends (step, loss) pairs."""
        for step, loss in losses:
            self._file.write(json.dumps({'step': step, 'loss': float(loss).hex()}) + '\n')
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class _Parts(io.StringIO):
    """A file that is kept as objects of `_PART_LINES` lines; each flush puts the last of them again."""

    def __init__(self, model_dir: pathlib.Path):
        super().__init__()
        runs = [int(path.name.split('-')[1]) for path in model_dir.glob('losses-*-*.jsonl')]
        self._model_dir, self._run, self._part, self._lines = model_dir, 1 + max(runs, default=0), 1, 0

    def write(self, text: str) -> int:
        """Adds a line."""
        self._lines += 1
        return super().write(text)

    def flush(self) -> None:
        """What was written is there then."""
        if self.closed or not self._lines:
            return
        paths.write(self._model_dir / f'losses-{self._run:04d}-{self._part:06d}.jsonl', self.getvalue())
        if self._lines >= _PART_LINES:
            self.seek(0)
            self.truncate()
            self._part, self._lines = self._part + 1, 0


def read_losses(model_dir: str | os.PathLike) -> dict[int, list[float]]:
    """From step to the losses recorded for it; more than one where a killed run was resumed before it."""
    directory, losses = paths.path(model_dir), {}
    files = sorted(directory.glob('losses-*-*.jsonl')) if paths.is_url(directory) else [directory / _LOSSES]
    for line in ''.join(file.read_text(encoding='utf-8') for file in files).splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # torn by a kill
            continue
        losses.setdefault(record['step'], []).append(float.fromhex(record['loss']))
    return losses
