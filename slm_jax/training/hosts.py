"""Several processes as one program: they join, begin alike, stop at one step, and none waits for one that is gone.

Beside the program each process (a host) runs a thread that tells the others every second how far it is, through the
key-value store of JAX's coordination service, which process 0 runs. The devices are not asked, so a step costs
nothing. The thread also reads what the others tell, and ends this process, with a line that says whose fault it is,
when one of them has failed or is silent.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

import jax

from slm_jax import paths, terminal
from slm_jax.data import notices

EXIT_HOST_LOST = os.EX_TEMPFAIL  # 75: another host died or cannot be reached; started again, it may go on
LOST_SECONDS = 30.0  # of silence, after which a host counts as lost
SLOW_SECONDS = 60.0  # after which a host that the others wait for is named
_BEAT_SECONDS = 1.0
_FAILING_SECONDS = 3.0  # that a host gets to find by itself the fault that another has found
_WAITS = 'waiting for the other hosts'
_STATUS = re.compile('[A-Z_]{5,}: ')  # with which their messages begin

_hosts: 'Hosts | None' = None
_abort_handler: Any = None  # kept, since C calls it


class HostsError(ValueError):
    """Hosts that cannot become one program, or are not alike."""


def join() -> None:
    """Makes this process one of several hosts, before JAX is used for anything else.

    TPU pods, Slurm, Kubernetes (JobSet) and Open MPI say by themselves who is who; elsewhere JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID do.

    Raises:
        HostsError: nothing says who is who, or only half of it, or the others cannot be reached.
    """
    jax.config.update('jax_enable_preemption_service', False)  # its handler of SIGTERM would be a second one
    given = _given()
    where = f'{given[0]} (JAX_COORDINATOR_ADDRESS)' if given else 'the coordinator'
    remedy = (
        'Start all of them with the same command, each with a JAX_PROCESS_ID of its own, and let them reach that port.'
    )
    try:
        with _told_of_abort(f'--multihost: the other hosts were not found at {where}, though waited for. {remedy}'):
            jax.distributed.initialize(*given)
    except (ValueError, TypeError) as error:
        raise HostsError(
            f'--multihost: nothing says which host this is ({error}). TPU pods and Slurm do; elsewhere set '
            'JAX_COORDINATOR_ADDRESS=HOST:PORT (of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID on each host, or '
            'leave --multihost out to run on this host alone.'
        ) from error
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:200]
        raise HostsError(f'--multihost: the hosts did not come together at {where}: {reason}. {remedy}') from error
    if watch():
        notices.silent = not first()


def _given() -> tuple[str, int, int] | tuple[()]:
    """What the environment says of the hosts; () where it says nothing."""
    names = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
    values = [os.environ.get(name, '') for name in names]
    if not any(values):
        return ()
    if missing := [name for name, value in zip(names, values) if not value]:
        there = ', '.join(name for name, value in zip(names, values) if value)
        raise HostsError(f'--multihost: {there} is set, {" and ".join(missing)} not: set all three, or none of them.')
    address, (count, index) = values[0], values[1:]
    if not address.rpartition(':')[2].isdecimal() or not address.rpartition(':')[0]:
        raise HostsError(f'--multihost: JAX_COORDINATOR_ADDRESS is {address!r}; HOST:PORT of process 0 was expected.')
    if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
        raise HostsError(
            f'--multihost: JAX_NUM_PROCESSES is {count!r} and JAX_PROCESS_ID {index!r}; a number of hosts, and one '
            'from 0 on below it, were expected.'
        )
    return address, int(count), int(index)


def watch() -> 'Hosts | None':
    """What watches the other hosts, begun when first asked for; None where there are none."""
    global _hosts
    if _hosts is None and jax.process_count() > 1:
        _hosts = Hosts()
    return _hosts


def first() -> bool:
    """Whether this is the host that speaks and writes for all."""
    return jax.process_index() == 0


@contextlib.contextmanager
def together(fail: Callable[[Exception], int], *kinds: type[Exception]) -> Iterator[None]:
    """Joins the hosts; inside, the end of one is the end of all.

    An exception of one of these kinds is told by `fail`, and on the other hosts too; all processes end with its exit
    status, with 1 for other exceptions, and with EXIT_HOST_LOST if one of them is gone.
    """
    from slm_jax.training import loop

    join()
    try:
        yield
    except loop.NonFiniteError:  # on every host
        if _hosts is not None:
            _hosts.close()
        raise
    except (Exception, KeyboardInterrupt) as error:
        if _hosts is None:  # there is one host
            raise
        _hosts.fail(error, fail if isinstance(error, kinds) else None)
    if _hosts is not None:
        _hosts.close()


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Its body is named to the other hosts if it takes long and they wait for it."""
    hosts = watch()
    if hosts is None:
        yield
        return
    before = hosts.doing
    hosts.doing = (what, time.monotonic())
    try:
        yield
    finally:
        hosts.doing = before


