"""MiniVLA: Qwen2.5's decoder, chunks as codes, runs in Prismatic's own layout, 384 pixels."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from torch import Tensor

from vla_inference.checkpoints.hub import check_whole
from vla_inference.checkpoints.load import load_config, load_model
from vla_inference.checkpoints.prismatic import run_config
from vla_inference.checkpoints.prismatic.convert import convert
from vla_inference.checkpoints.quantize import quantize_checkpoint
from vla_inference.checkpoints.random_weights import (
    MINIVLA,
    SIZES,
    STATISTICS,
    TINY,
    TINY_QWEN,
    byte_tokenizer,
    random_config,
    random_model,
    write_random_checkpoint,
)
from vla_inference.checkpoints.safetensors_io import inventory
from vla_inference.engines import make_engine
from vla_inference.engines.compiled import llama_sizes
from vla_inference.errors import CheckpointError, VlaError
from vla_inference.openvla.action_codec import ActionCodec, ChunkTokens
from vla_inference.openvla.config import BACKBONES, CodecConfig, ModelConfig
from vla_inference.openvla.model import VLA
from vla_inference.openvla.preprocessing import PromptTokenizer
from vla_inference.openvla.vision import VisionEncoder
from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_inference.policies.registry import describe_policy, load_policy
from vla_inference.quantization import get_format
from vla_inference.types import Observation

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
CODEC = {"groups": 5, "codes": 64, "latent": 24, "hidden": 16, "scale": 1.5}
VQ = {"type": "vq", "decoding": "autoregressive", "chunk": 3, "codec": CODEC}


# -- Qwen2.5 against transformers ---------------------------------------------------------------


def transformers_tokens(model: VLA, context: Tensor, count: int) -> list[int]:
    """Greedy tokens of all the vocabulary by transformers' Qwen2 on the same weights."""
    transformers = pytest.importorskip("transformers")
    c = model.config.llm
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("num_key_value_heads", "vocab_size", "rms_norm_eps", "tie_word_embeddings")
    rope = {"rope_type": "default", "rope_theta": c.rope_theta}
    theirs = transformers.Qwen2Config(
        **{n: getattr(c, n) for n in names}, rope_parameters=rope, rope_theta=c.rope_theta
    )
    network = transformers.Qwen2ForCausalLM(theirs).eval()
    state = model.language_model.state_dict()
    left = network.load_state_dict(state, strict=False)
    assert not left.unexpected_keys and set(left.missing_keys) <= {"lm_head.weight"}
    network.tie_weights()
    out = network.generate(
        inputs_embeds=context,
        attention_mask=torch.ones(context.shape[:2], dtype=torch.long),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
    )
    return out[0, -count:].tolist()


def all_greedy(model: VLA, context: Tensor, count: int) -> list[int]:
    hidden, cache = model.prefill(context)
    tokens = []
    for _ in range(count):
        token = model.all_logits(hidden).argmax(-1)
        tokens.append(int(token))
        hidden, cache = model.decode(model.embed_tokens(token[:, None]), cache)
    return tokens


def compare(raw: dict[str, Any], count: int, length: int) -> None:
    model = random_model(raw)
    generator = torch.Generator().manual_seed(1)
    context = torch.randn(1, length, model.config.llm.hidden_size, generator=generator)
    with torch.inference_mode():
        assert all_greedy(model, context, count) == transformers_tokens(model, context, count)


@pytest.mark.parametrize("tied", [True, False])
def test_a_small_decoder_speaks_the_tokens_of_transformers(tied):
    raw = random_config(TINY_QWEN, "tokens")
    raw["text_config"] = {**raw["text_config"], "tie_word_embeddings": tied}
    compare(raw, 24, 11)


@pytest.mark.slow
def test_qwen_of_the_published_shape_speaks_the_tokens_of_transformers():
    raw = random_config(TINY, "tokens") | {"text_config": MINIVLA["text_config"]}
    compare({**raw, "pad_to_multiple_of": 15}, 12, 300)


