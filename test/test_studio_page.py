"""Tests of the studio's page in a headless Chromium, against nodes in a real ROS graph.

Screenshots are left in the folder that VLA_SCREENSHOTS names.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
import wave
from pathlib import Path

import numpy as np
import pytest
from chromium import chromium, find_chromium
from demonstrations import write_set
from speech_standin import DATA, pcm, quiet
from studio_graph import StudioGraph
from studio_server import eventually

from vla_inference.ros import qos
from vla_msgs.msg import Reasoning, TaskEstimate
from vla_studio.speech.audio import RATE, read_audio
from vla_studio.speech.recogniser import is_installed

pytestmark = [
    pytest.mark.skipif(
        not find_chromium(), reason="there is no Chromium: apt-get install chromium"
    ),
    pytest.mark.slow,
]
PATIENCE = 120
PRESETS = ["stack the red block on the green block", "put the green cube on the red cube"]


# Of the first plot, those as opaque as a band behind the curves.
PALE_PIXELS = """(() => {
  const canvas = document.querySelector('#episode-plots canvas');
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  return data.filter((value, i) => i % 4 === 3 && value > 40 && value < 65).length;
})()"""


def acted(demo):
    """Steps of a person in the middle."""
    steps = np.arange(len(demo["actions"]))
    demo["intervention"] = ((steps > 0) & (steps < 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    verdicts = tmp_path_factory.mktemp("studio") / "verdicts.jsonl"
    folder = verdicts.parent
    (folder / "results" / "run").mkdir(parents=True)
    (folder / "results" / "run" / "report.html").write_text("<h1>97 %</h1>")
    (folder / "data").mkdir()
    write_set(folder / "data" / "demo.hdf5", acted)
    settings = {"presets": PRESETS, "verdicts": str(verdicts), "hold_timeout": 0.2}
    settings |= {name: str(folder / name) for name in ("results", "data")}
    with contextlib.closing(StudioGraph(**settings)) as found:
        found.verdicts = verdicts
        yield found


def in_browser(graph, test, operate=True, microphone=None):
    """Runs a coroutine with a page that has control; nothing in it may go wrong."""

    async def go():
        async with chromium(microphone=microphone) as browser:
            tab = await browser.open(graph.url)
            await tab.until("document.querySelector('#link')?.textContent === 'connected'")
            if operate:
                await take_control(tab)
            await test(tab, browser)
            assert not tab.errors

    asyncio.run(go())


async def take_control(tab):
    await tab.until("!document.querySelector('#take').hidden")
    await tab.click("#take")
    await tab.until("!document.querySelector('#hold').disabled")


async def enable(tab, graph):
    """Presses until the robot is enabled: on a busy machine signs may come too late."""
    end = asyncio.get_running_loop().time() + PATIENCE
    while not graph.enabled:
        assert asyncio.get_running_loop().time() < end, await tab.text("#events")
        await tab.until("!document.querySelector('#hold').disabled")
        await tab.down("#hold")
        with contextlib.suppress(AssertionError):
            await eventually(lambda: graph.enabled, 5)
            return
        await tab.up("#hold")


async def show(tab, page):
    await tab.evaluate(f"location.hash = '{page}'")
    await tab.until(f"!document.querySelector('[data-page={page}]').hidden")


def test_it_shows_what_the_graph_knows(graph):
    async def test(tab, browser):
        await tab.until(
            "document.querySelector('#cameras figcaption').textContent.includes('old')"
        )
        pixel = "document.querySelector('#cameras canvas').getContext('2d')"
        r, g, *_ = await tab.evaluate(f"[...{pixel}.getImageData(200, 20, 1, 1).data]")
        assert abs(r - 200) < 20 and abs(g - 20) < 20
        await tab.until("document.querySelector('#robot').textContent === 'disabled'")
        await tab.until("document.querySelector('#model').textContent.includes('stack-small')")
        await tab.until("document.querySelectorAll('#stages progress').length === 3")
        await tab.until(
            "document.querySelector('#sim').textContent.includes('2 of 3 (95 %: 21 to')"
        )
        await tab.until("document.querySelectorAll('#strips canvas').length === 7")

    in_browser(graph, test, operate=False)


@pytest.mark.parametrize("how", ["release", "blur", "stop", "escape", "navigate", "kill"])
def test_motion_ends_when_the_button_is_let_go(graph, how):
    async def test(tab, browser):
        await enable(tab, graph)
        if how == "release":
            await tab.up("#hold")
        elif how == "blur":
            await tab.evaluate("window.dispatchEvent(new Event('blur'))")
        elif how == "stop":
            await tab.evaluate("document.querySelector('#stop').click()")
        elif how == "escape":
            await tab.key("keyDown", "Escape", "Escape")
        elif how == "navigate":
            await tab.send("Page.navigate", url="about:blank")
        else:
            browser.process.kill()
        await eventually(lambda: not graph.enabled, PATIENCE)
        await asyncio.sleep(0.5)
        assert not graph.enabled

    in_browser(graph, test)


def test_the_space_bar_holds(graph):
    async def test(tab, browser):
        await tab.evaluate("document.querySelector('#hold').focus()")
        while not graph.enabled:
            await tab.key("keyDown", " ", "Space")
            with contextlib.suppress(AssertionError):
                await eventually(lambda: graph.enabled, 5)
                break
            await tab.key("keyUp", " ", "Space")
        await tab.key("keyUp", " ", "Space")
        await eventually(lambda: not graph.enabled, PATIENCE)

    in_browser(graph, test)


def test_it_sets_instructions_by_hand_and_from_presets(graph):
    async def test(tab, browser):
        await tab.write("#sentence", "pick up the cube")
        await tab.click("#instruct button")
        await tab.until(
            "document.querySelector('#instruction').textContent === 'pick up the cube'"
        )
        assert graph.world.instruction == "pick up the cube"
        await tab.click("#presets button:nth-child(2)")
        await tab.until(f"document.querySelector('#instruction').textContent === '{PRESETS[1]}'")
        kept = await tab.evaluate(
            "[...document.querySelectorAll('#sentences option')].map((o) => o.value)"
        )
        assert kept[:2] == [PRESETS[1], "pick up the cube"]

    in_browser(graph, test)


def test_it_resets_pauses_steps_records_and_loads(graph):
    async def test(tab, browser):
        calls = graph.world.calls
        await tab.click("#pause")
        await tab.until("!document.querySelector('#step').disabled")
        await tab.click("#step")
        await eventually(lambda: calls["sim/step"], PATIENCE)
        await tab.click("#reset")
        await tab.click("#pause")
        await eventually(lambda: calls["sim/reset"] and not graph.world.paused, PATIENCE)
        await tab.click("#record-on")
        await eventually(lambda: calls["recorder/record"], PATIENCE)
        await tab.write("#folder", "other")
        await tab.click("#load button")
        await eventually(lambda: calls["inference/load_model"], PATIENCE)
        assert graph.world.asked["inference/load_model"].model == "other"

    in_browser(graph, test)


def test_it_judges_an_episode(graph):
    async def test(tab, browser):
        await tab.write("#note", "slipped")
        await tab.click("[data-verdict=failure]")
        await eventually(lambda: graph.verdicts.exists() and graph.verdicts.read_text(), PATIENCE)
        entry = json.loads(graph.verdicts.read_text())
        assert (entry["verdict"], entry["note"]) == ("failure", "slipped")
        assert entry["index"] == graph.world.index

    in_browser(graph, test)


def test_an_estimate_suggests_a_verdict_that_one_key_keeps_or_overrides(graph):
    def verdicts():
        return [json.loads(line) for line in graph.verdicts.read_text().splitlines()]

    async def test(tab, browser):
        world = graph.world
        publisher = world.node.create_publisher(TaskEstimate, "estimate", qos.CHUNK)
        await tab.until("document.querySelector('#estimate').hidden")
        told = TaskEstimate(instruction=world.instruction, progress=0.62, done=0.9)
        told.suggested = "success"
        timer = world.node.create_timer(0.1, lambda: publisher.publish(told))
        await tab.until("document.querySelector('#suggested').textContent.includes('success')")
        await tab.until("document.querySelector('#progress-said').textContent === '62 %'")
        assert abs(await tab.evaluate("document.querySelector('#progress').value") - 0.62) < 1e-6
        before = len(verdicts()) if graph.verdicts.exists() else 0
        for key, code, verdict in (("y", "KeyY", "success"), ("n", "KeyN", "failure")):
            before += 1
            await tab.key("keyDown", key, code)
            await tab.key("keyUp", key, code)
            await eventually(
                lambda n=before: graph.verdicts.exists() and len(verdicts()) == n, PATIENCE
            )
            entry = verdicts()[-1]
            assert (entry["verdict"], entry["suggested"]) == (verdict, "success")
        await tab.evaluate("document.querySelector('#note').focus()")  # typed text is no verdict
        await tab.key("keyDown", "y", "KeyY")
        await tab.key("keyUp", "y", "KeyY")
        await tab.evaluate("document.querySelector('#note').blur()")
        assert len(verdicts()) == before
        world.node.destroy_timer(timer)
        world.node.destroy_publisher(publisher)

    in_browser(graph, test)


def test_what_a_model_thinks_is_shown_and_goes_with_the_instruction(graph):
    async def test(tab, browser):
        world = graph.world
        publisher = world.node.create_publisher(Reasoning, "inference/reasoning", qos.LATCHED)
        await tab.until("document.querySelector('#reasoning-section').hidden")
        told = Reasoning(instruction=world.instruction, plan="reach, <b>lift</b>", tokens=12)
        publisher.publish(told)
        state = "document.querySelector('#reasoning-state').textContent"
        await tab.until(f"{state} === 'thinking'")
        told.move, told.whole = "move left", True
        publisher.publish(told)
        await tab.until(f"{state} === 'whole'")
        said = await tab.evaluate("document.querySelector('#reasoning').innerText")
        assert "reach, <b>lift</b>" in said and "move left" in said
        told.instruction = "another"
        publisher.publish(told)
        await tab.until("document.querySelector('#reasoning').innerText.includes('another')")
        world.node.destroy_publisher(publisher)

    in_browser(graph, test)


def test_it_starts_follows_and_cancels_a_job(graph):
    async def test(tab, browser):
        await show(tab, "jobs")
        graph.world.log = "step 10 of 40  loss 2.5000\nstep 20 of 40  loss 1.2500\n"
        await tab.write("#arguments", "--task Stack_D0 --episodes 4")
        await tab.click("#start button")
        await tab.until("document.querySelector('.job progress')?.value === 0.25")
        await tab.evaluate("document.querySelector('.job button').click()")
        await tab.until("document.querySelector('#job-log').textContent.includes('loss 1.25')")
        await tab.until("!!document.querySelector('#loss canvas')")
        await tab.evaluate("document.querySelectorAll('.job button')[1].click()")
        await tab.until("document.querySelector('.job .what').textContent.includes('cancelled')")

    in_browser(graph, test)


def test_it_asks_one_instruction_after_the_other_and_counts(graph):
    async def test(tab, browser):
        world = graph.world
        await tab.evaluate("document.querySelector('#trial-count').value = 2")
        await tab.click("#trials button")
        await tab.until("document.querySelector('#trial-state').textContent === 'Trial 1 of 2.'")
        for outcome, said in (("success", "1 of 1 succeeded"), ("timeout", "1 of 2 succeeded")):
            world.outcome = outcome
            await tab.until(
                f"document.querySelector('#trial-state').textContent.includes('{said}')"
            )
            world.outcome = "running"
            world.index += 1
            await tab.until(
                f"document.querySelector('#sim').textContent.includes('{world.index}, step')"
            )
        await tab.until("!!document.querySelector('#trial-rows td:last-child')")
        assert "Ended after 2 trials" in await tab.text("#trial-state")

    in_browser(graph, test)


def test_it_shows_episodes_and_reports(graph):
    async def test(tab, browser):
        await show(tab, "data")
        await tab.until("document.querySelector('#dataset').value === 'demo.hdf5'")
        link = "document.querySelector('#reports a').getAttribute('href')"
        assert await tab.until(link) == "/results/run/report.html"
        await tab.click("#browse button")
        await tab.until("document.querySelectorAll('#episode-plots canvas').length === 7")
        about = await tab.text("#episode-about")
        assert about.startswith("Episode 0 of 3: stack the") and "7 steps" in about
        assert not await tab.evaluate("document.querySelector('#key-person').hidden")
        assert 500 < await tab.evaluate(PALE_PIXELS) < 30_000  # where a person acted
        pixel = "document.querySelector('#episode-images canvas').getContext('2d')"
        scrub = "document.querySelector('#scrub')"
        await tab.evaluate(f"{scrub}.value = 5; {scrub}.oninput()")
        # The block has moved by three pixels a step.
        await tab.until(f"{pixel}.getImageData(25, 16, 1, 1).data[0] > 170")
        assert "step 5" in await tab.text("#scrub-at")

    in_browser(graph, test, operate=False)


def test_it_compares_tags_deletes_and_restores_episodes(graph):
    async def test(tab, browser):
        await show(tab, "data")
        await tab.until("document.querySelector('#dataset').value === 'demo.hdf5'")
        await tab.click("#browse button")
        await tab.until("!document.querySelector('#episode-view').hidden")
        await tab.evaluate("document.querySelector('#compare button').click()")
        await tab.until("document.querySelector('#compared').textContent.includes('accuracy')")
        assert not await tab.evaluate("document.querySelector('#key-answer').hidden")
        await tab.write("#tags", "good, slow")
        await tab.evaluate("document.querySelector('#tag button').click()")
        about = "document.querySelector('#episode-about').textContent"
        await tab.until(f"{about}.includes('Tags: good, slow.')")
        await tab.evaluate("document.querySelector('#delete').click()")
        assert "Episode 0 of 3" in await tab.evaluate(about)  # not before it is confirmed
        await tab.evaluate("document.querySelector('#delete-sure').click()")
        await tab.until(f"{about}.includes('Episode 0 of 2')")
        await tab.until("document.querySelector('#restore').textContent === 'Restore demo_0'")
        await tab.evaluate("document.querySelector('#restore').click()")
        await tab.until(f"{about}.includes('Episode 0 of 3')")
        await tab.evaluate("document.querySelector('#convert').click()")
        await tab.until("!document.querySelector('[data-page=jobs]').hidden")
        given = await tab.evaluate("document.querySelector('#arguments').value")
        assert "demo.hdf5 --to lerobot" in given

    in_browser(graph, test)


def test_it_sets_the_speed(graph):
    async def test(tab, browser):
        await tab.until("document.querySelector('#speed-said').textContent === '100 %'")
        share = "document.querySelector('#speed-share')"
        await tab.evaluate(f"{share}.value = 40; {share}.onchange()")
        await tab.until("document.querySelector('#speed-said').textContent === '40 %'")
        await eventually(lambda: graph.command.value("speed") == 0.4, PATIENCE)
        await tab.until("document.querySelector('#command').textContent.includes('scale0.40')")
        await tab.evaluate(f"{share}.value = 100; {share}.onchange()")
        await eventually(lambda: graph.command.value("speed") == 1.0, PATIENCE)

    in_browser(graph, test)


def speed(graph):
    """That was sent last [m/s]."""
    return graph.twists[-1][1] if graph.twists else 0.0


def by_hand(graph):
    commander = graph.command.commander
    return commander is not None and commander.takeover.by_hand


@pytest.mark.parametrize("ends", ["key", "button", "blur", "close"])
def test_a_person_takes_over_and_moves_the_robot_by_keys(graph, ends):
    async def test(tab, browser):
        await tab.until("!document.querySelector('#take-over').disabled")
        await tab.click("#take-over")
        await tab.until("document.querySelector('#source').textContent === 'person'")
        assert by_hand(graph)
        await enable(tab, graph)
        begun = time.monotonic()
        await tab.key("keyDown", "w", "KeyW")
        await eventually(lambda: speed(graph) > 0.09, PATIENCE)
        fastest = max(sent for at, sent in graph.twists if at > begun)
        assert fastest <= 0.1 + 1e-6, graph.twists[-20:]
        if ends == "key":
            await tab.key("keyUp", "w", "KeyW")
            await eventually(lambda: speed(graph) == 0, PATIENCE)
            assert graph.enabled
            await tab.up("#hold")
        elif ends == "button":
            await tab.up("#hold")
        elif ends == "blur":
            await tab.evaluate("window.dispatchEvent(new Event('blur'))")
        else:
            await tab.send("Page.navigate", url="about:blank")
        await eventually(lambda: not graph.enabled, PATIENCE)
        await asyncio.sleep(0.5)
        still = len(graph.twists)
        await asyncio.sleep(0.5)
        assert len(graph.twists) == still and speed(graph) == 0
        if ends != "close":
            await tab.key("keyDown", "b", "KeyB")
            await tab.until("document.querySelector('#source').textContent === 'model'")

    try:
        in_browser(graph, test)
    finally:
        give_back(graph)


def give_back(graph):
    commander = graph.command.commander
    if commander is not None and by_hand(graph):
        commander.take_over(False, graph.command._now(), graph.command._steadily())


PAD = """
window.pad = {connected: true, mapping: 'standard', axes: [0, 0, 0, 0],
  buttons: Array.from({length: 16}, () => ({pressed: false}))};