def named(items: Iterable[Any], what: str) -> Iterator[Any]:
    """The items; waiting for one of them is `doing`."""
    iterator, end = iter(items), object()
    while True:
        with doing(what):
            item = next(iterator, end)
        if item is end:
            return
        yield item


def exchange(value: str) -> list[str]:
    """Every host's value, by host. All call it alike; waits for the last of them, however long it takes."""
    hosts = watch()
    return [value] if hosts is None else hosts.exchange(value)


def compare(fields: Mapping[str, Any]) -> None:
    """Refuses hosts that differ in one of these fields.

    Raises:
        HostsError: on every host; names the field, and the host that differs from the first one.
    """
    text = json.dumps({name: str(value) for name, value in fields.items()}, sort_keys=True)
    digests = exchange(hashlib.sha256(text.encode()).hexdigest())
    other = next((index for index, digest in enumerate(digests) if digest != digests[0]), None)
    if other is None:
        return
    texts = exchange(text if jax.process_index() in (0, other) else '')
    here, there = json.loads(texts[0]), json.loads(texts[other])
    name = next(name for name in sorted(here.keys() | there.keys()) if here.get(name) != there.get(name))
    values = [str(each.get(name, '(nothing)'))[:200] for each in (there, here)]
    raise HostsError(
        f'host {other} differs from host 0 in {name}: {values[0]} there, {values[1]} on host 0. Give all hosts the '
        'same versions, configuration and data.'
    )


def shared(directory: Any) -> bool:
    """Whether all hosts see one and the same directory, by a file that the first of them puts there for the moment."""
    if jax.process_count() == 1 or paths.is_url(directory):
        return True
    token = directory / f'.hosts-{os.getpid()}-{time.time_ns()}'
    if first():
        directory.mkdir(parents=True, exist_ok=True)
        token.touch()
    name = exchange(token.name if first() else '')[0]
    seen = exchange(str((directory / name).exists()))
    if first():
        token.unlink()
    return all(each == 'True' for each in seen)


