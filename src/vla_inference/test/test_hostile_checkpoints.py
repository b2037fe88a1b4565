"""Tests of damaged settings in LeRobot's folders: accepted, or refused by one clear error."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lerobot_reference import act_weight, pi_weight, smolvla_weight, write_checkpoint

from vla_inference.errors import CheckpointError, VlaError
from vla_inference.policies.base import LoadOptions
from vla_inference.policies.lerobot.settings import Settings
from vla_inference.policies.registry import check_policy, describe_policy, load_policy

CPU = LoadOptions(device="cpu", dtype="float32", engine="plain")
WEIGHTS = {"act": act_weight, "pi05": pi_weight, "smolvla": smolvla_weight}
GONE = object()
HOSTILE = [GONE, None, "x", "", -1, 0, 1.5, True, 10**12, [], [1], ["x"], {}, {"x": 1}, [{}]]
HOSTILE += [math.nan, math.inf]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("home")
    return {f: write_checkpoint(home / f, f, w, f == "pi05") for f, w in WEIGHTS.items()}


@pytest.fixture
def act(folders) -> Iterator[Path]:
    """The settings may be changed; they are put back."""
    texts = {path: path.read_text() for path in folders["act"].glob("*.json")}
    yield folders["act"]
    for path, text in texts.items():
        path.write_text(text)


def places(node: Any, path: tuple = ()) -> Iterator[tuple]:
    """Where something stands in JSON, parts of it included."""
    yield path
    if isinstance(node, (dict, list)):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from places(child, (*path, key))


def changed(node: Any, path: tuple, value: Any) -> Any:
    if not path:
        return value
    node = at = copy.deepcopy(node)
    for key in path[:-1]:
        at = at[key]
    if value is GONE:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return node


@pytest.mark.parametrize("family", WEIGHTS)
def test_any_setting_may_be_damaged(folders, family):
    folder = folders[family]
    files = [f for f in folder.glob("*.json") if f.name != "tokenizer.json"]
    cases = [
        (file, path, value)
        for file in sorted(files)
        for path in places(json.loads(file.read_text()))
        for value in HOSTILE
        if path or value is not GONE
    ]
    refused = 0
    for file, path, value in random.Random(0).sample(cases, 60):
        text = file.read_text()
        file.write_text(json.dumps(changed(json.loads(text), path, value)))
        try:
            check_policy(folder, CPU)
            describe_policy(folder)
        except VlaError as error:
            refused += 1
            assert error.remedy and len(str(error)) < 600, (file.name, path, value)
        except Exception as error:
            pytest.fail(f"{file.name}, {path} = {value!r}: {error!r}")
        finally:
            file.write_text(text)
    assert 8 < refused < 60
    check_policy(folder, CPU)


@pytest.mark.parametrize(
    "file, path, value, problem",
    [
        ("config.json", ("input_features",), GONE, r"config\.json lacks input_features"),
        ("config.json", ("output_features",), None, "output_features is None; give an object"),
        ("config.json", ("input_features", "observation.state", "shape"), [], "shape is"),
        ("config.json", ("input_features", "observation.images.top", "shape"), [3], "height"),
        ("config.json", ("n_encoder_layers",), 10**12, "give a count of 1 to 1000"),
        ("config.json", ("dropout",), "much", "dropout is 'much'; give a number of 0 to 1"),
        ("config.json", ("use_vae",), "no", "use_vae is 'no'; give true or false"),
        ("policy_preprocessor.json", ("steps", 0, "config", "rename_map"), [1], "rename_map is"),
        ("policy_preprocessor.json", ("steps", 3, "config", "norm_map"), "x", "norm_map is 'x'"),
        ("policy_preprocessor.json", ("steps", 3, "config"), [], "config is"),
    ],
)
def test_the_setting_and_the_remedy_are_named(act, file, path, value, problem):
    raw = json.loads((act / file).read_text())
    (act / file).write_text(json.dumps(changed(raw, path, value)))
    with pytest.raises(CheckpointError, match=problem):
        check_policy(act, CPU)


def test_two_cameras_of_one_name_are_refused(act):
    path = act / "policy_preprocessor.json"
    raw = json.loads(path.read_text())
    name = "observation.images.top"
    raw["steps"][0]["config"]["rename_map"] = {name: "observation.images.left_wrist"}
    path.write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="cameras top, top have one name"):
        check_policy(act, CPU)


def test_sizes_that_the_weights_have_not_are_refused_before_memory_is_taken(act):
    raw = json.loads((act / "config.json").read_text())
    (act / "config.json").write_text(json.dumps({**raw, "dim_feedforward": 10**6}))
    with pytest.raises(CheckpointError, match=r"the configuration says \[1000000"):
        load_policy(act, CPU)  # 11 GB if it tried


def test_a_null_stands_for_the_usual_value():
    says = Settings("config.json", {"a": None, "b": 2})
    assert says.count("a", 3) == 3 and says.count("b", 3) == 2
    with pytest.raises(CheckpointError, match=r"config\.json: a is None; give a count of 1 to"):
        says.count("a")
