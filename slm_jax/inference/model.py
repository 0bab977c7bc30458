"""A trained model, or a foundation, from its directory alone: ready to answer batches."""

import contextlib
import copy
import dataclasses
import hashlib
import math
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from slm_jax import paths
from slm_jax.data import modalities, prompts
from slm_jax.inference import card_text, pieces, traces

DEFAULT_MAX_SECONDS = 30.0
_EOS = 1

# How a foundation alone is put to work, over the model file that bears its name.
_FOUNDATION_GIN = {
    'speech_encoder': """
from __gin__ import dynamic_registration
from slm_jax.systems import encoder_ctc
from slm_jax.systems import speech_encoder
encoder_ctc.EncoderCtc.speech_encoder = @speech_encoder.SpeechEncoder()
MODEL = @encoder_ctc.EncoderCtc()
""",
    'llm': """
from __gin__ import dynamic_registration
from slm_jax.systems import text_to_text
text_to_text.TextToText.llm = %LLM_MODULE
MODEL = @text_to_text.TextToText()
""",
}
# What may be said of every model, before its own configuration.
_FIRST_GIN = """
from __gin__ import dynamic_registration
from slm_jax import decoding
from slm_jax import train
from slm_jax.llms import t5
FROZEN_DTYPE = None
LLM_MODULE = @t5.T5()  # as model files of before do not say
train.train.frozen_dtype = %FROZEN_DTYPE
"""


class ModelError(ValueError):
    """A directory that no model can be made of; the message names it and the remedy."""


class Answer(NamedTuple):
    """What a model says to a query; `cut` is the field of `DecodeConfig` that did not let it end, '' if it did."""

    text: str
    cut: str = ''