class Hosts:
    """Watches the other hosts, in a thread.

    Attributes:
        doing: (what this host is at that others may have to wait for, '' if nothing; since when).
    """

    def __init__(self) -> None:
        from jax._src import distributed  # the coordination service's client is nowhere else

        state = distributed.global_state
        self._client: Any = state.client
        self._address = str(state.coordinator_address)
        self._index, self._count = jax.process_index(), jax.process_count()
        self.doing = ('', time.monotonic())
        self._stop: Any = None  # preemption.Stop
        self._stops = self._exchanges = self._beats = 0
        self._failing, self._ended = False, ''
        self._beaten = time.monotonic()
        self._seen = {other: ({}, self._beaten) for other in range(self._count) if other != self._index}
        self._told: dict[int, tuple[Any, float]] = {}  # what was said of slow hosts
        self._failed_since: float | None = None
        self._over = threading.Event()
        _on_abort(self._aborted)
        self._thread = threading.Thread(target=self._run, daemon=True, name='slm_jax hosts')
        self._thread.start()

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        while not self._over.wait(0.1 if self._ended or self._stop and self._stop.agreeing else _BEAT_SECONDS):
            try:
                self._tell()
                told = dict(self._client.key_value_dir_get('slm_jax/now'))
            except jax.errors.JaxRuntimeError as error:
                self._unreachable(error)
                continue
            self._failed_since = None
            self._look({key.rpartition('slm_jax/now/')[2]: value for key, value in told.items()})

    def _tell(self) -> None:
        what, since = self.doing
        self._beats += 1
        beat = {
            'beat': self._beats,
            'name': socket.gethostname(),
            'tick': self._stop.ticks if self._stop else -1,
            'doing': what,
            'seconds': round(time.monotonic() - since),
            'ended': self._ended,
        }
        self._client.key_value_set(f'slm_jax/now/beat/{self._index}', json.dumps(beat), allow_overwrite=True)

    def _look(self, told: Mapping[str, str]) -> None:
        now = time.monotonic()
        paused, self._beaten = now - self._beaten > LOST_SECONDS / 2, now  # this host itself was stopped meanwhile
        for other, (before, since) in self._seen.items():
            beat = json.loads(told.get(f'beat/{other}', '{}'))
            self._seen[other] = (beat, now if paused or beat != before else since)
        if self._failing:
            return
        for key, value in told.items():
            if key.startswith('failed/') and key != f'failed/{self._index}':
                return self._ended_by(json.loads(value))
        for other, (beat, since) in self._seen.items():
            if now - since > LOST_SECONDS and not beat.get('ended'):
                text = f'{self._named(other)} is lost: no sign of it for {now - since:.0f} s'
                self._end(text + _RESTART, EXIT_HOST_LOST, other)
        self._name_slow(now)
        if self._stop:
            self._stop.agree(self._client, self._index, self._count, f'slm_jax/now/stop-{self._stops}', told)

    def _ended_by(self, failure: Mapping[str, Any]) -> None:
        """Another host has failed: this one gets the time to find the same fault by itself, then ends too."""
        until = time.monotonic() + _FAILING_SECONDS
        while time.monotonic() < until:
            if self._failing:
                return
            time.sleep(0.1)
        self._end(failure['text'], failure['status'])

    def _name_slow(self, now: float) -> None:
        mine = {'tick': self._stop.ticks if self._stop else -1, 'doing': self.doing[0]}
        mine['seconds'] = now - self.doing[1]
        beats = {other: beat for other, (beat, _) in self._seen.items() if beat} | {self._index: mine}
        for host, beat in beats.items():
            others = [each for other, each in beats.items() if other != host]
            waiting = any(each['doing'] in ('', _WAITS) and each['tick'] >= beat['tick'] for each in others)
            if not waiting or beat['doing'] in ('', _WAITS) or beat['seconds'] < SLOW_SECONDS:
                continue
            what = (beat['doing'], beat['tick'])
            said, seconds = self._told.get(host, (None, 0.0))
            if said != what or beat['seconds'] >= 2 * seconds:
                self._told[host] = (what, beat['seconds'])
                long = f'{beat["seconds"]:.0f} s'
                say(f'{self._named(host)} has been {beat["doing"]} for {long}; the other hosts wait for it.')

    def _named(self, host: int) -> str:
        name = socket.gethostname() if host == self._index else self._seen[host][0].get('name')
        return f'host {host}' + (f' ({name})' if name else '')

    # ------------------------------------------------------------------ ends

    def fail(self, error: Any, fail: Callable[[Exception], int] | None) -> NoReturn:
        """Ends this process for an error of its own, or for that of another host which was the reason for it."""
        raised = time.monotonic()
        # An error of JAX may only be that another host is gone: if so, the thread ends this process meanwhile.
        while _of_jax(error) and time.monotonic() < raised + LOST_SECONDS + 10 * _BEAT_SECONDS:
            if all(since > raised + _BEAT_SECONDS and not beat.get('ended') for beat, since in self._seen.values()):
                break
            time.sleep(0.1)
        self._failing = True
        text, status = f'{type(error).__name__}: {str(error)[:500]}', 1
        if isinstance(error, KeyboardInterrupt):
            text, status = 'interrupted', 128 + signal.SIGINT
        try:
            if fail is None:
                raise error
            text, status = str(error), fail(error)
        except Exception:  # a fault of the program, or SLM_JAX_TRACEBACK
            traceback.print_exc()
        except KeyboardInterrupt:
            pass
        self._end('', status, told=f'{self._named(self._index)}: {text}')

    def _end(self, text: str, status: int, lost: int | None = None, told: str = '') -> NoReturn:
        """Ends this process, whatever its main thread waits for. The first host goes last: it has what all read."""
        if text:
            say(text)
        self._failing, self._ended = True, 'failed'
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            failure = json.dumps({'text': told or text, 'status': status})
            self._client.key_value_set(f'slm_jax/now/failed/{self._index}', failure, allow_overwrite=True)
            self._tell()
            until = time.monotonic() + 10.0
            while self._index == 0 and time.monotonic() < until:
                beats = {key: json.loads(value) for key, value in self._client.key_value_dir_get('slm_jax/now/beat')}
                ended = [int(key.rpartition('/')[2]) for key, beat in beats.items() if beat['ended']]
                if {*range(self._count)} - {lost} <= {*ended}:
                    break
                time.sleep(0.2)
        leave(status)

    def _unreachable(self, error: Exception) -> None:
        now = time.monotonic()
        self._failed_since = self._failed_since or now
        if now - self._failed_since > LOST_SECONDS:
            say(self._without_coordinator() + _RESTART)
            leave(EXIT_HOST_LOST)

    def _without_coordinator(self) -> str:
        return f'host 0 ({self._address}), where the coordinator runs, is lost'

    def _aborted(self) -> None:
        """JAX aborts the process at once when its coordinator is gone; an abort for another reason goes on."""
        with contextlib.suppress(OSError):
            host, _, port = self._address.rpartition(':')
            socket.create_connection((host, int(port)), timeout=3).close()
            return
        if self._index and not self._over.is_set():
            say(self._without_coordinator() + _RESTART)
            os._exit(EXIT_HOST_LOST)

    def close(self) -> None:
        """This host is done, and is not missed any more; it waits for the others, and still ends as they do."""
        global _hosts
        self._ended = 'done'
        while not all(beat.get('ended') == 'done' for beat, _ in self._seen.values()):
            time.sleep(0.05)
        self._over.set()
        self._thread.join()
        self._tell()
        _hosts = None
        jax.distributed.shutdown()

    # ------------------------------------------------------------------ agreement

    def exchange(self, value: str) -> list[str]:
        """See the function."""
        self._exchanges += 1
        folder = f'slm_jax/exchange/{self._exchanges}'
        self._client.key_value_set(f'{folder}/{self._index}', value)
        with doing(_WAITS):
            pause = 0.02
            while True:
                gone = {other for other, (beat, _) in self._seen.items() if beat.get('ended') == 'done'}
                found = self._client.key_value_dir_get(folder)
                if missing := gone - {int(key.rpartition('/')[2]) for key, _ in found}:
                    raise HostsError(f'{self._named(min(missing))} has ended already: it was given less to do.')
                if len(found) == self._count:
                    return [text for _, text in sorted(found, key=lambda pair: int(pair[0].rpartition('/')[2]))]
                time.sleep(pause)
                pause = min(2 * pause, 1.0)

    def stopping(self, stop: Any) -> None:
        """From now on the hosts agree on when to stop; loops follow each other."""
        self._stops += 1
        self._stop = stop


