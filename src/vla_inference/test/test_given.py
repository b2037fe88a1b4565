"""Tests of the library as users meet it: names, options, images of any kind, what repr says."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import vla_inference
from vla_inference import ActionChunk, Observation, Policy, VlaError, load_policy
from vla_inference.errors import ObservationError
from vla_inference.inputs.given import as_observation
from vla_inference.policies.base import Needs
from vla_inference.types import eef_delta_spec

SPEC = eef_delta_spec()


class Mean(Policy):
    """Answers with the mean of the first image."""

    name, placement, needs, chunk = "mean", "here", Needs(images=2, state=3), 1

    def action_spec(self):
        return SPEC

    def predict(self, observations):
        (seen,) = observations
        value = next(iter(seen.images.values())).mean()
        return [ActionChunk(np.full((1, 7), value), SPEC, timing={"total": 1.0})]


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def test_the_package_names_what_users_need():
    assert all(getattr(vla_inference, name) is not None for name in vla_inference.__all__)
    assert vla_inference.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = vla_inference.nothing


def test_an_image_may_be_an_array_pillows_or_a_file(tmp_path, image):
    Image.fromarray(image).save(tmp_path / "seen.png")
    kinds = [image, Image.fromarray(image), tmp_path / "seen.png", str(tmp_path / "seen.png")]
    for kind in kinds:
        for given in (kind, {"front": kind}):
            seen = as_observation(given, "go", [1, 2])
            (found,) = seen.images.values()
            np.testing.assert_array_equal(found, image)
            assert (seen.instruction, seen.state.tolist()) == ("go", [1.0, 2.0])
    chunk = Mean().act(tmp_path / "seen.png", "go")
    np.testing.assert_allclose(chunk.actions, image.mean(), rtol=1e-6)


def test_what_an_environment_returned_is_an_observation(image):
    returned = {"images": {"front": image}, "instruction": "go", "state": np.ones(3, np.float32)}
    seen = as_observation(returned)
    assert seen.images["front"] is image and seen.instruction == "go" and seen.state.sum() == 3
    assert as_observation(returned, "stop").instruction == "stop"


def test_an_observation_stays_what_it_is_but_for_what_is_said(image):
    seen = Observation({"a": image}, "go", stamp=3.0)
    assert as_observation(seen) is seen
    assert as_observation(seen, "stop").instruction == "stop"
    assert as_observation(seen, "stop").stamp == 3.0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (5, "image is a int; give an Observation, a numpy array, a Pillow image or the path"),
        ({"wrist": None}, "wrist is a NoneType"),
        ("nowhere.png", "no image nowhere.png"),
    ],
)
def test_what_is_no_image_is_refused_by_name(given, says):
    with pytest.raises(ObservationError, match=says):
        Mean().act(given, "go")


def test_an_unknown_option_of_loading_is_refused_by_name():
    with pytest.raises(VlaError, match="no option 'devise'; known: device"):
        load_policy("models/stack-small", devise="cpu")


def test_repr_is_one_short_line(image):
    seen = Observation({"front": image}, "go", np.zeros(3))
    assert repr(seen) == "<Observation 'go': front 30x20, state of 3>"
    assert repr(Observation({})) == "<Observation '': no image>"
    assert repr(Mean()) == "<Mean mean: 2 images, state of 3, 1 action an answer, here>"
    chunk = repr(ActionChunk(np.zeros((8, 7)), SPEC))
    assert chunk.startswith("<ActionChunk 8 steps of 0.05 s: x, y, z,")