def test_the_decoder_has_biases_and_no_output_layer_of_its_own():
    with torch.device("meta"):
        names = set(VLA(ModelConfig.from_json(random_config("minivla-vq"))).state_dict())
    assert "language_model.model.layers.23.self_attn.k_proj.bias" in names
    assert "language_model.model.layers.0.self_attn.o_proj.bias" not in names
    assert "language_model.lm_head.weight" not in names
    assert not any("layers.24" in n for n in names)


@pytest.mark.parametrize(
    "change",
    [{"use_sliding_window": True}, {"attention_bias": True}, {"model_type": "qwen3"}],
)
def test_another_network_is_refused(change):
    raw = random_config(TINY_QWEN, "tokens")
    raw["text_config"] = {**raw["text_config"], **change}
    with pytest.raises(CheckpointError, match=next(iter(change))):
        ModelConfig.from_json(raw)


def test_a_sliding_window_that_is_not_used_is_none():
    raw = random_config(TINY_QWEN, "tokens")
    unused = {"sliding_window": 32768, "use_sliding_window": False, "max_window_layers": 24}
    raw["text_config"] = {**raw["text_config"], **unused}
    assert ModelConfig.from_json(raw).llm.qkv_bias


def test_compilers_refuse_it():
    llm = ModelConfig.from_json(random_config(TINY_QWEN, "tokens")).llm
    with pytest.raises(VlaError, match="engine torch or plain"):
        llama_sizes(llm)
    plain = ModelConfig.from_json(random_config("tiny", "tokens")).llm
    assert {"qkv_bias", "tie_word_embeddings"}.isdisjoint(llama_sizes(plain))


# -- codes of chunks ----------------------------------------------------------------------------


def random_codec(c: CodecConfig, numbers: int, seed: int = 0) -> ActionCodec:
    torch.manual_seed(seed)
    codec = ActionCodec(c, numbers).requires_grad_(False)
    torch.nn.init.normal_(codec.codebooks, std=0.5)
    return codec


def numpy_mlp(x: np.ndarray, state: dict[str, np.ndarray], part: str) -> np.ndarray:
    inner = sorted(k for k in state if k.startswith(f"{part}.encoder.") and "weight" in k)
    for key in inner:
        x = np.maximum(x @ state[key].T + state[key.replace("weight", "bias")], 0)
    return x @ state[f"{part}.fc.weight"].T + state[f"{part}.fc.bias"]


