"""Tests of closed-loop evaluation: counts, reports, films."""

import json
import math
import re
import shlex

import numpy as np
import pytest

from vla_sim_bridge.evaluation import report
from vla_sim_bridge.evaluation.episode import SETTLE_STEPS
from vla_sim_bridge.evaluation.page import histogram
from vla_sim_bridge.evaluation.recorder import RunRecorder
from vla_sim_bridge.evaluation.run import ClosedLoopEvaluation, spread
from vla_sim_bridge.evaluation.video import SIZE, STRIP

ACTION = np.zeros(7)


@pytest.fixture
def played(fake_simulation):
    """Three episodes of horizon 20: a success in 3 frames, a touch, an abort, a success in 1."""
    sim = fake_simulation()
    evaluation = ClosedLoopEvaluation(sim, 7, 3, 20)
    for script in ([0, 0, *[1] * (SETTLE_STEPS + 1)], [1, 0], None, [1] * (SETTLE_STEPS + 1)):
        evaluation.begin()
        sim.script = [bool(s) for s in script or []]
        if script is None:
            evaluation.step(ACTION)
            evaluation.abort()
            continue
        while not evaluation.step(ACTION):
            pass
    return evaluation


def settled(evaluation, **more):
    results = {
        **evaluation.results_dict(),
        "execute_steps": 4,
        "lock_step": True,
        "started": "2030-01-01",
        "versions": {"ros": "x"},
    }
    return {**results, **more}


def test_counts(played):
    assert [r.outcome for r in played.results] == ["success", "timeout", "aborted", "success"]
    assert [r.index for r in played.results] == [0, 1, 2, 3]
    assert (played.successes, played.ever_successes, played.complete) == (2, 3, True)
    results = played.results_dict()
    assert results["episodes"] == 3 and results["success_rate"] == pytest.approx(2 / 3)
    assert results["mean_frames_success"] == 2.0
    assert results["mean_frames_all"] == pytest.approx((3 + 20 + 1) / 3)
    assert len(results["per_episode"]) == 4
    assert json.loads(json.dumps(results)) == results


def test_the_other_order_is_counted_apart_and_shown(fake_simulation, tmp_path):
    sim = fake_simulation()
    evaluation = ClosedLoopEvaluation(sim, 0, 2, 20)
    for name in ("wrong_order", True):
        evaluation.begin()
        sim.script = [name] * (SETTLE_STEPS + 1)
        while not evaluation.step(ACTION):
            pass
    results = settled(evaluation, language="held-out")
    assert (results["episodes"], results["successes"], results["wrong_order"]) == (2, 1, 1)
    assert evaluation.complete
    rows = dict(report.summary_rows(results))
    assert rows["wrong order"] == "1 of 2" and rows["language"] == "held-out"
    assert "--language held-out" in report.command_to_repeat(results)
    assert 'class="bar wrong_order"' in report.write_html(tmp_path, results, []).read_text()


def test_the_episode_under_way_is_listed_as_aborted_and_counts_for_nothing(fake_simulation):
    evaluation = ClosedLoopEvaluation(fake_simulation(), 0, 2, 50)
    evaluation.begin()
    evaluation.step(ACTION)
    evaluation.abort()
    evaluation.abort()
    results = evaluation.results_dict()
    assert results["episodes"] == 0 and not results["complete"]
    assert [e["outcome"] for e in results["per_episode"]] == ["aborted"]


def test_an_episode_of_another_seed_leaves_the_runs_order_alone(fake_simulation):
    evaluation = ClosedLoopEvaluation(fake_simulation(), 7, 5, 50)
    assert evaluation.begin().index == 0
    other = evaluation.begin(seed=99, instruction="lift it")
    assert (other.seed, other.index, other.first_instruction) == (99, 0, "lift it")
    assert evaluation.begin().index == 1


def test_held_steps_pass_time_but_are_no_actions(fake_simulation):
    evaluation = ClosedLoopEvaluation(fake_simulation(), 0, 1, 50)
    run = evaluation.begin()
    evaluation.step(ACTION, held=True)
    evaluation.step(ACTION)
    assert (run.step_count, evaluation.action_steps) == (2, 1)


def test_spread():
    assert spread([]) == {"median": None, "p95": None, "count": 0}
    assert spread([1, 3, math.nan]) == {"median": 2.0, "p95": 2.9, "count": 2}


def test_overhead_is_what_exceeds_the_models_own_time(played):
    for latency, round_trip in ((50, 52), (60, 63), (55, 56)):
        played.measured.add(latency, round_trip, {"vision": 10.0}, "small")
    results = played.results_dict()
    assert results["ros_overhead_ms"]["median"] == 2.0
    assert results["stage_ms_median"] == {"vision": 10.0} and results["model"] == "small"


# -- what is written


def test_json_and_page(played, tmp_path):
    played.measured.add(50, 52, {"vision": 10.0}, "<small> & co")
    results = settled(played)
    path = report.write_json(tmp_path / "new" / report.RESULTS, results)
    assert json.loads(path.read_text())["successes"] == 2
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]  # no temporary is left
    page = report.write_html(tmp_path, results, [50.0, 51.0, 90.0]).read_text()
    assert "2 of 3" in page and "&lt;small&gt; &amp; co" in page and "<small>" not in page
    assert page.count('class="bar ') == 4 and "timeout (touched)" in page and "<svg" in page
    assert not re.search(r'(src|href)="(http|/)', page)  # nothing from elsewhere
    assert "<video" not in page  # there is no film in this folder


