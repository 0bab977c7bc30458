"""Decoding by PyAV, whose wheels bring FFmpeg: what phones and browsers record and libsndfile does not read."""

import io
import math

import numpy as np
from jaxtyping import Float32

from slm_jax.audio import containers


def decode(
    name: str, content: bytes, demuxer: str, most: float = math.inf
) -> tuple[Float32[np.ndarray, 'samples channels'], int]:
    """Decodes the first sound track of a file.

    Args:
        name: of the file, for messages.
        content: all of the file.
        demuxer: FFmpeg's name of the kind of file.
        most: seconds; more is an AudioError.

    Returns:
        Samples on a scale of 1, and how many there are in a second.

    Raises:
        AudioError: no sound track, or less sound than the file states.
        av.FFmpegError: the file is damaged.
    """
    import av  # Here, since most recordings do without.
    from av.codec.context import Flags2

    blocks, packets, length, rate = [], 0, 0, 0
    with av.open(io.BytesIO(content), 'r', format=demuxer, metadata_errors='replace') as container:
        if not container.streams.audio:
            raise containers.AudioError(f'{name}: has no sound track. Remove it from the data.')
        track = container.streams.audio[0]
        if track.codec_context is None:
            raise containers.AudioError(f'{name}: FFmpeg has no decoder for its sound. Write it again as WAV.')
        if demuxer == 'flac':
            track.codec_context.options = {'err_detect': 'crccheck+explode'}
        if track.codec_context.name == 'alac':  # whose last packet is no longer than its sound, and would be cut again
            track.codec_context.flags2 |= Flags2.skip_manual
        for packet in container.demux(track):
            if packet.is_corrupt:
                raise containers.truncated(name, 'its last packet is cut')
            if demuxer == 'flac' and packet.size and packet.pts != length:
                raise containers.AudioError(
                    f'{name}: the file is damaged (a frame is missing). Fetch it again, or remove it.'
                )
            packets += packet.size > 0
            for frame in packet.decode():
                block = _samples(frame)
                if blocks and (frame.sample_rate, block.shape[1]) != (rate, blocks[0].shape[1]):
                    raise containers.AudioError(
                        f'{name}: its sample rate or number of channels changes midway. Write it again as WAV.'
                    )
                rate = frame.sample_rate
                blocks.append(block)
                length += len(block)
                containers.check_seconds(name, length, block.shape[1], rate, most)
        counts_packets = demuxer == 'mov' and track.codec_context.name in ('aac', 'alac')
        if counts_packets and packets < track.frames:
            raise containers.truncated(name, f'{packets} of {track.frames} packets are there')
        if not blocks:
            raise containers.AudioError(f'{name}: holds no samples (zero length). Remove it from the data.')
        samples = np.concatenate(blocks)
        if demuxer == 'mov' and track.duration and track.time_base:
            # The last packet is filled up; FFmpeg takes what encoders add off the beginning alone.
            stated = round(track.duration * track.time_base * rate)
            if 0 < length - stated < len(blocks[-1]):
                samples = samples[:stated]
    return samples, rate


def _samples(frame) -> Float32[np.ndarray, 'samples channels']:
    values = frame.to_ndarray()  # [channels, samples] where planar, else [1, samples * channels]
    values = values.T if frame.format.is_planar else values.reshape(frame.samples, -1)
    if np.issubdtype(values.dtype, np.unsignedinteger):
        return (values.astype(np.float32) - 128) / 128  # the one unsigned format has 8 bits
    if np.issubdtype(values.dtype, np.integer):
        return (values / -float(np.iinfo(values.dtype).min)).astype(np.float32)
    return values.astype(np.float32)