_RESTART = f'; this process ends too ({EXIT_HOST_LOST}). Start all hosts again: they go on from the last checkpoint.'


def _of_jax(error: BaseException) -> bool:
    """Whether it is an error of XLA or of what it sends messages by, which come as ValueErrors too."""
    return isinstance(error, jax.errors.JaxRuntimeError) or bool(_STATUS.match(str(error)))


def say(text: str) -> None:
    """A line on the standard error, whatever else this process is at."""
    if terminal.structured():
        terminal.write({'message': text})
    else:
        os.write(2, f'slm-jax: {text}\n'.encode())


def leave(status: int) -> NoReturn:
    """Ends this process, from any of its threads."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _on_abort(handle: Callable[[], None] | None) -> None:
    """Calls `handle` when a library aborts the process: Python's own handlers would not run any more."""
    global _abort_handler
    library = ctypes.CDLL(None)
    library.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    # Where it returns, the abort goes on.
    _abort_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: handle()) if handle else None
    library.signal(signal.SIGABRT, ctypes.cast(_abort_handler, ctypes.c_void_p) if handle else None)


@contextlib.contextmanager
def _told_of_abort(text: str) -> Iterator[None]:
    """Inside, JAX may abort the process with pages of C++: this line is told instead, with EXIT_HOST_LOST."""
    with tempfile.TemporaryFile() as said:
        terminal = os.dup(2)
        os.dup2(said.fileno(), 2)

        def aborted():
            os.dup2(terminal, 2)
            say(text)
            os._exit(EXIT_HOST_LOST)

        _on_abort(aborted)
        try:
            yield
        finally:
            _on_abort(None)
            os.dup2(terminal, 2)
            os.close(terminal)
            said.seek(0)
            os.write(2, said.read())
