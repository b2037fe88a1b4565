"""Tests that the docs' figures are those of committed results, and that the check can fail."""

from __future__ import annotations

import json

import common
import figures
import pytest


def test_pages_say_what_the_results_say():
    assert figures.wrong() == []


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A page with one claim, and the result behind it."""
    (tmp_path / "bench/results").mkdir(parents=True)
    (tmp_path / "page.md").write_text("Speed\n\nIt takes\n12.5 ms an answer.\n")
    result = {"provenance": dict.fromkeys(("command", "commit", "device", "versions"), "x")}
    (tmp_path / "bench/results/speed.json").write_text(json.dumps({**result, "ms": 12.5}))
    for module in (figures, common):
        monkeypatch.setattr(module, "ROOT", tmp_path)
        monkeypatch.setattr(module, "RESULTS", tmp_path / "bench/results")
    claim = figures.Claim("page.md", lambda r: f"takes {r['ms']} ms", ("speed.json",))
    monkeypatch.setattr(figures, "CLAIMS", (claim,))
    monkeypatch.setattr(figures, "NOT_MEASURED", {})
    monkeypatch.setattr(figures, "PAGES", ("page.md",))
    monkeypatch.setattr(figures, "generated", dict)
    return tmp_path


def test_a_claim_that_its_result_gives_passes(repository):
    assert figures.wrong() == []


def test_a_result_that_changed_is_found(repository):
    path = repository / "bench/results/speed.json"
    path.write_text(path.read_text().replace("12.5", "13.5"))
    assert any("does not say: takes 13.5 ms" in line for line in figures.wrong())


@pytest.mark.parametrize(
    "more", ["And 3 times faster.", "It succeeds in 97 % of runs.", "8 of 10 were right."]
)
def test_a_figure_without_a_result_is_found(repository, more):
    page = repository / "page.md"
    page.write_text(page.read_text() + "\n" + more)
    assert len(figures.wrong()) == 1


def test_notes_must_say_that_nothing_was_kept(repository):
    page = repository / "page.md"
    notes = "<!-- notes -->\n## Tried\n{}\nIt took 3 ms.\n<!-- /notes -->\n"
    says = "Development notes: no result is kept for the figures of this section."
    before = page.read_text()
    page.write_text(before + notes.format(says))
    assert figures.wrong() == []
    page.write_text(before + notes.format("Some notes."))
    assert len(figures.wrong()) == 1


def test_a_result_without_provenance_is_found(repository):
    (repository / "bench/results/new.json").write_text("{}")
    assert any("new.json: no provenance" in line for line in figures.wrong())


def test_a_command_names_its_script_where_it_lies_now():
    kept = "torchrun --nproc-per-node 2 bench/speed.py --repeats 9"
    now = "torchrun --nproc-per-node 2 bench/inference/speed.py --repeats 9"
    assert figures.as_of_now(kept) == figures.as_of_now(now) == now
    assert figures.as_of_now("vla study DATA") == "vla study DATA"
    with pytest.raises(SystemExit, match="in 0 places"):
        figures.as_of_now("python bench/gone.py")