@dataclasses.dataclass
class Model:
    """A system with its parameters on the devices.

    Attributes:
        directory: where it was read from.
        card: of the model or foundation.
        step: of the checkpoint; None for a foundation.
        system: see `slm_jax.systems.System`.
        params: all that the system reads.
        foundations: {part: {'name', 'fingerprint'}} of what was not in the checkpoint.
        decode: how to generate.
        vocabulary: of the outputs.
        prompt: how a request is put to it.
        max_seconds: longest audio that training let through, if the speech encoder takes it.
        computed_seconds: audio that the speech encoder computes at least, however short a clip is.
        mesh: of the devices.
        seconds: that `answers` took so far, compilation left out.
        pieces: embeddings of what the last batch had to be heard in pieces, by their samples.
    """

    directory: pathlib.Path
    card: dict[str, Any]
    step: int | None
    system: Any
    params: dict[str, Any]
    foundations: dict[str, Any]
    decode: Any
    vocabulary: Any
    prompt: prompts.Prompt
    max_seconds: float
    computed_seconds: float
    mesh: Any
    _partitioner: Any
    seconds: float = 0.0
    pieces: dict[bytes, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        self._programs, self._asked = {}, 0

    @property
    def text_vocabulary(self) -> Any:
        """Vocabulary of instructions and texts; None for a system that reads none."""
        return self.vocabulary if 'llm' in self.params else None

    @property
    def hears(self) -> bool:
        """Whether recordings can be put to it; a language model alone reads texts."""
        return 'speech_encoder' in self.params

    @property
    def encoder_seconds(self) -> float | None:
        """Longest audio that can be put to it at once; None: any, be it heard in pieces."""
        return _encoder_seconds(self.system)

    @property
    def most_tokens(self) -> int | None:
        """Longest text that its language model has positions for; None: any."""
        config = getattr(getattr(self.system, 'llm', None), 'config', None)
        return getattr(config, 'max_positions', None)

    def let_through(self, asked: float | None) -> float:
        """Longest audio to put to it at once: what is asked for (`--max_seconds`), or `max_seconds`.

        Raises:
            ValueError: the speech encoder does not take so much.
        """
        most = self.encoder_seconds
        if asked is not None and not 0 < asked <= (most or math.inf):
            raise ValueError(
                f'--max_seconds {asked:g}: '
                + (f'the speech encoder of {self.directory.name} takes {most:g} s at once. ' if most else '')
                + f'Give a number above 0{f" and up to {most:g}" if most else ""}; `slm-jax infer --chunk_seconds` '
                'cuts longer audio at its pauses.'
            )
        return self.max_seconds if asked is None else asked

    @property
    def row_multiple(self) -> int:
        """What the number of rows of a batch must be a multiple of."""
        return self.mesh.shape['data'] * self.mesh.shape['fsdp']

    def answers(self, batch: Mapping[str, np.ndarray]) -> list[Answer]:
        """The answer to each row of a batch; compiled once per shape. Hosts ask alike, and each has all answers."""
        return [Answer(self.vocabulary.decode(row[row != 0].tolist()), self.cut(row)) for row in self.tokens(batch)]

    def tokens(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """What `answers` decodes, [rows, length]; 0 after the end."""
        batch = pieces.listened(self, batch)
        return self.run('answers', lambda params, batch: self.system.predict(params, batch, self.decode), batch)

    def log_likelihoods(self, batch: Mapping[str, np.ndarray]) -> list[float]:
        """How likely each row's `decoder_target_tokens` are as its answer, to base e; otherwise as `answers`.

        Raises:
            ValueError: the system has no language model.
        """
        if not hasattr(self.system, 'score_batch'):
            raise ValueError(f'{self.directory.name} has no language model, which alone says how likely an answer is.')
        return self.run('likelihoods', self.system.score_batch, pieces.listened(self, batch)).tolist()

    def heard_likelihoods(self, batch: Mapping[str, np.ndarray]) -> list[list[float]]:
        """(log-likelihood, tokens) of what is heard in each row, each token after those before it.

        Raises:
            ValueError: the system does not say it, or does not hear a recording at once.
        """
        if not hasattr(self.system, 'score_speech'):
            raise ValueError(
                f'{self.directory.name} does not say how likely a recording is; SSR (models/ssr_smollm2.gin) does. '
                '--text_field text scores the texts of the choices.'
            )
        most = pieces.limit(self.system)
        if most is not None and (longest := batch['speech_lengths'].max()) > most:
            raise ValueError(
                f'a recording of {longest / 16_000:.1f} s: {most / 16_000:g} s are heard at once, and scored. Leave '
                'longer ones out (--max_seconds, --on_bad_example skip).'
            )
        return self.run('heard', self.system.score_speech, pieces.listened(self, batch)).tolist()

    def run(self, name: str, function: Callable, batch: Mapping[str, np.ndarray]) -> Any:
        """What a function makes of the parameters and a batch, in numpy; `name` as `program` has it."""
        import jax

        from slm_jax.training import hosts, partitioning

        if hosts.watch():
            digest = hashlib.sha256(b''.join(array.tobytes() for array in batch.values()))
            hosts.compare({f'the recordings or texts of batch {self._asked}': digest.hexdigest()})
        self._asked += 1
        given = self.placed(batch)
        compiled = self.program(name, function, given, out=partitioning.replicated(self.mesh))
        started = time.perf_counter()
        result = jax.tree.map(np.asarray, compiled(self.params, given))
        self.seconds += time.perf_counter() - started
        return result

    def placed(self, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """A batch on the devices."""
        from slm_jax.training import partitioning

        rows = partitioning.host_rows(self.mesh, len(batch['speech_lengths']))
        return partitioning.shard_batch({name: array[rows] for name, array in batch.items()}, self.mesh)

    def program(
        self, name: str, function: Callable, *arguments: Any, donated: tuple[int, ...] = (), out: Any = None
    ) -> Callable:
        """A function of the parameters and `arguments` for arguments of these shapes; compiled once.

        Args:
            name: of the function.
            function: what it does is decided by its name, the system and `decode`.
            arguments: without the parameters.
            donated: places of arguments, the parameters being the first, whose memory the results may take.
            out: shardings of the results; None: as the compiler likes.
        """
        import jax

        leaves, tree = jax.tree.flatten(arguments)
        key = name, str(tree), tuple(leaf.shape for leaf in leaves)
        if key not in self._programs:
            if self.mesh.size == 1:
                of = [name, repr(self.system), repr(self.decode)]
                jitted = traces.program(function, of, self.params, *arguments, donated=donated)
            else:
                jitted = jax.jit(function, donate_argnums=donated, out_shardings=out)
            with self._partitioner.tracing(self.mesh, generation=True):
                self._programs[key] = jitted.lower(self.params, *arguments).compile()
        return self._programs[key]

    def cut(self, row: np.ndarray) -> str:
        """The field of `DecodeConfig` that did not let these tokens end, '' if they did."""
        if self.text_vocabulary is None or _EOS in row:  # CTC writes no end
            return ''
        return 'max_length_ratio' if self.decode.max_length_ratio and row[-1] == 0 else 'max_decode_length'


def compilation_cache() -> None:
    """Keeps compiled programs between runs, in JAX_COMPILATION_CACHE_DIR or the user's cache."""
    import jax

    if not jax.config.values['jax_compilation_cache_dir']:
        jax.config.update('jax_compilation_cache_dir', str(paths.cache() / 'compiled'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def load(
    name_or_dir: str | os.PathLike,
    *,
    step: int | None = None,
    gin_files: Sequence[str] = (),
    bindings: Sequence[str] = (),
    foundations: Mapping[str, str] | None = None,
    mesh: Mapping[str, Any] | None = None,
    decode: Mapping[str, Any] | None = None,
) -> Model:
    """Reads a model directory, or a foundation.

    Args:
        name_or_dir: directory of a trained model, or name or directory of a foundation: a speech
            encoder is read out by CTC, a language model takes text.
        step: of the checkpoint; None: the newest.
        gin_files, bindings: come after the configuration that the model was trained with. A
            foundation that has no model file, beside its card or under its name in gin/models,
            needs one here.
        foundations: {part: name or directory} where they are not where the card says.
        mesh: sizes of 'data', 'fsdp' and 'model'; None: all devices are 'data'.
        decode: fields of `DecodeConfig` that replace what gin says.

    Raises:
        ValueError: not found, a damaged or foreign foundation, or a configuration that does not
            fit; names what and the remedy.
    """
    from slm_jax import configuration, decoding
    from slm_jax import foundations as foundations_lib
    from slm_jax.codebooks import labels
    from slm_jax.training import checkpoints, origins, partitioning
    from slm_jax.training import state as state_lib

    compilation_cache()
    directory = foundations_lib.find(name_or_dir)
    card = foundations_lib.card(directory)
    own_step, trained_dir = None, None
    if card.get('kind') == checkpoints.KIND:
        trained_dir = checkpoints.newest(directory)
        if step is not None:
            trained_dir = trained_dir.with_name(str(step))
        if not trained_dir.is_dir():
            newest = checkpoints.newest(directory).name
            raise ModelError(f'{directory}: no checkpoint of step {step}; the newest is {newest}.')
        checkpoints.check_files(trained_dir)
        own_step, trained_dir = int(trained_dir.name), trained_dir / checkpoints.TRAINABLE
    if not gin_files and (directory / foundations_lib.MODEL_FILE).is_file():
        gin_files = [str(directory / foundations_lib.MODEL_FILE)]
    configure(card, gin_files, bindings)
    trained_as = configured_system()
    system = getattr(trained_as, 'answering', trained_as)

    partitioner = partitioning.Partitioner(**(mesh or {}))
    devices = partitioner.mesh()
    boxed = traces.abstract_params(system)
    if not {'llm', 'speech_encoder'} & boxed.keys():
        raise ModelError(
            f'{directory.name} is a training of {type(system).__name__}, which writes no text: `slm-jax codebook` '
            'encodes and decodes with it.'
        )
    shardings = partitioner.shardings(boxed, devices)
    trained = foundations_lib.stored_tree(trained_dir) if trained_dir else {}
    trained_paths = _check_trained(trained, state_lib.unboxed(boxed), trained_dir)
    leaves = state_lib.flatten(origins.place(state_lib.unboxed(boxed), shardings))
    own = state_lib.unflatten({k: v for k, v in leaves.items() if k in trained_paths})
    frozen = state_lib.unflatten({k: v for k, v in leaves.items() if k not in trained_paths})
    held = origins.hold(state_lib.read(system, frozen), boxed, query('slm_jax.train.train.frozen_dtype'))

    needed = dict(card.get('foundations') or {})
    if system is not trained_as:
        needed.pop(getattr(trained_as, 'teacher', None), None)
    names = {part: entry['name'] for part, entry in needed.items()}
    if trained_dir is None:
        names = {card['kind']: str(name_or_dir)}
    names |= foundations or {}
    found = origins.find(names)
    origins.check(found, own, frozen)
    labels.check(system, names)
    used = origins.described(found)
    if trained_dir is not None:
        checkpoints.check_foundations(directory, needed, used)
        own = foundations_lib.restore(trained_dir, own)
    part = 'llm' if 'llm' in boxed or getattr(system, 'writes_llm_tokens', False) else 'speech_encoder'
    first = card.get('initialised_from') or {}
    return Model(
        directory=directory,
        card=card,
        step=own_step,
        system=system,
        params=state_lib.merge(own, origins.load(found, held)),
        foundations=used,
        decode=dataclasses.replace(configuration.configured(decoding.DecodeConfig)(), **(decode or {})),
        vocabulary=modalities.vocabulary(_vocabulary(part, [names.get(part), first.get(part, {}).get('name')])),
        prompt=getattr(system, 'prompt', None) or prompts.Prompt(),
        max_seconds=min(_max_seconds(), _encoder_seconds(system) or math.inf),
        computed_seconds=query('%ENCODER_SECONDS') or 0.0,
        mesh=devices,
        _partitioner=partitioner,
    )


def _check_trained(trained: Any, params: Any, directory: pathlib.Path | None) -> set[str]:
    """The paths of the trained parameters; each must be one of the system's, with its shape."""
    from slm_jax.foundations import flatten

    shapes = {path: leaf.shape for path, leaf in flatten(params).items()}
    leaves = flatten(trained) if trained else {}
    for path, leaf in leaves.items():
        if shapes.get(path) != leaf.shape:
            raise ModelError(
                f'{directory}: {path} has shape {leaf.shape} there and '
                f'{shapes.get(path, "none")} in this configuration. '
                'Give the gin file that the model was trained with.'
            )
    return set(leaves)


def configure(
    card: Mapping[str, Any], gin_files: Sequence[str], bindings: Sequence[str], training: bool = False
) -> None:
    """Parses the configuration of a model's or foundation's card, then what the user adds.

    Args:
        card: as `foundations.card` gives it.
        gin_files, bindings: see `load`.
        training: whether to parse what only training reads of, too: its tasks are registered by that.

    Raises:
        ValueError: the configuration does not parse, or a foundation has no model file.
    """
    from slm_jax import configuration, foundations

    files, last = list(gin_files), ''
    if 'config' not in card:
        if card.get('kind') not in _FOUNDATION_GIN:
            raise ModelError(
                f'card of {card.get("name")!r}: its kind is {card.get("kind")!r} and it has no '
                f'config; kinds that need none are {sorted(_FOUNDATION_GIN)}.'
            )
        last = _FOUNDATION_GIN[card['kind']]
        if not files:
            with contextlib.suppress(configuration.ConfigurationError):
                files = [str(configuration.find_gin_file(f'models/{card["name"]}.gin'))]
        if not files:
            raise ModelError(
                f'foundation {card.get("name")!r}: which system is it? Give --gin_file with the '
                'model file that it was made with.'
            )
    with tempfile.TemporaryDirectory() as folder:

        def written(name, text):
            path = pathlib.Path(folder, name)
            path.write_text(text, encoding='utf-8')
            return str(path)

        config = card_text.current(card)
        config = config if training else card_text.for_answering(config)
        first = [written('first.gin', _FIRST_GIN), written('card.gin', config)]
        try:
            configuration.parse_gin([*first, *files, written('foundation.gin', last)], list(bindings))
        except configuration.ConfigurationError as error:
            if first[1] not in str(error):
                raise
            made_by = (card.get('versions') or {}).get('slm_jax', 'an unknown version')
            raise ModelError(
                f'the configuration in the card of {card.get("name")!r} does not fit this version of slm_jax (it was '
                f'written by {made_by}): {str(error).replace(first[1], foundations.CARD)}\nInstall that version, or '
                "mend the line in the card's `config`."
            ) from error


def configured_system() -> Any:
    """The system that the parsed configuration names: macro MODEL, or `system` of `train`.

    Raises:
        ModelError: it names none.
    """
    for key in ('%MODEL', 'slm_jax.train.train.system'):
        value = query(key)
        if value is not None:
            return value
    raise ModelError('the configuration names no system; bind one, as in MODEL = @slm.SLM().')


def query(key: str) -> Any:
    """A macro or parameter of the parsed configuration; None if it is not set."""
    import gin

    try:
        value = gin.query_parameter(key)
    except ValueError:
        return None
    return copy.deepcopy(value)  # Copying is what makes gin call what a reference refers to.


def _encoder_seconds(system: Any) -> float | None:
    return None if pieces.limit(system) else getattr(system, 'max_seconds', None)


def _max_seconds() -> float:
    lengths = query('%TASK_FEATURE_LENGTHS')
    speech = lengths.get('speech') if isinstance(lengths, Mapping) else None
    return speech / 16000 if speech else DEFAULT_MAX_SECONDS


def _vocabulary(part: str, names: Sequence[str | None]) -> Any:
    """The vocabulary of the first of these foundations that has one, else the data's."""
    from slm_jax import foundations as foundations_lib

    for name in filter(None, names):
        # What a part was initialised from may be gone, or have no text (BEST-RQ).
        with contextlib.suppress(foundations_lib.FoundationError):
            return foundations_lib.vocabulary(name)
    from slm_jax.data import vocabularies

    return foundations_lib.vocabulary(vocabularies.names()[part])
