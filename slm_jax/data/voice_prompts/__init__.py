"""Recorded telephone prompts in five languages, translated by people: a TFDS data set."""

from slm_jax.data.voice_prompts.builder import VoicePrompts

__all__ = ['VoicePrompts']