def test_incomplete_runs_say_so_everywhere(fake_simulation, tmp_path):
    evaluation = ClosedLoopEvaluation(fake_simulation(), 0, 2, 50)
    results = settled(evaluation, ended="no action within 10 s")
    assert "no action within 10 s" in report.plain_table(results)
    assert "no action within 10 s" in report.write_html(tmp_path, results, []).read_text()


def test_histogram_bears_any_values():
    assert "Too few" in histogram([]) and "Too few" in histogram([1.0])
    many = np.random.default_rng(0).normal(50, 5, 999)
    for values in ([5.0] * 10, [1, 2, math.nan, 3], many):
        drawn = histogram(values)
        assert drawn.startswith("<svg") and "nan" not in drawn


def test_the_command_repeats_the_run(played):
    results = settled(
        played, checkpoint="/m/a b", image={"camera": "frontview", "width": 224, "height": 96}
    )
    words = shlex.split(report.command_to_repeat(results))
    assert words[:2] == ["./vla", "rollout"]
    options = dict(zip(words[2::2], words[3::2], strict=True))
    assert options == {
        "--task": "Fake",
        "--episodes": "3",
        "--seed": "7",
        "--horizon": "20",
        "--execute-steps": "4",
        "--model": "/m/a b",
        "--camera": "frontview",
        "--height": "96",
    }
    assert "--real-time" in report.command_to_repeat({**results, "lock_step": False})
    shipped = {**results, "checkpoint": "/ws/install/v/share/vla_inference/models/stack-small"}
    assert "--model" not in report.command_to_repeat(shipped)


def test_film_of_the_first_episodes(fake_simulation, tmp_path):
    import av

    sim = fake_simulation()
    evaluation = ClosedLoopEvaluation(sim, 0, 3, 5)
    recorder = RunRecorder(evaluation, tmp_path, 2, "agentview", every=1)
    evaluation.on_step = recorder.step
    for _ in range(3):
        evaluation.begin()
        sim.instruction = "put the exceedingly small red block on top of the other big green one"
        while not evaluation.step(ACTION):
            pass
        recorder.end()
    recorder.close()
    with av.open(str(tmp_path / "episodes.mp4")) as film:
        stream = film.streams.video[0]
        assert stream.codec.name == "h264"
        assert (stream.width, stream.height) == (SIZE, SIZE + STRIP)
        assert sum(1 for _ in film.decode(stream)) == recorder.film.frames == 2 * (5 + 16)
    assert (tmp_path / "poster.png").exists()


def test_a_film_cut_short_can_be_played(fake_simulation, tmp_path):
    import av

    evaluation = ClosedLoopEvaluation(fake_simulation(), 0, 3, 50)
    recorder = RunRecorder(evaluation, tmp_path, 2, "agentview", every=1)
    evaluation.on_step = recorder.step
    evaluation.begin()
    evaluation.step(ACTION)
    recorder.close()
    recorder.close()
    with av.open(str(tmp_path / "episodes.mp4")) as film:
        assert sum(1 for _ in film.decode(film.streams.video[0])) == 1


def test_an_incomplete_run_says_how_many_were_asked_for(played, tmp_path):
    whole = report.write_html(tmp_path, settled(played), []).read_text()
    assert "were requested" not in whole
    cut = settled(
        played, complete=False, episodes_asked=100, ended="interrupted", chunks_ignored=3
    )
    page = report.write_html(tmp_path, cut, []).read_text()
    assert (
        "2 of 3 \u00b7 67 % \u00b7 100 were requested" in page
        and "Incomplete: interrupted" in page
    )
    rows = dict(report.summary_rows(cut))
    assert rows["incomplete"] == "interrupted"
    assert rows["chunks ignored"] == "3, for frames that had passed"


def test_failed_episodes_become_films_of_what_the_model_saw(fake_simulation, tmp_path):
    import av

    sim = fake_simulation()
    evaluation = ClosedLoopEvaluation(sim, 0, 9, 6, only=(4, 2, 8))
    recorder = RunRecorder(evaluation, tmp_path, 0, "agentview", failures=2)
    for _ in range(3):
        evaluation.begin()
        while not evaluation.episode.done:
            recorder.see(np.zeros((32, 48, 3), np.uint8))
            for _ in range(2):
                evaluation.episode.done or evaluation.step(ACTION)
        recorder.end()
    recorder.close()
    assert evaluation.complete and not evaluation.successes
    assert [r.index for r in evaluation.results] == [4, 2, 8]
    films = sorted((tmp_path / "failures").iterdir())
    assert [f.name for f in films] == ["episode_2.mp4", "episode_4.mp4"]  # two at most
    with av.open(str(films[0])) as film:
        assert sum(1 for _ in film.decode(film.streams.video[0])) == 2 + 5
    assert not (tmp_path / "episodes.mp4").exists()


def test_an_aborted_episode_of_a_chosen_few_is_played_again(fake_simulation):
    evaluation = ClosedLoopEvaluation(fake_simulation(), 0, 9, 2, only=(5, 3))
    evaluation.begin()
    evaluation.abort()
    while not evaluation.complete:
        evaluation.begin()
        while not evaluation.step(ACTION):
            pass
    assert [(r.index, r.outcome) for r in evaluation.results] == [
        (5, "aborted"),
        (5, "timeout"),
        (3, "timeout"),
    ]
