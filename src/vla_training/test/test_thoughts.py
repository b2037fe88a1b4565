"""What the small model is to think, from the simulator's record, and that it learns to."""

from __future__ import annotations

import json
from dataclasses import replace

import h5py
import mujoco
import numpy as np
import pytest
import torch
from small_runs import TINY, make_frames, make_trainer

from vla_inference.errors import DataError, VlaError
from vla_inference.openvla.config import PROMPTS
from vla_inference.policies.reasoning import Reasoning
from vla_inference.policies.registry import load_policy
from vla_inference.types import Observation
from vla_sim_bridge.tasks import TASKS
from vla_training.small_model.config import TrainConfig
from vla_training.small_model.frames import Other
from vla_training.small_model.thoughts import USUAL_VIEW, View, direction, thoughts_of, view_of


def test_pixels_are_those_of_the_simulators_camera():
    (x, y, z), turn = USUAL_VIEW
    model = mujoco.MjModel.from_xml_string(
        f"<mujoco><worldbody><camera name='a' pos='{x} {y} {z}' "
        f"quat='{' '.join(map(str, turn))}'/>"
        "</worldbody></mujoco>"
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    view = View(*USUAL_VIEW)
    assert np.allclose(view.axes, data.cam_xmat[0].reshape(3, 3).T, atol=1e-6)
    assert model.cam_fovy[0] == 45
    # The table's centre is in the middle's column; what is to the robot's left is to the right.
    middle, left = view.pixels(np.array([[0, 0, 0.8], [0, 0.1, 0.8]]))
    assert middle[0] == 128 and left[0] > middle[0]
    box = view.box(np.array([[0.0, 0.0, 0.82]]))[0]
    assert box[0] < 128 < box[2] and box[1] < box[3]
    assert not np.allclose(view_of(TASKS["Stack_L"]).position, view.position)


def test_directions():
    assert direction(np.array([0.1, -0.09, 0.01])) == "forward, right"
    assert direction(np.array([0.01, 0.0, -0.3])) == "down"
    assert direction(np.zeros(3)) == ""


def demonstration(file: h5py.File, **attributes) -> h5py.Group:
    """Three steps of Stack_L: far from the red block, holding it, above the green one."""
    group = file.create_group("demo_0")
    scene = {"colours": {"cubeA": "green", "cubeB": "red"}}
    scene["roles"] = {"moved": "cubeB", "base": "cubeA"}
    group.attrs.update({"task": "Stack_L", "scene": json.dumps(scene), **attributes})
    info = group.create_group("datagen_info")

    def poses(*places):
        found = np.tile(np.eye(4), (len(places), 1, 1))
        found[:, :3, 3] = places
        return found

    info["eef_pose"] = poses((0, 0, 1), (0.1, 0, 0.82), (-0.1, 0.1, 0.87))
    info["object_poses/moved"] = poses((0.1, 0, 0.82), (0.1, 0, 0.82), (-0.1, 0.1, 0.87))
    info["object_poses/base"] = poses(*[(-0.1, 0.1, 0.82)] * 3)
    for subtask in TASKS["Stack_L"].subtasks:
        if subtask.signal:
            info[f"subtask_term_signals/{subtask.signal}"] = np.array([0, 1, 1])
    return group


def test_thoughts_of_a_demonstration_and_of_its_opposite(tmp_path):
    with h5py.File(tmp_path / "d.hdf5", "w") as file:
        own, other = thoughts_of(demonstration(file))
    read = [Reasoning.parse(text) for text in own]
    assert all(r.whole and r.text() == text for r, text in zip(read, own, strict=True))
    assert read[0].task == "put the red block on the green block"
    assert [r.subtask for r in read] == [
        "reach the red block",
        "carry it to the green block",
        "carry it to the green block",
    ]
    assert [r.move for r in read] == ["forward, down", "back, left", "open"]
    assert set(read[0].boxes) == {"red block", "green block"} and len(read[0].gripper) == 1
    turned = Reasoning.parse(other[0])
    assert turned.task == "put the green block on the red block"
    assert turned.boxes == read[0].boxes and turned.subtask == "reach the green block"


@pytest.mark.parametrize(
    "wrong", [{"scene": "{}"}, {"task": "Door"}, {"randomized": '{"camera": 1}'}]
)
def test_what_is_not_known_is_not_thought(tmp_path, wrong):
    with h5py.File(tmp_path / "d.hdf5", "w") as file, pytest.raises(DataError):
        thoughts_of(demonstration(file, **wrong))


def test_the_model_learns_to_write_and_then_acts(tmp_path):
    """By heart, on noise: what it writes is whole, the opposite's where that is asked for."""
    shape = {**TINY, "prompt": PROMPTS["openvla"] + " TASK:", "reasoning_tokens": 40}
    texts = [
        Reasoning(task=f"put {c}", move=m).text() for c, m in (("red", "up"), ("blue", "left"))
    ]
    frames = make_frames(2, 4)
    thought = frames.text.clone()
    other = Other(1 - frames.text, frames.scene, frames.start, frames.end, 1 - thought)
    frames = replace(frames, thoughts=texts, thought=thought, other=other)
    trainer = make_trainer(frames, shape, steps=150, learning_rate=5e-3, ema=0.5, reasoning=True)
    index = torch.arange(8)
    batch, turned = trainer.batch(index), trainer.batches.batch(index, other=True)
    written = [
        trainer.tokenizer.decode(ids[begin:end].tolist())
        for ids, begin, end in zip(batch.ids, batch.asked, batch.lengths, strict=True)
    ]
    assert written == [texts[i] for i in thought.tolist()]
    assert (turned.ids != batch.ids).any(1).all()
    _, before = trainer.objective(batch)
    trainer.run(every=1000)
    _, after = trainer.objective(batch)
    assert after["text"] < 0.1 * before["text"]
    policy = load_policy(str(trainer.export(tmp_path / "model", torch.float32)))
    for sentence, text in zip(frames.sentences, texts, strict=True):
        chunk = policy.act(Observation({"image": frames.images[0].numpy()}, sentence))
        assert chunk.reasoning == Reasoning.parse(text, chunk.reasoning.tokens)
        assert chunk.actions.shape == (8, 7)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"shares": True}, "leave one of them out"), ({"cameras": ("wrist",)}, "agentview first")],
)
def test_what_reasoning_does_not_go_with_is_refused(options, words):
    with pytest.raises(VlaError, match=words):
        TrainConfig(reasoning=True, **options).model_json()