@given(seed=st.integers(0, 1000), layers=st.integers(0, 2), groups=st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_codes_mean_what_an_independent_reference_says(seed, layers, groups):
    c = CodecConfig(groups, 16, 12, hidden=10, layers=layers, scale=2.0)
    codec = random_codec(c, 6, seed)
    state = {k: v.double().numpy() for k, v in codec.state_dict().items()}
    tokens = ChunkTokens(codec, 500, 2)
    rng = np.random.default_rng(seed)
    chunks = rng.uniform(-1, 1, (4, 3, 2))
    # Residual quantisation: each codebook's nearest entry to what is left.
    rest = numpy_mlp(chunks.reshape(4, 6) / c.scale, state, "encoder")
    codes = np.zeros((4, groups), int)
    for g, book in enumerate(state["codebooks"]):
        codes[:, g] = ((rest[:, None] - book[None]) ** 2).sum(-1).argmin(1)
        rest = rest - book[codes[:, g]]
    ids = tokens.encode(chunks)
    np.testing.assert_array_equal(ids, 499 - codes)
    latent = sum(state["codebooks"][g][codes[:, g]] for g in range(groups))
    wanted = numpy_mlp(latent, state, "decoder") * c.scale
    np.testing.assert_allclose(
        tokens.decode(ids[:, None]), wanted.reshape(4, 3, 2), rtol=1e-5, atol=1e-5
    )


@given(st.lists(st.integers(0, 15), min_size=3, max_size=3))
@settings(max_examples=30, deadline=None)
def test_tokens_of_a_lossless_codec_return(codes):
    """A number's three digits: each codebook's entries lie in the middle of what may follow."""
    codec = ActionCodec(CodecConfig(3, 16, 1, hidden=2, layers=0), 1).requires_grad_(False)
    digit = torch.arange(16.0)
    books = [digit * 256 + 127.5, digit * 16 - 120, digit - 7.5]
    codec.codebooks.copy_(torch.stack(books)[..., None])
    for part in (codec.encoder, codec.decoder):  # x = relu(x) - relu(-x)
        part.encoder[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        part.fc.weight.copy_(torch.tensor([[1.0, -1.0]]))
        for layer in (part.encoder[0], part.fc):
            layer.bias.zero_()
    tokens = ChunkTokens(codec, 100, 1)
    number = tokens.decode(99 - np.array([[codes]]))
    assert number[0, 0, 0] == codes[0] * 256 + codes[1] * 16 + codes[2]
    assert (99 - tokens.encode(number)).tolist() == [codes]


def test_a_token_that_is_no_code_is_refused():
    tokens = ChunkTokens(random_codec(CodecConfig(**CODEC), 21), 512, 7)
    for wrong in (512, 447):
        with pytest.raises(VlaError, match="not all action tokens"):
            tokens.decode(np.full((1, 1, 5), wrong))


@pytest.mark.parametrize("engine", ["plain", "torch"])
def test_a_policy_answers_by_whole_chunks(tmp_path, engine):
    folder = write_random_checkpoint(tmp_path, TINY_QWEN, VQ)
    policy = OpenVLAPolicy.from_pretrained(folder, device="cpu", engine=engine)
    seen = Observation({"a": IMAGE}, "lift it")
    chunk = policy.predict_action(seen, action_space="normalized", count_unrestricted=True)
    assert chunk.actions.shape == (3, 7) and chunk.tokens.shape == (1, 5)
    wanted = policy.tokens.decode(chunk.tokens[None])[0]
    np.testing.assert_allclose(chunk.actions, wanted, rtol=1e-6)
    parts: list = []
    streamed = policy.predict_action(seen, action_space="normalized", stream=parts.append)
    assert len(parts) == 21 and (streamed.actions == chunk.actions).all()
    two = policy.predict_batch([seen, seen], action_space="normalized")
    np.testing.assert_array_equal(two[1].tokens, chunk.tokens)


@pytest.mark.parametrize("head", ["tokens", "l1", VQ])
def test_the_cpu_engine_answers_as_the_plain_one(tmp_path, head):
    folder = write_random_checkpoint(tmp_path, TINY_QWEN, head)
    plain, fast = (
        OpenVLAPolicy.from_pretrained(folder, device="cpu", engine=engine)
        for engine in ("plain", "torch")
    )
    assert fast.engine.name == "torch"
    for text in ("lift it", "put the red block on the green one"):
        a, b = (p.predict_action(Observation({"a": IMAGE}, text)) for p in (plain, fast))
        np.testing.assert_allclose(a.actions, b.actions, atol=2e-5)


def test_the_codec_stays_in_float32_and_weights_can_be_quantised(tmp_path):
    folder = write_random_checkpoint(tmp_path / "a", TINY_QWEN, VQ)
    model = load_model(folder, dtype=torch.bfloat16)
    assert model.action_codec.codebooks.dtype == torch.float32
    assert model.language_model.model.norm.weight.dtype == torch.bfloat16
    quantize_checkpoint(folder, tmp_path / "q", get_format("int8"), "rtn")
    policy = OpenVLAPolicy.from_pretrained(tmp_path / "q", device="cpu")
    whole = OpenVLAPolicy.from_pretrained(folder, device="cpu", quantization="int8")
    layer = whole.model.language_model.model.layers[0].self_attn.q_proj
    assert layer.bias is not None
    seen = Observation({"a": IMAGE}, "lift it")
    a, b = (p.predict_action(seen).tokens for p in (policy, whole))
    np.testing.assert_array_equal(a, b)


# -- 384 pixels ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "backbone, patches",
    [
        ("dinosiglip-vit-so-384px", 729),
        ("siglip-vit-so400m-384px", 729),
        ("siglip-vit-b16-384px", 576),
        ("dinosiglip-vit-so-224px", 256),
    ],
)
def test_position_embeddings_are_one_per_patch(backbone, patches):
    with torch.device("meta"):
        for c in BACKBONES[backbone]:
            encoder = VisionEncoder(dataclasses.replace(c, depth=2))
            assert encoder.pos_embed.shape == (1, patches, c.embed_dim)
            out = encoder(torch.empty(1, 3, c.image_size, c.image_size))
            assert out.shape == (1, patches, c.embed_dim)


@pytest.mark.parametrize("engine", ["plain", "torch"])
def test_384_pixels_are_27_by_27_patches_of_14_and_a_rest(engine):
    """The last 6 pixels each way are cut off, as a convolution of stride 14 does."""
    few = dict(depth=2, embed_dim=32, num_heads=2, mlp_hidden=64)
    encoders = tuple(dataclasses.replace(c, **few) for c in BACKBONES["dinosiglip-vit-so-384px"])
    raw = random_config(TINY_QWEN, "tokens") | {"arch_specifier": "no-align+fused-gelu-mlp"}
    config = dataclasses.replace(
        ModelConfig.from_json(raw), encoders=encoders, projector="fused-gelu-mlp"
    )
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in VLA(config).state_dict().items()}
    model = VLA(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    drawn = {k: 0.1 * torch.randn(s, generator=generator) for k, s in shapes.items()}
    model.load_state_dict(drawn)
    made = make_engine(engine, model)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 1, 384, 384, 3), np.uint8)
    other = pixels.copy()
    other[:, :, 378:], other[:, :, :, 378:] = 0, 255
    ids = torch.tensor([[4, 5, 6]])
    a, b = (made.observe(ids, torch.from_numpy(p)) for p in (pixels, other))
    assert a.shape == (1, 3 + 729, 64)
    torch.testing.assert_close(a, b)
    plain = make_engine("plain", model).observe(ids, torch.from_numpy(pixels))
    torch.testing.assert_close(a, plain, rtol=1e-4, atol=1e-5)


