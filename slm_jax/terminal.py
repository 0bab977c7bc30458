"""What programs say while they run: lines for people or, after `use('json', ...)`, a JSON object a line."""

import datetime
import json
import math
import sys
import warnings
from collections.abc import Mapping
from typing import Any, TextIO

from tqdm import tqdm

FORMATS = ('text', 'json')

step: int | None = None  # which a training has come to
_format, _host = 'text', 0


def use(form: str, host: int) -> None:
    """From now on lines are of this format, one of FORMATS; `host` is this process's number."""
    global _format, _host
    _format, _host = form, host
    if structured():
        warnings.showwarning = lambda message, *_, **__: write({'message': f'warning: {message}'})


def structured() -> bool:
    """Whether lines are JSON."""
    return _format == 'json'


def say(text: str, stream: TextIO | None = None) -> None:
    """A line for people, above progress bars, on `stream` (the standard output); as JSON it is the `message`."""
    if structured():
        write({'message': text})
    else:
        tqdm.write(text, file=stream or sys.stdout)
        (stream or sys.stdout).flush()


def write(values: Mapping[str, Any]) -> None:
    """A JSON object on the standard output: time, host, step, and these; NaN and infinity as texts: JSON has none."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='milliseconds')
    line = {'time': now, 'host': _host, 'step': step, **values}
    plain = {name: str(v) if isinstance(v, float) and not math.isfinite(v) else v for name, v in line.items()}
    print(json.dumps(plain, ensure_ascii=False), flush=True)
