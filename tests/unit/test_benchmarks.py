"""What the benchmarks print is reckoned right; how fast anything is, is not tested."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from benchmarks import charts, probe, table
from benchmarks.contenders import CONTENDERS

CHECKOUT = Path(__file__).parent.parent.parent
PEERS = CHECKOUT / "benchmarks" / "peers"


def test_a_contender_is_one_file_of_at_most_40_lines() -> None:
    assert {path.name: lines for path in PEERS.glob("*.py") if (lines := len(path.read_text().splitlines())) > 40} == {}


def test_every_contender_has_its_file_and_a_name_of_its_own() -> None:
    assert {contender.peer for contender in CONTENDERS} <= {path.stem for path in PEERS.glob("*.py")}
    assert len({contender.name for contender in CONTENDERS}) == len(CONTENDERS)


def test_the_page_says_of_every_contender_what_outlives_a_power_cut() -> None:
    page = (CHECKOUT / "docs" / "performance.md").read_text("utf-8")

    assert [
        contender.name for contender in CONTENDERS if f"| {contender.name} | {contender.lasting} |" not in page
    ] == []


def test_the_median_is_of_each_figure_and_not_of_runs() -> None:
    assert table.medians([{"a": 1, "b": 9}, {"a": 2, "b": 8}, {"a": 3, "b": 7}]) == {"a": 2, "b": 8}


def test_a_turn_that_not_every_line_had_counts_for_none() -> None:
    assert table.all_medians({"x": [{"a": 1}, {"a": 99}], "y": [{"a": 2}]}) == {"x": {"a": 1}, "y": {"a": 2}}


def test_ratios_are_ours_divided_by_each_other_and_a_figure_that_is_missing_is_a_dash() -> None:
    text = table.ratios({table.OURS: {"drain_1": 30.0}, "Other": {"drain_1": 10.0, "publish": 5.0}})

    cells = [cell.strip() for cell in text.splitlines()[2].strip("|").split("|")]
    assert cells == ["Other", "-", "3.00", "-", "-", "-", "-", "-", "-", "-"]


def test_a_workload_without_a_bare_one_has_no_ratio() -> None:
    rate = {"per_second": 100.0, "cpu_us": 5.0}

    text = table.beside_bare({"both": (rate, {"per_second": 200.0, "cpu_us": 1.0}), "alone": (rate, None)})

    assert [line.strip("|").split("|")[-1].strip() for line in text.splitlines()[2:]] == ["0.50", "-"]


def test_a_chart_is_well_formed_and_has_a_bar_for_every_figure() -> None:
    svg = ElementTree.fromstring(charts.bars("A & B", "per second", {"x": [1, 2], "y": [3, 4]}, ["one", "two"]))

    assert len(svg.findall("{*}rect")) == 1 + 4  # the background


def test_what_a_task_notes_is_read_while_it_grows(tmp_path: Path) -> None:
    notes, reader = probe.Notes(tmp_path), probe.Reader(tmp_path)

    notes.add(1.0)
    assert reader.poll() == 1
    notes.add(2.0)
    assert reader.poll() == 2
    assert [called for called, _ in reader.records] == [1.0, 2.0]