# -- runs in Prismatic's own layout ---------------------------------------------------------------


NATIVE = {
    "vision_backbone.featurizer.": ("vision_backbone", "dino_featurizer."),
    "vision_backbone.fused_featurizer.": ("vision_backbone", "siglip_featurizer."),
    "projector.fc1.": ("projector", "projector.0."),
    "projector.fc2.": ("projector", "projector.2."),
    "projector.fc3.": ("projector", "projector.4."),
    "language_model.": ("llm_backbone", "llm."),
}


def write_run(
    folder: Path, monkeypatch: Any, vla: dict[str, Any] | None = None, vq: bool = False
) -> VLA:
    """A run of tiny shapes in Prismatic's layout, and the same model in ours."""
    few = dict(image_size=56, depth=2, embed_dim=32, num_heads=2, mlp_hidden=64)
    encoders = tuple(dataclasses.replace(c, **few) for c in BACKBONES["dinosiglip-vit-so-224px"])
    monkeypatch.setitem(BACKBONES, "dinosiglip-vit-so-224px", encoders)
    sizes = {**TINY_QWEN["text_config"]}
    rows = sizes.pop("vocab_size")
    monkeypatch.setitem(run_config.DECODERS, "qwen25-0_5b-extra", sizes)
    monkeypatch.setattr(run_config, "QWEN_TOKENS", rows - 256 - 3)
    monkeypatch.setattr(run_config, "QWEN_END_OF_TURN", 2)
    raw = random_config("minivla-vq" if vq else "minivla")
    codec = {"groups": 5, "codes": 64, "latent": 24, "hidden": 16}
    if vq:
        raw["action_head"] = {**VQ, "codec": codec}
        raw["n_action_bins"] = 64
    raw |= {"text_config": {**sizes, "vocab_size": rows}, "pad_to_multiple_of": 3}
    raw |= {"norm_stats": STATISTICS, "stop_token_id": 2}
    model = random_model(raw)
    parts: dict[str, dict[str, Tensor]] = {p: {} for p in ("vision_backbone", "projector")}
    parts["llm_backbone"] = {}
    for key, tensor in model.state_dict().items():
        for ours, (part, theirs) in NATIVE.items():
            if key.startswith(ours):
                native = (theirs + key.removeprefix(ours)).replace("scale_factor", "gamma")
                parts[part][native] = tensor
    words = parts["llm_backbone"]["llm.model.embed_tokens.weight"]
    parts["llm_backbone"]["llm.lm_head.weight"] = words.clone()
    parts["vision_backbone"]["siglip_featurizer.norm.weight"] = torch.ones(32)
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"model": parts}, folder / "checkpoints" / "step-000100-epoch-01-loss=0.5.pt")
    about = {
        "vla_id": "prism-qwen25-dinosiglip-224px+0_5b+mx-libero-90",
        "base_vlm": "pretrained/prism-qwen25-extra-dinosiglip-224px-0_5b",
        "action_tokenizer": "libero_vq_extra_action_tokenizer" if vq else "extra_action_tokenizer",
        "image_sequence_len": 1,
        "use_wrist_image": False,
        **(vla or {}),
    }
    write(folder / "config.json", {"vla": about, "seed": 7, "image_aug": True})
    write(folder / "dataset_statistics.json", STATISTICS)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    if vq:
        write_codec(folder / "vq" / "pretrain_vq+mx-libero_90", model.action_codec)
    return model


