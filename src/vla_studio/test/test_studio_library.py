"""Tests of presets, of trials, and of what lies on the studio's machine."""

from __future__ import annotations

import json
from pathlib import Path

import aiohttp
import pytest
from demonstrations import write_set
from studio_server import eventually, with_studio

from vla_inference.cli.options import takes
from vla_inference.errors import VlaError
from vla_msgs.msg import ActionChunk, CommandStatus, InferenceStatus, SimStatus
from vla_studio.presets import load_preset
from vla_studio.settings import StudioSettings

PRESETS = Path(__file__).resolve().parents[1] / "config" / "studio"
PROMPT = """
title: two cubes
instructions: [stack them]
auto_prompt: [{name: both, trials: 3, instructions: [first, second]}]
"""


def episode(index, success=None):
    """A SimStatus's fields, of an episode that runs or has ended."""
    done = success is not None
    outcome = {None: "running", True: "success", False: "timeout"}[success]
    about = {"seed": 7, "index": index, "done": done, "success": bool(success)}
    return {"episode": {**about, "outcome": outcome}}


# -- presets ----------------------------------------------------------------------------------


def test_instructions_given_as_an_option_keep_their_spaces():
    @takes(StudioSettings)
    def read(settings):
        return settings.presets

    assert read(presets="stack the cubes, open it") == ("stack the cubes", "open it")


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_preset_starts_commands_that_there_are(path):
    preset = load_preset(str(path))
    assert preset.title and preset.run
    for words in preset.run:
        assert words[0] in ("launch", "serve")
        if words[0] == "launch":
            package, name = words[1:3]
            launch = PRESETS.parents[2] / package / "launch" / name
            declared = launch.read_text()
            for word in words[3:]:
                assert f'<arg name="{word.partition(":=")[0]}"' in declared, (path, word)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour: red", "a preset has auto_prompt"),
        ("auto_prompt: 5", "auto_prompt: a list"),
        ("sim_time: 'yes'", "sim_time: true or false"),
        ("run: launch", "run: a list of texts"),
        ("auto_prompt: [{name: a, trials: 0}]", "trials: 1 to 10000"),
        ("title: [", "cannot be used"),
    ],
)
def test_what_is_no_preset_is_refused(tmp_path, text, said):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(VlaError, match=said):
        load_preset(str(path))


def test_a_preset_that_is_not_there_is_named():
    with pytest.raises(VlaError, match="no preset nowhere"):
        load_preset("nowhere")


# -- trials -----------------------------------------------------------------------------------


