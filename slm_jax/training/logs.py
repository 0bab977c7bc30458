"""Where numbers go while training: terminal, TensorBoard, and a record of every step's loss."""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from tqdm import tqdm

from slm_jax import terminal

_LOSSES = 'losses.jsonl'

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
    """Writes to several: terminal, and TensorBoard if asked; on hosts other than the first, to none."""

    def __init__(self, model_dir: str | os.PathLike, tensorboard: bool):
        self._writers: list[Any] = [] if jax.process_index() else [TerminalWriter()]
        if self._writers and tensorboard:
            import slm_jax.data.tensorflow_cpu  # isort: skip  # noqa: F401  CLU imports the TensorFlow that writes events

            from clu import metric_writers

            self._writers.append(metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(model_dir))))

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Numbers by name, at a step."""
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Texts by name, at a step."""
        for writer in self._writers:
            writer.write_texts(step, texts)

    def close(self) -> None:
        """All is written then."""
        for writer in self._writers:
            writer.close()


class LossRecord:
    """`losses.jsonl`: one line per step, the loss exactly (as a hexadecimal float).

    A killed run repeats the steps after its last checkpoint; the lines of both passes stand in the file, and are
    equal.
    """

    def __init__(self, model_dir: str | os.PathLike):
        path = pathlib.Path(model_dir) / _LOSSES
        if jax.process_index():
            path = pathlib.Path(os.devnull)
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


def read_losses(model_dir: str | os.PathLike) -> dict[int, list[float]]:
    """From step to the losses recorded for it; more than one where a killed run was resumed before it."""
    losses = {}
    for line in (pathlib.Path(model_dir) / _LOSSES).read_text(encoding='utf-8').splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # torn by a kill
            continue
        losses.setdefault(record['step'], []).append(float.fromhex(record['loss']))
    return losses