def write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content))


def write_codec(folder: Path, codec: ActionCodec) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    groups, codes, latent = codec.codebooks.shape
    about = {"input_dim_h": 3, "input_dim_w": 7, "n_latent_dims": latent, "vqvae_n_embed": codes}
    write(folder / "config.json", {**about, "vqvae_groups": groups, "obs_dim": 60})
    books: dict[str, Tensor] = {}
    for i, book in enumerate(codec.codebooks):
        books[f"layers.{i}._codebook.embed"] = book[None].clone()
        books[f"layers.{i}._codebook.initted"] = torch.tensor([True])
    state: dict[str, Any] = {p: getattr(codec, p).state_dict() for p in ("encoder", "decoder")}
    optimizer = {"state": {}, "param_groups": [{"lr": 1e-3}]}
    state |= {"vq_embedding": books, "optimizer": optimizer}
    torch.save(state, folder / "checkpoints" / "model.pt")


@pytest.mark.parametrize("vq", [False, True])
def test_a_run_answers_as_the_same_weights_in_the_released_layout(tmp_path, monkeypatch, vq):
    model = write_run(tmp_path / "run", monkeypatch, vq=vq)
    policy = load_policy(tmp_path / "run", device="cpu", engine="plain")
    assert isinstance(policy, OpenVLAPolicy)
    config = policy.config
    assert (config.bos_token_id, config.empty_token_id, config.center_crop) == (None, None, 0.9)
    assert config.encoders[0].mean == (0.485, 0.456, 0.406)
    assert config.action_vocab_end == config.llm.vocab_size - 3
    for key, tensor in model.state_dict().items():
        assert torch.equal(policy.model.state_dict()[key], tensor), key
    seen = Observation({"a": IMAGE}, "lift it")
    chunk = policy.predict_action(seen)
    assert chunk.actions.shape == ((3, 7) if vq else (1, 7))
    text = str(describe_policy(tmp_path / "run"))
    assert "by Prismatic's registry" in text and "image_aug" in text
    converted = convert(tmp_path / "run", tmp_path / "folder")
    again = load_policy(converted, device="cpu", engine="plain")
    np.testing.assert_array_equal(again.predict_action(seen).actions, chunk.actions)
    assert {k.rpartition(".")[0] for _, h in inventory(converted) for k in h}
    assert load_config(converted).encoders == config.encoders


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_policy(folder, device="cpu")
    return f"{caught.value} {caught.value.remedy}"


def test_what_a_run_does_not_say_is_asked_for(tmp_path, monkeypatch):
    run = tmp_path / "run"
    write_run(run, monkeypatch, {"base_vlm": "my-own-vlm"})
    message = refusal(run)
    assert "my-own-vlm" in message and "llm_backbone_id" in message and "vla.json" in message
    base = run_config.BASES["prism-qwen25-extra-dinosiglip-224px+0_5b"]._asdict()
    write(run / "vla.json", base)
    assert load_config(run).projector == "fused-gelu-mlp"
    write(run / "vla.json", {**base, "llm_backbone_id": "gemma"})
    assert "whose sizes are not known" in refusal(run)