def test_trials_ask_one_instruction_after_the_other_and_count(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(PROMPT)

    async def test(studio, graph):
        def asked():
            return [fields["instruction"] for name, fields in graph.calls if name == "instruct"]

        async with studio.page() as page:
            hello = await page.until("hello")
            assert (hello["title"], hello["presets"]) == ("two cubes", ["stack them"])
            assert hello["starts"] == []  # beside a robot's nodes, which are there or not
            prompt = hello["auto_prompt"][0]
            assert prompt.pop("name") == "both"
            assert "only watches" in (await page.ask("trials", **prompt))["error"]
            await page.operate()
            assert not (await page.ask("trials", **prompt))["error"]
            tell = studio.server.tell
            for index, success in enumerate([True, False, True]):
                tell("sim", episode(index))
                tell("instruction", f"the simulation's own {index}")
                tell("instruction", ["first", "second"][index % 2])
                tell("sim", episode(index, success))
                tell("sim", episode(index, success))  # said again, it counts once
            state = await page.until("trials", lambda data: data["done"] == 3)
            assert not state["running"]
            first, second = state["rows"]
            assert (first["trials"], first["successes"]) == (2, 2)
            assert (second["trials"], second["successes"]) == (1, 0)
            await eventually(lambda: len(asked()) == 6)
            # At the start, after each episode, and where the simulation gave its own.
            assert asked() == ["first", "first", "second", "second", "first", "first"]

    with_studio(test, preset=str(path))


def test_without_a_simulation_verdicts_end_trials(tmp_path):
    async def test(studio, graph):
        async with studio.page() as page:
            await page.operate()
            await page.ask("trials", instructions=["lift it"], trials=2)
            for verdict in ("success", "discard", "failure"):
                await page.ask("verdict", verdict=verdict)
            state = await page.until("trials", lambda data: data["done"] == 2)
            assert state["rows"] == [{"instruction": "lift it", "trials": 2, "successes": 1}]

    with_studio(test, verdicts=str(tmp_path / "verdicts.jsonl"))


def test_a_typed_instruction_ends_trials():
    async def test(studio, graph):
        async with studio.page() as page:
            await page.operate()
            await page.ask("trials", instructions=["first"], trials=5)
            await page.ask("instruct", instruction="something else")
            await page.until("trials", lambda data: not data["running"])

    with_studio(test)


# -- this machine -----------------------------------------------------------------------------


def test_reports_are_shown_and_nothing_else(tmp_path):
    run = tmp_path / "results" / "Stack_D0"
    run.mkdir(parents=True)
    (run / "report.html").write_text("<h1>97 %</h1>")
    (run / "weights.bin").write_text("no report")
    (tmp_path / "secret.html").write_text("secret")
    (run / "link.html").symlink_to(tmp_path / "secret.html")

    async def test(studio, graph):
        async with studio.page() as page:
            (report,) = (await page.ask("reports"))["reports"]
            assert report["name"] == "Stack_D0" and "report.html" in report["files"]
            assert "no datasets" in (await page.ask("datasets"))["error"]

        async def get(path):
            url = aiohttp.client.URL(studio.base + path, encoded=True)
            async with studio.session.get(url) as answer:
                return answer.status, await answer.text(), answer.headers

        status, text, headers = await get("/results/Stack_D0/report.html")
        assert (status, text) == (200, "<h1>97 %</h1>")
        assert headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")
        for path in ("weights.bin", "link.html", "../../secret.html", "%2e%2e/%2e%2e/secret.html"):
            assert (await get(f"/results/Stack_D0/{path}"))[0] == 404, path
        assert (await get("/results/%2e%2e/secret.html"))[0] == 404

    with_studio(test, results=str(tmp_path / "results"))


def test_episodes_of_a_dataset_are_read_compared_and_edited(tmp_path):
    (tmp_path / "stack").mkdir()
    write_set(tmp_path / "stack" / "demo.hdf5")

    async def test(studio, graph):
        async with studio.page() as page:
            listed = await page.ask("datasets")
            (dataset,) = listed["datasets"]
            assert dataset == "stack/demo.hdf5" and listed["folder"] == str(tmp_path)
            assert "stack-small" in listed["models"]
            found = await page.ask("episode", dataset=dataset, index=1)
            assert not found["error"]
            steps = len(found["actions"])
            assert steps and len(found["actions"][0]) == len(found["dimensions"]) == 7
            assert [len(images) for images in found["images"].values()] == [steps] * 2
            assert (
                "is not one of 0"
                in (await page.ask("episode", dataset=dataset, index=99))["error"]
            )
            assert "no dataset" in (await page.ask("episode", dataset="../x", index=0))["error"]
            here = {"dataset": dataset, "index": 1, "named": found["name"]}
            for name in ("compare", "delete", "restore", "tag"):
                assert "only watches" in (await page.ask(name, **here))["error"]
            await page.operate()
            compared = await page.ask("compare", model="stack-small", **here)
            assert len(compared["predicted"]) == len(compared["actions"]) == steps
            assert (await page.until("compared"))["of"] == steps
            assert "no model" in (await page.ask("compare", model="../x", **here))["error"]
            assert not (await page.ask("tag", tags="good, slow", **here))["error"]
            assert (await page.ask("episode", dataset=dataset, index=1))["tags"] == "good, slow"
            assert (await page.ask("delete", **here))["name"] == "demo_1"
            assert "is demo_2 by now" in (await page.ask("delete", **here))["error"]
            after = await page.ask("episode", dataset=dataset, index=1)
            assert (after["episodes"], after["deleted"]) == (2, ["demo_1"])
            assert (await page.ask("restore", dataset=dataset))["name"] == "demo_1"
            assert (await page.ask("episode", dataset=dataset, index=0))["episodes"] == 3

    with_studio(test, data=str(tmp_path))


def test_a_preset_that_is_wrong_keeps_the_studio_from_starting(tmp_path):
    from vla_studio.web.server import StudioServer

    with pytest.raises(VlaError, match="no preset"):
        StudioServer(StudioSettings(preset=str(tmp_path / "none")), None)


def test_the_layout_for_foxglove_names_topics_and_fields_that_there_are():
    """Each panel of the layout is described, and each path ends in a field of a message."""
    layout = json.loads((PRESETS.parent / "foxglove.json").read_text())
    panels = layout["configById"]

    def leaves(node):
        return {node} if isinstance(node, str) else leaves(node["first"]) | leaves(node["second"])

    assert leaves(layout["layout"]) == set(panels)
    kinds = {
        "/action": ActionChunk,
        "/command/status": CommandStatus,
        "/inference/status": InferenceStatus,
        "/sim/status": SimStatus,
    }
    paths = [path["value"] for panel in panels.values() for path in panel.get("paths", ())]
    checked = 0
    for topic, _, field in (path.partition(".") for path in paths):
        if topic in kinds:
            assert field in kinds[topic].get_fields_and_field_types(), (topic, field)
            checked += 1
    assert checked == 5
