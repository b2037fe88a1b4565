"""Parity with the original OpenVLA and OpenVLA-OFT code (see data/*/README.md).

The full comparison builds the vision encoders at their real size, 700 M random weights, and is
marked slow. The quick one starts from the embeddings that the vision encoders gave in a full run,
which keeps them in data/embeddings.npz; the full one checks that file too.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_inference.openvla.action_tokens import ActionTokens
from vla_inference.openvla.config import ModelConfig
from vla_inference.openvla.llama import RMSNorm
from vla_inference.openvla.model import VLA
from vla_inference.openvla.preprocessing import ImagePreprocessor, PromptTokenizer
from vla_inference.policies.normalisation import Normalisation, find_statistics
from vla_inference.policies.openvla.prediction import OFT_EPSILON

DATA = Path(__file__).parent / "data"
OPENVLA, OFT = DATA / "openvla", DATA / "openvla_oft"
OFT_HEAD = {"type": "l1", "decoding": "parallel", "chunk": 8, "proprio_dim": 8, "num_images": 2}
EMBEDDINGS = DATA / "embeddings.npz"  # "0", "1": float32 [256, 256], of the first two images
CASES, OFT_CASES = range(4), range(3)
GATE = 2e-5
LOGITS_GATE = 3e-6  # an rms_norm_eps of 1e-5 in place of 1e-6 moves them by 7e-6 and must be seen


def read(path: Path):
    return json.loads(path.read_text()) if path.suffix == ".json" else np.load(path)


def reference_weight(key: str, shape: list[int]) -> torch.Tensor:
    """The weight that this name stands for, by the rules of data/openvla/README.md."""
    generator = np.random.Generator(np.random.Philox(zlib.crc32(f"0/{key}".encode())))
    x = generator.standard_normal(int(np.prod(shape)), dtype=np.float32).reshape(shape)
    last = key.split(".")[-1]
    if last == "scale_factor":
        x = 0.5 + 0.1 * x
    elif last == "bias":
        x *= 0.02
    elif len(shape) == 1:
        x = 1 + 0.1 * x
    elif key == "language_model.lm_head.weight":
        x *= 4 / np.sqrt(shape[1])
        x[:31744] = x[32000:] = 0
    elif last in ("cls_token", "reg_token", "pos_embed", "latent", "probe"):
        x *= 0.02
    elif "embed_tokens" in key:
        x *= 0.5
    else:
        x /= np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(x.astype(np.float32, copy=False))


def build(encoders: bool) -> VLA:
    """The OFT model, whose parts include those of the plain one.

    Without its vision encoders on request.
    """
    raw = {**read(OFT / "config.json"), "action_head": OFT_HEAD}
    shapes = {
        **read(OPENVLA / "state_dict_shapes.json"),
        **read(OFT / "extra_state_dict_shapes.json"),
    }
    with torch.device("meta"):
        model = VLA(ModelConfig.from_json(raw))
    if not encoders:
        del model.vision_backbone
    wanted = {k: shapes[k] for k in model.state_dict()}
    for key, parameter in model.state_dict().items():
        assert list(parameter.shape) == wanted[key], key
    with ThreadPoolExecutor(2) as pool:  # NumPy lets go of the GIL while drawing
        drawn = pool.map(reference_weight, wanted.keys(), wanted.values())
        weights = dict(zip(wanted, drawn, strict=True))
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def distance(ours: torch.Tensor, reference: np.ndarray) -> float:
    ours = ours.detach().numpy().reshape(reference.shape)
    return float(np.linalg.norm(ours - reference) / np.linalg.norm(reference))


def prompt_ids(config: ModelConfig, ids: np.ndarray) -> torch.Tensor:
    return torch.tensor([PromptTokenizer(config, None).finish(ids.ravel().tolist())])


def pixels(image: np.ndarray) -> np.ndarray:
    return ImagePreprocessor(ModelConfig.from_json(read(OPENVLA / "config.json")))([image])


def compare_openvla(model: VLA, embeddings: Callable[[int], torch.Tensor], i: int) -> None:
    """Logits, tokens and action of case i, from the image's embeddings on."""
    cases, config = (
        read(OPENVLA / "cases.npz"),
        ModelConfig.from_json(read(OPENVLA / "config.json")),
    )
    text = model.embed_tokens(prompt_ids(config, cases[f"{i}/input_ids"]))
    context = torch.cat([text[:, :1], embeddings(i)[None], text[:, 1:]], dim=1)
    logits = model.action_logits(model.prefill(context)[0])
    assert distance(logits, cases[f"{i}/action_logits"]) < LOGITS_GATE
    tokens = model.generate_tokens(context)[0].numpy()
    np.testing.assert_array_equal(tokens, cases[f"{i}/action_tokens"].ravel())
    _, statistics = find_statistics(config.norm_stats, str(cases[f"{i}/unnorm_key"]))
    normal = ActionTokens(config.action_vocab_end).decode(tokens)
    action = Normalisation.from_statistics(statistics).denormalise(normal)
    np.testing.assert_allclose(action, cases[f"{i}/action"].ravel(), atol=1e-6, rtol=0)


