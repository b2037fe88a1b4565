"""Tests of HDF5 files from other projects: stated conventions are used, others detected."""

from __future__ import annotations

import json
import subprocess
import sys

import foreign_hdf5 as files
import h5py
import numpy as np
import pytest
from foreign_files import osc, robosuite_actions, scene
from foreign_hdf5 import COUNT, SENTENCE, aloha, isaac, libero, robocasa, robomimic, scenes

from vla_inference.cli.main import main as vla
from vla_inference.errors import DataError
from vla_inference.policies.action_specs import aloha_spec
from vla_training.conversion.config import ConvertConfig
from vla_training.conversion.convert import convert
from vla_training.datasets import open_dataset
from vla_training.loader.frame_reader import FrameReader


def assert_upright(image: np.ndarray, step: int, tolerance: float = 0) -> None:
    np.testing.assert_allclose(image.astype(int), scene(step), atol=tolerance)


# -- what env_args state ----------------------------------------------------------------------


@pytest.mark.parametrize("env", [osc(), files.osc_1_5()], ids=["robosuite 1.4", "robosuite 1.5"])
def test_the_stated_controller_is_what_actions_are_scaled_by(tmp_path, env):
    settings = env["env_kwargs"]["controller_configs"]
    settings = settings.get("body_parts", {}).get("arms", {}).get("right", settings)
    reach = [0.1, 0.1, 0.1, 0.2, 0.2, 0.2]
    settings |= {"output_max": reach, "output_min": [-r for r in reach]}
    env["env_kwargs"]["control_freq"] = 10
    raw = robosuite_actions(COUNT)
    data = open_dataset(robomimic(tmp_path / "d.hdf5", env, raw, {"agentview_image": scenes()}))
    assert data.spec.dt == 0.1
    np.testing.assert_allclose(data.actions(0)[:, :3], 0.1 * raw[:, :3])
    np.testing.assert_allclose(data.actions(0)[:, 3:6], 0.2 * raw[:, 3:6])
    np.testing.assert_array_equal(data.actions(0)[:, 6], raw[:, 6] < 0)
    assert not any("action_convention" in n for n in data.notes)  # nothing was assumed


def test_deltas_in_the_worlds_axes_are_noted(tmp_path):
    env = files.osc_1_5(input_ref_frame="world")
    path = robomimic(tmp_path / "d.hdf5", env, robosuite_actions(COUNT), {})
    assert "has deltas in the world's axes" in open_dataset(path).notes[0]


def changed(**settings) -> dict:
    env = osc()
    env["env_kwargs"]["controller_configs"] |= settings
    return env


@pytest.mark.parametrize(
    "env, problem",
    [
        (changed(type="JOINT_POSITION"), "the controller JOINT_POSITION, only OSC_POSE is read"),
        (changed(output_max=0.1), "which is not symmetric"),
        (changed(output_max=[1, 2]), "limits of other sizes"),
        (osc(freq=0), "control_freq 0"),
        ({**osc(), "type": 3}, r"type 3 in env_args\), not in robosuite"),
        ("no JSON object", "env_args cannot be read"),
    ],
)
def test_other_controllers_and_simulators_are_refused_with_the_remedy(tmp_path, env, problem):
    path = robomimic(tmp_path / "d.hdf5", env, robosuite_actions(COUNT), {})
    with pytest.raises(DataError, match=f"{problem}.*--read 'action_convention="):
        open_dataset(path)
    stated = {"scale": 0.02, "gripper": "+1 open, -1 closed", "control_freq": 5}
    if isinstance(env, dict):  # the user's word goes first
        data = open_dataset(path, action_convention=stated)
        wanted = 0.02 * robosuite_actions(COUNT)[:, :6]
        np.testing.assert_allclose(data.actions(0)[:, :6], wanted)
        assert data.spec.dt == 0.2


def test_joints_are_read_where_the_user_names_them(tmp_path):
    env = changed(type="JOINT_POSITION")
    raw = np.random.default_rng(0).normal(size=(COUNT, 8))
    path = robomimic(tmp_path / "d.hdf5", env, raw, {"agentview_image": scenes()})
    dims = [{"name": f"joint_{i}", "unit": "rad"} for i in range(8)]
    spec = {"rotation": "joints", "frame": "joints", "dt": 0.05, "dims": dims}
    data = open_dataset(path, action_convention={"spec": spec})
    assert data.spec.names[0] == "joint_0"
    np.testing.assert_array_equal(data.actions(0), raw)


