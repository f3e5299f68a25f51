"""Synthesized speech in noise for Silero VAD."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime as ort
from common import CALIBRATION, SEED, float_model
from printed import WORDS
from scipy.io import wavfile
from scipy.signal import resample_poly
from simplify_models import Missing

RATE, CHUNK, CONTEXT, STEPS = 16_000, 512, 64, 156
"""Samples a second, samples a chunk and of the one before it, chunks a clip (5 seconds)."""

TO_CALIBRATE, TO_TEST, LOUD = 8, 40, 0.02
"""Clips, and the root mean square beyond which clean sound counts as speech."""

VOICES = ("en", "en-us+f3", "en+m5", "de", "fr+f2", "es", "it+m3")


def voice_activity(place: Path) -> None:
    """Clips of phrases and pauses in noise; a chunk is speech where the clean sound is."""
    if shutil.which("espeak-ng") is None:
        raise Missing("apt-get install espeak-ng")
    (place / "float.onnx").write_bytes(float_model("Silero VAD 16 kHz").read_bytes())
    chooser, numbers = random.Random(SEED), np.random.default_rng(SEED)
    pairs = [clip(chooser, numbers, place / "phrase.wav") for _ in range(TO_CALIBRATE + TO_TEST)]
    clips, speech = (np.stack(column) for column in zip(*pairs, strict=True))
    np.savez(place / "calibration.npz", **heard(place / "float.onnx", clips[:TO_CALIBRATE]))
    np.savez(place / "test.npz", clips=clips[TO_CALIBRATE:], y=speech[TO_CALIBRATE:])


def clip(chooser: random.Random, numbers: np.random.Generator, file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Sound, float32 (STEPS, CHUNK), and whether each chunk is speech."""
    clean = np.zeros(STEPS * CHUNK, np.float32)
    at = chooser.randint(0, RATE)
    while at < len(clean):
        said = phrase(chooser, file)[: len(clean) - at]
        clean[at : at + len(said)] = said
        at += len(said) + chooser.randint(RATE // 2, 2 * RATE)
    power = np.convolve(clean**2, np.ones(CHUNK) / CHUNK, "same")
    spoken = (np.sqrt(power) > LOUD).reshape(STEPS, CHUNK).mean(axis=1) > 0.5
    return (clean + noise(chooser, numbers)).astype(np.float32).reshape(STEPS, CHUNK), spoken


def phrase(chooser: random.Random, file: Path) -> np.ndarray:
    """A few words by a synthesizer, at RATE."""
    text = " ".join(chooser.choice(WORDS) for _ in range(chooser.randint(2, 5)))
    speed, pitch = str(chooser.randint(120, 200)), str(chooser.randint(20, 80))
    command = ["espeak-ng", "-v", chooser.choice(VOICES), "-s", speed, "-p", pitch, "-w", str(file), text]
    subprocess.run(command, check=True, capture_output=True)
    rate, sound = wavfile.read(file)
    file.unlink()
    return np.asarray(resample_poly(sound / 32_768, RATE, rate) * chooser.uniform(0.4, 1), np.float32)


def noise(chooser: random.Random, numbers: np.random.Generator) -> np.ndarray:
    """White, brown or humming noise of random loudness."""
    white = numbers.normal(0, 1, STEPS * CHUNK)
    brown = np.cumsum(white) - np.convolve(np.cumsum(white), np.ones(400) / 400, "same")
    hum = np.sin(2 * np.pi * chooser.choice((50, 60, 440)) * np.arange(STEPS * CHUNK) / RATE) + 0.1 * white
    made = chooser.choice((white, brown, hum))
    return np.asarray(made / made.std() * 10 ** chooser.uniform(-4, -1.7))


def heard(model: Path, clips: np.ndarray) -> dict[str, np.ndarray]:
    """What the model is fed while it goes through the clips: CALIBRATION of its steps, evenly spread."""
    session, feeds = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"]), []
    for sound in clips:
        state, context = np.zeros((2, 1, 128), np.float32), np.zeros(CONTEXT, np.float32)
        for chunk in sound:
            feed = {"input": np.concatenate([context, chunk])[None], "state": state, "sr": np.array(RATE, np.int64)}
            feeds.append(feed)
            state, context = session.run(["stateN"], feed)[0], chunk[-CONTEXT:]
    kept = feeds[:: max(1, len(feeds) // CALIBRATION)]
    return {name: np.stack([feed[name] for feed in kept]) for name in kept[0]}
