"""Small RLDS folders as TFDS writes them, with the features of Open X-Embodiment."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
from foreign_files import jpeg, scene

COUNT = 6
SENTENCE = "route the cable"

_TABLE = []
for _i in range(256):
    _c = _i
    for _ in range(8):
        _c = _c >> 1 ^ (0x82F63B78 if _c & 1 else 0)
    _TABLE.append(_c)


def _crc(data: bytes) -> int:
    c = 0xFFFFFFFF
    for byte in data:
        c = _TABLE[(c ^ byte) & 255] ^ c >> 8
    c ^= 0xFFFFFFFF
    return ((c >> 15 | c << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes(out) + bytes([n])


def _field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(data)) + data


def _feature(values) -> bytes:
    if isinstance(values, list):
        return _field(1, b"".join(_field(1, v) for v in values))
    flat = np.asarray(values).ravel()
    if flat.dtype.kind == "f":
        return _field(2, _field(1, flat.astype("<f4").tobytes()))
    return _field(3, _field(1, b"".join(_varint(int(v) & (1 << 64) - 1) for v in flat)))


TF = "tensorflow_datasets.core.features."


def group(features: dict) -> dict:
    name = TF + "features_dict.FeaturesDict"
    return {"pythonClassName": name, "featuresDict": {"features": features}}


def tensor(dtype: str, *shape: int, encoding: str = "none") -> dict:
    kind = "tensor_feature.Tensor" if shape else "scalar.Scalar"
    dims = {"dimensions": [str(s) for s in shape]} if shape else {}
    about = {"shape": dims, "dtype": dtype, "encoding": encoding}
    return {"pythonClassName": TF + kind, "tensor": about}


def text() -> dict:
    return {"pythonClassName": TF + "text_feature.Text", "text": {}}


def image(*shape: int, dtype: str = "uint8", encoding: str = "jpeg") -> dict:
    dims = {"dimensions": [str(s) for s in shape]}
    about = {"shape": dims, "dtype": dtype, "encodingFormat": encoding}
    return {"pythonClassName": TF + "image_feature.Image", "image": about}


FLAGS = {
    "is_first": tensor("bool"),
    "is_last": tensor("bool"),
    "is_terminal": tensor("bool"),
    "reward": tensor("float32"),
    "discount": tensor("float32"),
}


def flags(count: int) -> dict:
    first, last = np.zeros(count, np.int64), np.zeros(count, np.int64)
    first[0] = last[-1] = 1
    return {
        "steps/is_first": first,
        "steps/is_last": last,
        "steps/is_terminal": last,
        "steps/reward": last.astype(np.float32),
        "steps/discount": np.ones(count, np.float32),
    }


def rlds(root: Path, name: str, steps: dict, episodes: list[dict], version: str = "0.1.0") -> Path:
    """ROOT/NAME/VERSION. steps: features of a step; episodes: flat name -> values."""
    folder = root / name / version
    folder.mkdir(parents=True)
    sequence = {
        "pythonClassName": TF + "dataset_feature.Dataset",
        "sequence": {"feature": group(steps), "length": "-1"},
    }
    (folder / "features.json").write_text(json.dumps(group({"steps": sequence})))
    data = b""
    for episode in episodes:
        entries = (_field(1, k.encode()) + _field(2, _feature(v)) for k, v in episode.items())
        example = _field(1, b"".join(_field(1, e) for e in entries))
        head = struct.pack("<Q", len(example))
        data += head + struct.pack("<I", _crc(head)) + example + struct.pack("<I", _crc(example))
    (folder / f"{name}-train.tfrecord-00000-of-00001").write_bytes(data)
    split = {
        "name": "train",
        "shardLengths": [str(len(episodes))],
        "numBytes": str(len(data)),
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    }
    info = {"fileFormat": "tfrecord", "name": name, "version": version, "splits": [split]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


# -- sets of Open X-Embodiment ----------------------------------------------------------------


def scenes(count: int = COUNT) -> list[bytes]:
    return [jpeg(scene(t)) for t in range(count)]


def oxe(
    root: Path,
    name: str,
    action: dict,
    values: dict,
    seen: dict | None = None,
    stored: dict | None = None,
) -> Path:
    """A set with one camera and the sentence where OXE has it.

    action, seen: features of the action and further ones of the observation; values, stored:
    theirs by flat name below "steps/".
    """
    observation = {
        "image": image(64, 64, 3),
        "natural_language_instruction": tensor("string"),
        "natural_language_embedding": tensor("float32", 4),
        **(seen or {}),
    }
    usual = {
        "observation/image": scenes(),
        "observation/natural_language_instruction": [SENTENCE.encode()] * COUNT,
        "observation/natural_language_embedding": np.zeros((COUNT, 4), np.float32),
        **values,
        **(stored or {}),
    }
    steps = {"action": action, "observation": group(observation), **FLAGS}
    flat = {f"steps/{k}": v for k, v in usual.items()} | flags(COUNT)
    return rlds(root, name, steps, [flat]).parent


def dictionary(parts: dict[str, np.ndarray], dtypes: dict[str, str] | None = None) -> tuple:
    """Features and values of an action that is a dictionary of arrays [T, ...]."""
    dtypes = dtypes or {}
    kinds = {k: tensor(dtypes.get(k, "float32"), *v.shape[1:]) for k, v in parts.items()}
    return group(kinds), {f"action/{k}": v for k, v in parts.items()}


def rt1(root: Path, name: str = "fractal20220817_data", moves=(0, 1, 0, 0, -1, 0)) -> Path:
    """RT-1: the gripper's action is relative, -1 opens and 1 closes."""
    way = np.random.default_rng(0).uniform(-0.02, 0.02, (COUNT, 3)).astype(np.float32)
    parts = {
        "world_vector": way,
        "rotation_delta": 2 * way,
        "gripper_closedness_action": np.array(moves, np.float32)[:, None],
        "base_displacement_vector": np.zeros((COUNT, 2), np.float32),
        "terminate_episode": np.zeros((COUNT, 3), np.int64),
    }
    return oxe(root, name, *dictionary(parts, {"terminate_episode": "int32"}))


def bridge(root: Path) -> Path:
    """Bridge 0.1.0 of Open X-Embodiment."""
    parts = {
        "world_vector": np.full((COUNT, 3), 9, np.float32),
        "rotation_delta": np.full((COUNT, 3), 9, np.float32),
        "open_gripper": np.array([1, 1, 1, 0, 0, 1]),
        "terminate_episode": np.zeros(COUNT, np.float32),
    }
    state = np.cumsum(np.arange(7 * COUNT).reshape(COUNT, 7), 0).astype(np.float32) / 1000
    seen = {"state": tensor("float32", 7)}
    kinds, values = dictionary(parts, {"open_gripper": "bool"})
    return oxe(root, "bridge", kinds, values, seen, {"observation/state": state})


def vectors() -> np.ndarray:
    actions = np.random.default_rng(0).uniform(-0.02, 0.02, (COUNT, 7)).astype(np.float32)
    actions[:, 6] = np.arange(COUNT) % 2
    return actions