@pytest.mark.parametrize(
    "given, problem",
    [
        ({"scale": [1, 2]}, "2 scales; give a rate above 0 and 6 scales"),
        ({"speed": 1}, "names unknown speed; known: scale"),
        ("joints", "is 'joints'; known: osc_pose, absolute"),
        ([1], r"is \[1\]; give a JSON object"),
    ],
)
def test_a_wrong_action_convention_is_named(tmp_path, given, problem):
    path = robomimic(tmp_path / "d.hdf5", osc(), robosuite_actions(COUNT), {})
    with pytest.raises(DataError, match=problem):
        open_dataset(path, action_convention=given)


def test_deltas_beyond_the_stated_scale_are_refused(tmp_path):
    """Poses under env_args that say delta, as diffusion policy's conversion leaves them."""
    path = files.poses(tmp_path / "d.hdf5", osc(), site=True, behind=0.01)
    with pytest.raises(DataError, match=r"'rx' of step 0 is 2.1.*poses.*\"absolute\": true"):
        open_dataset(path).actions(0)
    data = open_dataset(path, action_convention="absolute")
    np.testing.assert_allclose(data.actions(0)[:, :3], 0.01, atol=1e-9)
    np.testing.assert_allclose(data.actions(0)[:, 3:6], 0, atol=1e-9)


# -- target poses -----------------------------------------------------------------------------


@pytest.mark.parametrize("site", [True, False], ids=["site stored", "hand's body only"])
def test_an_arm_that_stands_still_does_not_turn(tmp_path, site):
    data = open_dataset(files.poses(tmp_path / "d.hdf5", osc(delta=False), site))
    np.testing.assert_allclose(data.actions(0)[:, :6], 0, atol=1e-9)
    assert "contains target poses" in " ".join(data.notes)


def test_the_hand_of_an_unknown_robot_is_not_taken_for_its_grip_site(tmp_path):
    env = osc(delta=False)
    env["env_kwargs"]["robots"] = ["Sawyer"]
    with pytest.raises(DataError, match="for Panda, not for Sawyer; store obs/robot0_eef_quat_s"):
        open_dataset(files.poses(tmp_path / "a.hdf5", env, site=False)).actions(0)
    data = open_dataset(files.poses(tmp_path / "b.hdf5", env, site=True))
    np.testing.assert_allclose(data.actions(0)[:, 3:6], 0, atol=1e-9)


def test_targets_in_other_axes_than_the_arms_pose_are_refused(tmp_path):
    """robosuite 1.5 takes poses in the base's axes, and observes the arm in the world's."""
    env = files.osc_1_5(input_type="absolute", input_ref_frame="base")
    path = files.poses(tmp_path / "d.hdf5", env, site=True, behind=0.5)
    with pytest.raises(DataError, match=r"lie 0.87 m from the arm's: they are in other axes"):
        open_dataset(path).actions(0)
    with h5py.File(path, "a") as file:
        seen = file["data/demo_0/obs"]
        seen["robot0_base_to_eef_pos"] = files.PLACE
        seen["robot0_base_to_eef_quat_site"] = seen["robot0_eef_quat_site"][:]
    np.testing.assert_allclose(open_dataset(path).actions(0)[:, :6], 0, atol=1e-9)


# -- images and sentences ---------------------------------------------------------------------


def test_libero_as_the_benchmark_ships_it(tmp_path):
    path = libero(tmp_path / "libero_demo.hdf5")
    data = open_dataset(path)
    assert data.cameras() == ["agentview", "eye_in_hand"] and data.notes == []
    for step in (0, 5):
        seen = data[1].steps[step].observation
        assert seen.instruction == SENTENCE
        assert_upright(seen.images["agentview"], step)
    images, text = FrameReader(data, ("eye_in_hand",), 1).read(1, 3)  # as training reads
    assert_upright(images[0], 3)
    assert text == SENTENCE
    for kind in ("rlds", "hdf5"):
        out = tmp_path / f"{kind}.hdf5"
        convert(path, out, kind, workers=1)
        again = open_dataset(out)
        assert again[0].instructions == [SENTENCE] * COUNT
        assert_upright(again[0].steps[2].observation.images["agentview"], 2, 30)
        np.testing.assert_allclose(again.actions(0), data.actions(0), atol=1e-6)


def test_libero_rewritten_by_others_is_known_by_its_cameras(tmp_path):
    path = libero(tmp_path / "KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5", stated=False)
    data = open_dataset(path)
    assert "taken for the bottom one, and turned upright" in " ".join(data.notes)
    assert data[0].instructions[0] == "turn on the stove"
    assert_upright(data[0].steps[4].observation.images["agentview"], 4)
    other = open_dataset(path, upside_down=False)
    assert_upright(other[0].steps[4].observation.images["agentview"][::-1], 4)


