"""Map HDR pixels to those of an SDR screen, so that what is as bright as paper stays so and lights do not clip.

signal (..., 3) in [0, 1] of BT.2100 PQ or HLG  ->  (..., 3) uint8 of BT.709
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy import ndarray

WHITE_NITS = 203.0  # diffuse white of HDR (BT.2408), which is white on an SDR screen
PEAK_NITS = 1000.0  # where most HDR is graded to, and HLG's nominal peak
M1, M2, C1, C2, C3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128  # SMPTE ST 2084
A, B, C = 0.17883277, 0.28466892, 0.55991073  # HLG (BT.2100, table 5)
BT2020_LUMA = np.array([0.2627, 0.6780, 0.0593], dtype=np.float32)
BT2020_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], dtype=np.float32
)  # BT.2087


def tone_map(signal: ndarray, transfer: str) -> ndarray:
    """Map a signal (..., 3) of "PQ" or "HLG" to 8 bits; the colour of a pixel stays, its brightness is compressed."""
    nits = DECODERS[transfer](signal) @ BT2020_TO_BT709.T
    brightest = nits.max(axis=-1, keepdims=True).clip(1e-6, None)
    linear = (nits * compress(brightest) / brightest / WHITE_NITS).clip(0, 1)
    return np.rint(255 * linear ** (1 / 2.4)).astype(np.uint8)


def compress(nits: ndarray) -> ndarray:
    """Compress brightness up to PEAK_NITS to WHITE_NITS by a knee in PQ (BT.2390-10, section 5.4.1)."""
    peak, target = encode_pq(np.array([PEAK_NITS, WHITE_NITS], dtype=np.float32))
    level, most = (encode_pq(nits) / peak).clip(0, 1), target / peak
    knee = 1.5 * most - 0.5
    t = ((level - knee) / (1 - knee)).clip(0, 1)
    above = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * most
    return decode_pq(np.where(level < knee, level, above) * peak)


def decode_pq(signal: ndarray) -> ndarray:
    """Return the brightness in nits of a PQ signal."""
    root = np.clip(signal, 0, 1) ** (1 / M2)
    return 10000 * (np.clip(root - C1, 0, None) / (C2 - C3 * root)) ** (1 / M1)


def encode_pq(nits: ndarray) -> ndarray:
    """Return the PQ signal of a brightness in nits."""
    power = (np.clip(nits, 0, 10000) / 10000) ** M1
    return ((C1 + C2 * power) / (1 + C3 * power)) ** M2


def decode_hlg(signal: ndarray) -> ndarray:
    """Return the brightness in nits that an HLG signal has on a screen of 1000 nits."""
    signal = np.clip(signal, 0, 1)
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - C) / A) + B) / 12)
    luma = (scene @ BT2020_LUMA)[..., None].clip(1e-9, None)
    return PEAK_NITS * luma**0.2 * scene


DECODERS = {"PQ": decode_pq, "HLG": decode_hlg}
