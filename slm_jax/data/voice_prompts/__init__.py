# Copyright 2026 The slm_jax Authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Recorded telephone prompts in five languages, translated by people: a TFDS data set."""

from slm_jax.data.voice_prompts.builder import VoicePrompts

__all__ = ['VoicePrompts']
