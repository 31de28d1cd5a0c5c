"""The page of a run: every federated round as curves, every client, nothing from outside, nothing unescaped."""

import re
from html.parser import HTMLParser

import pytest

from medfedpure.cli.federate import clients_table
from medfedpure.federation import RoundRecord
from medfedpure.job.federate import round_document
from medfedpure.reporting.charts import levels_around
from medfedpure.reporting.job.page import PAGE, write_rounds_page
from medfedpure.reporting.job.rounds import curves, last_figures

EVIL = "<script>alert('x')</script>"
CAPTIONS = ["accuracy", "balanced accuracy", "AUROC", "loss", "training loss", "up from a client, kB"]


def record(number, figures, *, failed=(), up=2000, down=4000):
    clients = {client: own for client, own in figures.items() if client not in failed}
    return RoundRecord(
        number,
        1.5,
        clients,
        dict.fromkeys(failed, "LookupError (local_update)"),
        dict.fromkeys(clients, up),
        dict.fromkeys(figures, down),
    )


def figures(base):
    return {"accuracy": base, "balanced_accuracy": base, "auroc": base, "loss": 1 - base, "train_loss": 1 - base}


@pytest.fixture
def history():
    """Three rounds of two clients; the second client misses round 2 and has no AUROC in round 3."""
    rounds = [
        record(1, {"a": figures(0.6), EVIL: figures(0.7)}),
        record(2, {"a": figures(0.7), EVIL: figures(0.8)}, failed=[EVIL]),
        record(3, {"a": figures(0.8), EVIL: {**figures(0.9), "auroc": float("nan")}}, down=9000),
    ]
    return [round_document(one) for one in rounds]


def markers(chart, colour):
    """How many points a line of a chart has."""
    (line,) = re.findall(rf'<g class="c{colour}[ "].*?</g>', chart)
    return line.count('class="solid"')


def test_every_figure_and_the_traffic_have_a_chart_with_all_clients_and_their_mean(history):
    found = curves("classifier by fedrep", history)
    assert [caption for caption, _ in found.charts] == [*CAPTIONS, "down to a client, kB"]
    assert [name for _, name in found.legend] == ["mean", EVIL, "a"]
    by_caption = dict(found.charts)
    for caption, chart in found.charts:
        assert markers(chart, 0) == 3, f"the mean of {caption} has a point in every round"
        assert markers(chart, 2) == 3, f"client a has a point in every round of {caption}"
    assert markers(by_caption["loss"], 1) == 2, "a round that a client missed has no point"
    assert markers(by_caption["AUROC"], 1) == 1, "a figure that is not a number has no point"
    assert found.failures == [f"round 2 without {EVIL}: LookupError (local_update)"]


def heights(chart, colour):
    """Where a line runs, in units of the drawing."""
    (points,) = re.findall(rf'<g class="c{colour}[ "].*?points="([^"]*)"', chart)
    return [float(point.split(",")[1]) for point in points.split()]


def test_the_mean_runs_between_the_clients_and_better_is_higher(history):
    chart = dict(curves("x", history).charts)["accuracy"]
    mean, evil, a = (heights(chart, colour) for colour in (0, 1, 2))
    assert mean[0] == pytest.approx((evil[0] + a[0]) / 2, abs=0.1)
    assert mean[1] == a[1], "the mean over those that took part"
    assert a == sorted(a, reverse=True), "a figure that rises is drawn higher, where y is smaller"


def test_the_last_round_is_a_table_with_the_worst_client_of_every_figure(history):
    found = last_figures(history)
    assert found.round == 3
    assert found.header == ["client", "accuracy", "balanced accuracy", "AUROC", "loss", "training loss"]
    assert found.rows[0] == [EVIL, "0.900", "0.900", "-", "0.100", "0.100"]
    assert found.rows[-2] == ["mean", "0.850", "0.850", "0.800", "0.150", "0.150"]
    assert found.rows[-1] == ["worst client", "0.800", "0.800", "0.800", "0.200", "0.200"]


def test_a_balanced_accuracy_that_is_no_better_than_guessing_says_so():
    good = {**figures(0.9), "above_chance": 1.0}
    poor = {**figures(0.55), "above_chance": 0.0}
    found = last_figures([round_document(record(1, {"a": good, "b": poor}))])
    assert [row[2] for row in found.rows] == ["0.900", "0.550 at chance level", "0.725", "0.550 at chance level"]
    assert not any("chance" in cell for row in found.rows for cell in (row[1], *row[3:])), "of balanced accuracy alone"
    assert last_figures([round_document(record(1, {"b": poor}))]).rows[-2][2] == "0.550 at chance level"
    columns = clients_table(record(1, {"a": good, "b": poor})).columns
    assert list(columns[2].cells) == ["0.900", "0.550 at chance level", "0.725", "0.550 at chance level"]


def test_many_clients_share_one_mark():
    rounds = [record(number, {f"hospital-{place}": figures(0.5) for place in range(20)}) for number in range(1, 41)]
    found = curves("classifier", [round_document(one) for one in rounds])
    assert [name for _, name in found.legend] == ["mean", "each client"]
    chart = found.charts[0][1]
    assert chart.count("<polyline") == 21
    assert chart.count('y="183.0"') <= 12, "no more numbers below the axis than there is room for"


def test_a_round_without_figures_has_its_traffic(history):
    plain = [{**one, "clients": {client: {} for client in one["clients"]}, "mean": {}} for one in history]
    assert [caption for caption, _ in curves("x", plain).charts] == ["up from a client, kB", "down to a client, kB"]


class Sources(HTMLParser):
    """What a page would load."""

    def __init__(self):
        super().__init__()
        self.found, self.tags = [], set()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.found += [value for name, value in attributes if name in ("src", "href") and value]


def test_the_page_of_a_part_is_one_file_that_escapes_what_it_shows(history, tmp_path):
    results = {
        "part": "classifier",
        "plugin": "small_cnn",
        "strategy": "fedrep",
        "rounds": 3,
        "history": history,
        "missing": {EVIL: "it never took part"},
        "privacy": {"epsilon": 2.5, "delta": 1e-5},
    }
    write_rounds_page(results, tmp_path)
    text = (tmp_path / PAGE).read_text(encoding="utf-8")
    sources = Sources()
    sources.feed(text)
    assert "script" not in sources.tags
    assert sources.found == []
    for needed in ("After round 3 of 3", "Served worst: a", "epsilon 2.50 at delta 1e-05", "it never took part"):
        assert needed in text


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        ([0.5, 0.9], [0.5, 0.6, 0.7, 0.8, 0.9]),
        ([0.972, 0.996], [0.97, 0.98, 0.99, 1.0]),
        ([0.0, 20.5], [0, 10, 20, 30]),
        ([3.0, 3.0], [1, 2, 3, 4, 5]),
        ([0.0], [-0.5, -0.25, 0.0, 0.25, 0.5]),
    ],
)
def test_the_grid_lies_on_round_numbers_around_the_values(values, levels):
    assert levels_around(values) == pytest.approx(levels)
