"""Waveforms, log-mel frontends and SpecAugment."""