def compare_oft(model: VLA, embeddings: Callable[[int], torch.Tensor], i: int) -> None:
    """Hidden states and both kinds of action chunks of case i."""
    cases, config = read(OFT / "cases.npz"), model.config
    _, statistics = find_statistics(config.norm_stats, "libero_spatial_no_noops")
    bounds = Normalisation.from_statistics(statistics)
    text = model.embed_tokens(prompt_ids(config, cases[f"{i}/input_ids"]))
    images = torch.cat([embeddings(int(j)) for j in cases[f"{i}/images"].ravel()])[None]
    proprio = torch.from_numpy(cases[f"{i}/proprio_normalized"].reshape(1, -1)).float()
    state = model.proprio_projector(proprio)
    context = torch.cat([text[:, :1], images, state, text[:, 1:]], dim=1)
    hidden = model.action_hidden(context)
    assert distance(hidden, cases[f"{i}/action_hidden"]) < GATE
    actions = bounds.denormalise(model.action_head(hidden)[0].double().numpy(), OFT_EPSILON)
    np.testing.assert_allclose(actions, cases[f"{i}/actions_l1"], atol=1e-4, rtol=0)
    without = torch.cat([text[:, :1], images, text[:, 1:]], dim=1)
    normal = ActionTokens(config.action_vocab_end).decode(
        model.parallel_tokens(without)[0].numpy()
    )
    actions = bounds.denormalise(normal, OFT_EPSILON)
    np.testing.assert_allclose(actions, cases[f"{i}/actions_parallel_tokens"], atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def without_encoders():
    return build(encoders=False)


@pytest.mark.parametrize("i", CASES)
def test_pixels(i):
    cases = read(OPENVLA / "cases.npz")
    ours = pixels(cases[f"{i}/image"])
    np.testing.assert_allclose(ours, cases[f"{i}/pixel_values"].reshape(ours.shape), atol=1e-5)


@pytest.mark.parametrize("i", CASES)
def test_projector(without_encoders, i):
    cases = read(OPENVLA / "cases.npz")
    features = torch.from_numpy(cases[f"{i}/vision_features"].reshape(16, -1))
    assert distance(without_encoders.projector(features), cases[f"{i}/projected"]) < GATE


def stored(i: int) -> torch.Tensor:
    return torch.from_numpy(read(EMBEDDINGS)[str(i)])


@pytest.mark.parametrize("i", [0, 1])
def test_tokens_from_embeddings(without_encoders, i):
    compare_openvla(without_encoders, stored, i)


def test_an_ignored_epsilon_would_be_seen(without_encoders):
    norms = [m for m in without_encoders.language_model.modules() if isinstance(m, RMSNorm)]
    assert {m.eps for m in norms} == {1e-6}
    try:
        for norm in norms:
            norm.eps = 1e-5
        with pytest.raises(AssertionError):
            compare_openvla(without_encoders, stored, 0)
    finally:
        for norm in norms:
            norm.eps = 1e-6


def test_chunk_from_embeddings(without_encoders):
    used = [i for i in OFT_CASES if set(read(OFT / "cases.npz")[f"{i}/images"].ravel()) <= {0, 1}]
    assert used
    for i in used:
        compare_oft(without_encoders, stored, i)


@pytest.mark.slow
def test_everything_at_full_size():
    model, cases = build(encoders=True), read(OPENVLA / "cases.npz")
    seen: dict[int, torch.Tensor] = {}
    with torch.inference_mode():
        for i in CASES:
            x = torch.from_numpy(pixels(cases[f"{i}/image"]))[None]
            features = model.vision_backbone(x)
            assert distance(features[0, ::16], cases[f"{i}/vision_features"]) < GATE
            seen[i] = model.projector(features)[0]
            assert distance(seen[i][::16], cases[f"{i}/projected"]) < GATE
        for i in (0, 1):
            assert distance(seen[i], stored(i).numpy()) < GATE
        for i in CASES:
            compare_openvla(model, seen.__getitem__, i)
        for i in OFT_CASES:
            compare_oft(model, seen.__getitem__, i)
        # Two images side by side go through the vision encoders as each alone.
        both = torch.from_numpy(np.concatenate([pixels(cases[f"{i}/image"]) for i in (0, 1)]))
        assert (
            distance(model.embed_images(both[None])[0], torch.cat([seen[0], seen[1]]).numpy())
            < GATE
        )