def test_isaac_lab_is_refused_until_its_actions_are_stated(tmp_path):
    path = isaac(tmp_path / "dataset.hdf5")
    with pytest.raises(DataError, match=r"recorded in Isaac-Stack-Cube.*\(type 2 in env_args\)"):
        open_dataset(path)
    stated = {"scale": 0.5, "gripper": "+1 open, -1 closed", "control_freq": 20}
    data = open_dataset(path, action_convention=stated, instruction="stack the cubes")
    assert data.cameras() == ["table_cam", "wrist_cam"]
    np.testing.assert_array_equal(data.actions(0)[0], [0.5, 0, 0, 0, 0, 0, 1])
    assert_upright(data[0].steps[1].observation.images["table_cam"], 1)
    assert data[0].instructions == ["stack the cubes"] * COUNT


def test_robocasa_has_its_sentence_in_ep_meta(tmp_path):
    data = open_dataset(robocasa(tmp_path / "demo.hdf5"))
    names = ["robot0_agentview_left", "robot0_agentview_right", "robot0_eye_in_hand"]
    assert data.cameras() == names
    assert data[0].instructions == [SENTENCE] * COUNT
    assert_upright(data[0].steps[7].observation.images["robot0_agentview_left"], 7)


def test_an_action_with_more_numbers_than_an_arm_is_read_where_they_are_named(tmp_path):
    """RoboCasa's arm on a base: twelve numbers."""
    raw = np.random.default_rng(0).uniform(-1, 1, (COUNT, 12))
    path = robocasa(tmp_path / "demo.hdf5")
    with h5py.File(path, "a") as file:
        del file["data/demo_0/actions"]
        file["data/demo_0/actions"] = raw
    with pytest.raises(
        DataError, match=r"has shape \(8, 12\), \[T, 7\].*--read action_convention"
    ):
        open_dataset(path).actions(0)
    dims = [{"name": f"number_{i}", "unit": "1"} for i in range(12)]
    data = open_dataset(path, action_convention={"spec": {"dims": dims, "dt": 0.05}})
    np.testing.assert_array_equal(data.actions(0), raw)


TEXTS = {
    "bytes [1]": np.array([SENTENCE.encode()]),
    "scalar": np.array(SENTENCE, object),
    "one a step": np.array([SENTENCE] * COUNT, object),
    "text [1]": np.array([SENTENCE], object),
}


@pytest.mark.parametrize("value", TEXTS.values(), ids=list(TEXTS))
def test_sentences_of_any_shape(tmp_path, value):
    text = h5py.string_dtype("utf-8") if value.dtype == object else None
    for place in ("data/demo_0/language_instruction", "data/demo_0/obs/language", "language_raw"):
        path = tmp_path / f"{place.replace('/', '_')}.hdf5"
        robomimic(path, osc(), robosuite_actions(COUNT), {"agentview_image": scenes()})
        with h5py.File(path, "a") as file:
            file.create_dataset(place, data=value, dtype=text)
        data = open_dataset(path)
        assert data[0].instructions == [SENTENCE] * COUNT and data.notes == []


def test_a_number_of_sentences_that_fits_no_step_is_refused(tmp_path):
    path = robomimic(tmp_path / "d.hdf5", osc(), robosuite_actions(COUNT), {})
    with h5py.File(path, "a") as file:
        file["data/demo_0/language_instruction"] = np.array([b"a b", b"c d"])
    with pytest.raises(DataError, match="language_instruction has 2 entries for 8 actions"):
        open_dataset(path)[0]


def test_without_images_or_sentences_nothing_is_converted_unasked(tmp_path):
    """What robosuite's collection script holds: states and actions."""
    raw = robomimic(tmp_path / "raw.hdf5", osc(), robosuite_actions(COUNT), {})
    out = tmp_path / "set"
    with pytest.raises(DataError, match=r"no images.*render them.*--allow-no-images"):
        convert(raw, out, "lerobot", workers=1, reading={"instruction": "lift the cube"})
    with pytest.raises(DataError, match=r"no sentence.*--instruction.*--allow-no-instructions"):
        convert(raw, out, "lerobot", ConvertConfig(allow_no_images=True), workers=1)
    assert not out.exists()
    config = ConvertConfig(allow_no_images=True, allow_no_instructions=True)
    assert convert(raw, out, "lerobot", config, workers=1).frames == COUNT
    assert "has no images" in " ".join(open_dataset(raw).notes)


def test_embeddings_of_a_sentence_are_no_sentence(tmp_path):
    seen = {"agentview_image": scenes(), "lang_emb": np.zeros((COUNT, 768), np.float32)}
    path = robomimic(tmp_path / "d.hdf5", osc(), robosuite_actions(COUNT), seen)
    data = open_dataset(path)
    assert "only their embeddings (obs/lang_emb): give one with --instruction" in data.notes[0]
    with pytest.raises(DataError, match="no sentence"):
        convert(path, tmp_path / "out", "rlds", workers=1)
    reading = {"instruction": "lift the cube"}
    convert(path, tmp_path / "out", "rlds", workers=1, reading=reading)
    assert open_dataset(tmp_path / "out")[0].instructions == ["lift the cube"] * COUNT


