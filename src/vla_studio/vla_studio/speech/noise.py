"""Takes steady noise, as of fans and motors, away from an utterance: spectral subtraction."""

from __future__ import annotations

import numpy as np

from vla_studio.speech.audio import Samples

LENGTH, HOP = 400, 100  # samples of a window, and from one to the next: 25 ms, 6 ms
QUIET = 0.2  # share of the windows, the quietest, that are taken to be noise alone
STRENGTH = 1.5  # of the noise's power: its share that is taken away
FLOOR = 0.1  # of the amplitude, what is left at least: less sounds like water
SHORTEST = 4 * LENGTH  # samples; fewer are left as they are


def without_noise(samples: Samples) -> Samples:
    """The same number of samples. Audio without noise stays nearly as it is."""
    if len(samples) < SHORTEST:
        return samples
    window = np.hanning(LENGTH + 1)[:-1]
    padded = np.pad(samples, (LENGTH, LENGTH - len(samples) % HOP))
    starts = np.arange(0, len(padded) - LENGTH + 1, HOP)
    places = starts[:, None] + np.arange(LENGTH)
    spectrum = np.fft.rfft(padded[places] * window)
    power = np.abs(spectrum) ** 2
    inner = power[LENGTH // HOP : -(LENGTH // HOP)]  # without what was padded
    quietest = np.argsort(inner.sum(1))[: max(3, int(QUIET * len(inner)))]
    noise = inner[quietest].mean(0)
    gain = np.sqrt(np.maximum(1 - STRENGTH * noise / np.maximum(power, 1e-12), FLOOR**2))
    gain[1:-1] = (gain[:-2] + gain[1:-1] + gain[2:]) / 3
    pieces = np.fft.irfft(spectrum * gain, LENGTH) * window
    total, weight = np.zeros(len(padded)), np.full(len(padded), 1e-3)
    np.add.at(total, places, pieces)
    np.add.at(weight, places, np.broadcast_to(window**2, places.shape))
    return (total / weight)[LENGTH : LENGTH + len(samples)].astype(np.float32)
