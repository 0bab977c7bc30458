"""LoRA of a language model: in PEFT's format, for the model of `transformers` that the foundation was, or merged."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Array

from slm_jax.adapters import lora
from slm_jax.exporters import ExportError, safetensors
from slm_jax.importers.hugging_face import decoder_only as decoder_only_layout
from slm_jax.importers.hugging_face import mbart as mbart_layout
from slm_jax.importers.hugging_face import t5 as t5_layout
from slm_jax.importers.hugging_face.tensors import Tensor
from slm_jax.llms import mbart, t5

_KINDS = {lora.DOWN: 'lora_A', lora.UP: 'lora_B'}
_HEAD = 'decoder/logits_dense'


def write(directory: pathlib.Path, llm: Any, config: lora.LoraConfig, leaves: Mapping[str, Array]) -> None:
    """Writes adapter_config.json and adapter_model.safetensors, as PEFT's `PeftModel.from_pretrained` reads them.

    Args:
        directory: which is there.
        llm: the language model.
        config: of its LoRA.
        leaves: that, by path below the language model.

    Raises:
        ExportError: it updates the output layer, which is another one in transformers.
    """
    tensors, modules = {}, set()
    for path, leaf in leaves.items():
        module, _, kind = path.rpartition('/')
        if module == _HEAD:
            raise ExportError(
                f'llm/{_HEAD} has LoRA; in transformers the tokens of the output layer have other places, or it is '
                'scaled. Train without it in LoraConfig.modules, or export with --merged.'
            )
        axis = _layers(llm, module)
        for layer, name in enumerate(_names(llm, module)):
            own = np.asarray(leaf, np.float32)
            array = (own if axis is None else own.take(layer, axis)).T
            file = pathlib.Path(path)
            tensors[f'base_model.model.{name}.{_KINDS[kind]}.weight'] = Tensor(
                file, array.shape, array.dtype, array.__array__
            )
            modules.add(name)
    described = {
        'peft_type': 'LORA',
        'task_type': 'SEQ_2_SEQ_LM' if isinstance(llm, (mbart.MBart, t5.T5)) else 'CAUSAL_LM',
        'base_model_name_or_path': None,  # card.json says what it belongs to
        'r': config.rank,
        'lora_alpha': config.alpha,
        'target_modules': sorted(modules),
        'lora_dropout': 0.0,
        'bias': 'none',
        'inference_mode': True,
    }
    (directory / 'adapter_config.json').write_text(json.dumps(described, indent=2) + '\n', encoding='utf-8')
    safetensors.write(directory / 'adapter_model.safetensors', tensors, {'format': 'pt'})


def merged(
    llm: Any, config: lora.LoraConfig, params: Mapping[str, Any], leaves: Mapping[str, Array]
) -> dict[str, np.ndarray]:
    """The kernels of the language model that LoRA updates, with these updates.

    In float32: what an update changes is often less than bfloat16 tells apart.

    Args:
        llm: the language model.
        config: of its LoRA.
        params: its parameters, by path.
        leaves: its LoRA, likewise.
    """
    modules = sorted({path.rpartition('/')[0] for path in leaves})
    return {
        f'{module}/kernel': lora.merged(
            params[f'{module}/kernel'],
            leaves[f'{module}/{lora.DOWN}'],
            leaves[f'{module}/{lora.UP}'],
            config.scale,
            _layers(llm, module),
        )
        for module in modules
    }


def _layers(llm: Any, module: str) -> int | None:
    """The axis of a module's parameters that its layers have; None: it is of one."""
    if isinstance(llm, t5.T5):
        return 1 if t5_layout.scanned(f'{module}/kernel', llm.config) else None
    return 0 if '/layers/' in module else None


def _names(llm: Any, module: str) -> list[str]:
    """What transformers calls a module: one name, or one a layer."""
    if isinstance(llm, t5.T5):
        names = t5_layout.names(f'{module}/kernel', llm.config, own_biases=False)
        return [name.removesuffix('.weight') for name in names]
    if isinstance(llm, mbart.MBart):
        name = 'model.' + mbart_layout.tensor_name(f'{module}/kernel').removesuffix('.weight')
        layers = getattr(llm.config, f'num_{module.split("/")[0]}_layers')
    else:
        name, layers = decoder_only_layout.module_name(module, llm.config), llm.config.num_layers
    return [name.format(layer) for layer in range(layers if '{}' in name else 1)]