navigator.getGamepads = () => [window.pad, null];
"""


def test_a_gamepad_moves_the_robot_while_its_switch_is_held(graph):
    async def press(tab, button, down=True):
        await tab.evaluate(f"window.pad.buttons[{button}] = {{pressed: {str(down).lower()}}}")

    async def test(tab, browser):
        await tab.evaluate(PAD)
        await asyncio.sleep(0.2)
        await press(tab, 9)
        await tab.until("document.querySelector('#source').textContent === 'person'")
        await tab.evaluate("window.pad.axes = [0, -1, 0, 0]")
        await asyncio.sleep(0.2)
        assert not graph.enabled
        while not graph.enabled:
            await press(tab, 4)
            with contextlib.suppress(AssertionError):
                await eventually(lambda: graph.enabled, 5)
                break
            await press(tab, 4, down=False)
            await asyncio.sleep(0.2)
        await eventually(lambda: speed(graph) > 0.09, PATIENCE)
        await press(tab, 4, down=False)
        await eventually(lambda: not graph.enabled, PATIENCE)
        await press(tab, 8)
        await tab.until("document.querySelector('#source').textContent === 'model'")

    try:
        in_browser(graph, test)
    finally:
        give_back(graph)


def test_what_is_typed_moves_nothing_and_a_viewer_takes_nothing_over(graph):
    async def test(tab, browser):
        await tab.evaluate("document.querySelector('#sentence').focus()")
        for kind in ("keyDown", "keyUp"):
            await tab.key(kind, "t", "KeyT")
        other = await browser.open(graph.url)
        await other.until("document.querySelector('#take')?.textContent === 'Ask for control'")
        assert await other.evaluate("document.querySelector('#take-over').disabled")
        await other.key("keyDown", "t", "KeyT")
        await asyncio.sleep(0.3)
        assert not by_hand(graph)

    in_browser(graph, test)


def test_control_is_asked_for_and_handed_over(graph):
    async def test(tab, browser):
        other = await browser.open(graph.url)
        await other.until("document.querySelector('#take')?.textContent === 'Ask for control'")
        await other.evaluate("document.querySelector('#take').click()")
        await tab.until("!document.querySelector('#asking').hidden")
        await tab.evaluate("document.querySelector('#agree').click()")
        await other.until("!document.querySelector('#hold').disabled")
        await tab.until("document.querySelector('#hold').disabled")
        assert not other.errors

    in_browser(graph, test)


@pytest.mark.skipif(
    not is_installed(), reason="nothing recognises speech: pip install -r requirements/speech.txt"
)
@pytest.mark.parametrize("how", ["button", "key"])
def test_a_spoken_instruction_counts_down_and_is_set(graph, tmp_path, how):
    samples = np.concatenate([quiet(1), read_audio(DATA / "red_on_green.ogg"), quiet(1)])
    with wave.open(str(tmp_path / "said.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(pcm(samples))
    graph.world.instruction = ""

    async def test(tab, browser):
        if how == "key":
            await tab.key("keyDown", "v", "KeyV")
        else:
            await tab.down("#talk")
        await asyncio.sleep(len(samples) / RATE + 0.5)
        if how == "key":
            await tab.key("keyUp", "v", "KeyV")
        else:
            await tab.up("#talk")
        await tab.until("!document.querySelector('#counting').hidden")
        assert await tab.text("#counted") == PRESETS[0]
        await eventually(lambda: graph.world.instruction == PRESETS[0], PATIENCE)
        await tab.until("document.querySelector('#counting').hidden")
        assert not graph.enabled

    in_browser(graph, test, microphone=tmp_path / "said.wav")


@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_the_screen(graph, width, tmp_path):
    folder = Path(os.environ.get("VLA_SCREENSHOTS", tmp_path))

    async def screenshot(tab, name):
        await asyncio.sleep(1)
        await tab.evaluate("window.scrollTo(0, 0)")
        await tab.screenshot(folder / f"{name}_{width}.png")
        assert await tab.evaluate("document.documentElement.scrollWidth") <= width, name

    async def test(tab, browser):
        await tab.resize(width, 900)
        await enable(tab, graph)
        await asyncio.sleep(5)
        await screenshot(tab, "operate")
        await tab.up("#hold")
        await show(tab, "data")
        await tab.until("document.querySelector('#dataset').value === 'demo.hdf5'")
        await tab.evaluate("document.querySelector('#browse button').click()")
        await tab.until("document.querySelectorAll('#episode-plots canvas').length === 7")
        await tab.evaluate("document.querySelector('#compare button').click()")
        await tab.until("document.querySelector('#compared').textContent.includes('accuracy')")
        await tab.evaluate("document.querySelector('#delete').click()")
        await screenshot(tab, "data")
        await show(tab, "jobs")
        graph.world.log = "\n".join(f"step {n} of 40  loss {4 / n:.4f}" for n in range(1, 41))
        await tab.evaluate("document.querySelector('#start button').click()")
        await tab.until("!!document.querySelector('.job button')")
        await tab.evaluate("document.querySelector('.job button').click()")
        await tab.until("!!document.querySelector('#loss canvas')")
        await screenshot(tab, "jobs")
        await show(tab, "machine")
        await tab.evaluate("document.querySelector('#examine').click()")
        await tab.until("!!document.querySelector('.finding')")
        await screenshot(tab, "machine")

    in_browser(graph, test)