def test_the_codes_of_chunks_are_asked_for(tmp_path, monkeypatch):
    tokenizer = {"action_tokenizer": "libero_vq_extra_action_tokenizer"}
    write_run(tmp_path / "run", monkeypatch, tokenizer)
    assert "Stanford-ILIAD/pretrain_vq" in refusal(tmp_path / "run")


@pytest.mark.parametrize("fault", ["untied", "frozen", "two", "cut", "code", "neither"])
def test_a_broken_run_gives_one_clear_error(tmp_path, monkeypatch, fault):
    run = tmp_path / "run"
    write_run(run, monkeypatch, vq=True)
    path = next((run / "checkpoints").glob("*.pt"))
    content = torch.load(path, weights_only=True)
    if fault == "untied":
        content["model"]["llm_backbone"]["llm.lm_head.weight"][3, 3] += 1
    elif fault == "frozen":
        del content["model"]["vision_backbone"]
    torch.save(content, path)
    if fault == "two":
        torch.save(content, path.with_name("step-2.pt"))
    elif fault == "cut":
        path.write_bytes(path.read_bytes()[:-5000])
    elif fault == "code":
        torch.save({"model": write_run}, path)
    elif fault == "neither":
        write(run / "config.json", {"seed": 7})
    wanted = {
        "untied": "differs from its embeddings",
        "frozen": "were frozen",
        "two": "latest-checkpoint.pt",
        "cut": "cannot be read",
        "code": "cannot be read",
        "neither": "neither 'vla' nor 'model'",
    }
    assert wanted[fault] in refusal(run)


def test_a_codec_that_is_cut_or_another_is_refused(tmp_path, monkeypatch):
    run = tmp_path / "run"
    write_run(run, monkeypatch, vq=True)
    path = next((run / "vq").rglob("model.pt"))
    state = torch.load(path, weights_only=True)
    more = {**state["vq_embedding"], "project_in.weight": torch.ones(2, 2)}
    torch.save({**state, "vq_embedding": more}, path)
    assert "plain residual quantiser" in refusal(run)
    torch.save({k: v for k, v in state.items() if k != "decoder"}, path)
    assert "decoder" in refusal(run)
    path.unlink()
    assert "is missing" in refusal(run)


def test_commands_that_read_weights_name_the_conversion(tmp_path, monkeypatch):
    write_run(tmp_path / "run", monkeypatch)
    with pytest.raises(CheckpointError) as caught:
        quantize_checkpoint(tmp_path / "run", tmp_path / "q", get_format("int8"), "rtn")
    assert "prismatic.convert" in caught.value.remedy and not (tmp_path / "q").exists()


def test_the_hub_has_but_a_part_of_a_run():
    names = ["config.json", "checkpoints/step-1.pt", "dataset_statistics.json"]
    with pytest.raises(CheckpointError) as caught:
        check_whole(names, "me/minivla")
    assert "hf download me/minivla" in caught.value.remedy
    check_whole([*names, "model.safetensors"], "me/minivla")


def test_the_prompt_is_qwens_and_its_first_token_stands_before_the_image():
    config = ModelConfig.from_json(random_config("minivla"))
    pieces = ["<|im_start|>", "<|im_end|>"]
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(pieces)
    assert isinstance(tokenizer, Tokenizer)
    ids = PromptTokenizer(config, tokenizer)("Lift IT")
    start, end = (tokenizer.token_to_id(p) for p in pieces)
    assert ids[0] == start and ids.count(start) == 3 and ids.count(end) == 2
    text = tokenizer.decode(ids, skip_special_tokens=False)
    assert text.endswith("robot take to lift it?<|im_end|>\n<|im_start|>assistant\n")


def test_the_published_sizes_are_what_the_ids_say():
    raw = SIZES["minivla"]
    config = ModelConfig.from_json(random_config("minivla"))
    assert config.action_vocab_end == run_config.QWEN_TOKENS + run_config.QWEN_EXTRA == 151921
    assert raw["text_config"] == {**run_config.QWENS["0_5b"], "vocab_size": 151936}
    with torch.device("meta"):
        count = sum(p.numel() for p in VLA(config).language_model.parameters())
    assert count == 494_032_768  # Qwen2.5-0.5B, whose embeddings have as many rows