# -- ALOHA ------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "padded JPEG"])
def test_aloha_is_read_with_joints_as_joints(tmp_path, compress):
    path = aloha(tmp_path / "episode_0.hdf5", compress, sentence=True)
    data = open_dataset(path)
    assert data.spec == aloha_spec(0.02)
    assert "50 Hz is assumed" in data.notes[0]
    assert data.cameras() == ["cam_high", "cam_left_wrist", "cam_right_wrist"]
    assert data.left_out() == ["observations/effort", "observations/qvel"]
    np.testing.assert_array_equal(data.actions(0), np.arange(84).reshape(6, 14) / 100)
    step = data[0].steps[4]
    assert step.observation.instruction == SENTENCE
    np.testing.assert_array_equal(step.observation.state, np.full(14, 0.5, np.float32))
    images, _ = FrameReader(data, (), 1).read(0, 4)
    for image in (step.observation.images["cam_high"], images[0]):
        error = np.abs(image.astype(int) - scene(4)).mean()
        assert error < (3 if compress else 1e-9)


def test_a_folder_of_aloha_episodes_is_a_dataset_in_their_order(tmp_path):
    folder = tmp_path / "fold"
    folder.mkdir()
    for number, count in ((10, 5), (2, 4), (0, 6)):
        aloha(folder / f"episode_{number}.hdf5", count=count)
    data = open_dataset(folder, control_freq=25, instruction="fold the shirt")
    assert [len(e) for e in data] == [6, 4, 5] and data.spec.dt == 0.04
    convert(
        folder,
        tmp_path / "out",
        "lerobot",
        workers=1,
        reading={"control_freq": 25, "instruction": "fold the shirt"},
    )
    again = open_dataset(tmp_path / "out")
    assert again.spec == data.spec and again[1].instructions[0] == "fold the shirt"
    np.testing.assert_allclose(again.actions(2), data.actions(2), atol=1e-6)
    with pytest.raises(DataError, match="is an ALOHA recording, which takes no action_convention"):
        open_dataset(folder, action_convention="osc_pose")


def test_an_unknown_layout_is_told_what_it_holds(tmp_path):
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["joints"] = np.zeros(3)
    with pytest.raises(DataError, match=r"it contains joints; robomimic's layout .* and ALOHA's"):
        open_dataset(tmp_path / "x.hdf5")
    with h5py.File(tmp_path / "y.hdf5", "w") as file:
        file["action"], file["observations/qpos"] = np.zeros((4, 7)), np.zeros((4, 7))
    with pytest.raises(DataError, match=r"action has shape \(4, 7\), \[T, 14\] is expected"):
        open_dataset(tmp_path / "y.hdf5")


def test_what_an_isaac_file_says_of_itself_survives_json(tmp_path):
    """env_args may be anything that is JSON."""
    path = robomimic(tmp_path / "d.hdf5", None, robosuite_actions(COUNT), {})
    for value in (json.dumps([1]), json.dumps({"env_kwargs": 3}), "{"):
        with h5py.File(path, "a") as file:
            file["data"].attrs["env_args"] = value
        with pytest.raises(DataError, match="env_args cannot be read"):
            open_dataset(path)


def run(*words: str) -> int:
    return vla(list(words))


def test_the_command_line_takes_what_the_file_does_not_state(tmp_path, capsys):
    path = isaac(tmp_path / "dataset.hdf5")
    assert run("data", "info", str(path)) == 2
    assert "recorded in Isaac-Stack-Cube" in capsys.readouterr().err
    stated = json.dumps({"scale": 0.5, "gripper": "+1 open, -1 closed"})
    words = ["--read", f"action_convention={stated}", "--instruction", "stack the cubes"]
    assert run("data", "info", str(path), "--json", *words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["instruction_episodes"] == {"stack the cubes": 1}
    assert told["action"]["max"][0] == 0.5 and list(told["cameras"]) == ["table_cam", "wrist_cam"]
    out = tmp_path / "out"
    paths = ["--dataset", str(path), "--output", str(out), "--convert", "rlds"]
    assert run("convert", *paths, "--workers", "1", *words) == 0
    assert open_dataset(out)[0].instructions == ["stack the cubes"] * COUNT


def test_robot_data_is_read_and_written_without_the_simulator():
    """Nor is anything of its package imported."""
    modules = ["reader", "writer", "aloha"]
    code = "; ".join(f"import vla_training.datasets.hdf5.{m}" for m in modules)
    code += (
        "; import sys; print([m for m in sys.modules if m.startswith(('vla_sim', 'robosuite'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
