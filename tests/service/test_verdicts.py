"""What the service says is what `predict` says, whoever asks at the same moment and whatever comes along."""

import base64
import io
import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image
from serving import DATA, SEED, chain, defence, png, running, service

from medfedpure.core.errors import ConfigError, InputError
from medfedpure.defence.calibration import Calibration
from medfedpure.service.app import create_app
from medfedpure.service.batching import Batcher
from medfedpure.service.drift import Drift
from medfedpure.service.limits import Limits, Refusal
from medfedpure.verdicts.predict import predict_files


def said(chain, place):
    """The row of one image of DATA, alone, under the seed of the service."""
    (row,) = chain.predict(DATA.select(torch.tensor([place])).images, seed=SEED).rows()
    return {key: value for key, value in row.items() if key != "image"}


def picture(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_a_row_is_that_of_the_verdicts_on_files(service, chain, tmp_path):
    (tmp_path / "a.png").write_bytes(png(3))
    predict_files(chain, [tmp_path / "a.png"], tmp_path / "v.jsonl", format="jsonl", made_by="me", seed=SEED)
    by_form = service.client.post("/v1/verdict", files={"file": ("a.png", png(3))})
    raw = service.client.post("/v1/verdict", content=png(3), headers={"content-type": "image/png"})
    assert by_form.status_code == raw.status_code == 200
    row = by_form.json()
    assert row.pop("request") == by_form.headers["x-request-id"]
    assert row.pop("classes") == list(DATA.class_names)
    of_files = {"frame", "frames", "patient", "study"}
    assert list(row) == [key for key in json.loads((tmp_path / "v.jsonl").read_text()) if key not in of_files]
    assert row["why"] == json.loads((tmp_path / "v.jsonl").read_text())["why"]
    assert (row["file"], row["defence"], row["error"], raw.json()["file"]) == ("a.png", "me", None, None)
    for key, value in said(chain, 3).items():
        assert row[key] == raw.json()[key] == pytest.approx(value, abs=1e-5), key


def test_32_clients_at_once_get_each_its_own_answer(service, chain):
    places = range(40)
    wanted = {place: said(chain, place) for place in places}
    assert len({row["flagged"] for row in wanted.values()}) == 2
    starting = threading.Barrier(32)

    def asks(number):
        starting.wait(20)
        found = []
        for turn in range(4):
            place = (7 * number + 3 * turn) % len(places)
            answer = service.client.post("/v1/verdict", files={"file": (f"{place}", png(place))})
            found.append((place, answer))
        return found

    with ThreadPoolExecutor(32) as pool:
        answers = [pair for part in pool.map(asks, range(32)) for pair in part]
    assert len(answers) == 128
    assert Counter(answer.status_code for _, answer in answers) == {200: 128}
    for place, answer in answers:
        row = answer.json()
        assert row["file"] == str(place)
        for key, value in wanted[place].items():
            assert row[key] == pytest.approx(value, abs=1e-5), (place, key)
    assert service.app.state.service.places.taken == 0


def test_in_a_batch_a_bad_file_is_a_row_and_the_others_are_answered(service, chain):
    files = [("a.png", png(0)), ("torn.png", png(1)[:-30]), ("b.png", png(2)), ("text.txt", b"no scan"), ("none", b"")]
    answer = service.client.post("/v1/verdicts", files=[("files", one) for one in files])
    rows = answer.json()["rows"]
    assert [row["file"] for row in rows] == [name for name, _ in files]
    assert [row["status"] for row in rows] == [200, 422, 200, 415, 422]
    assert [row["error"] is None for row in rows] == [True, False, True, False, False]
    assert len({tuple(row) for row in rows}) == 1
    for place, row in ((0, rows[0]), (2, rows[2])):
        assert {key: row[key] for key in said(chain, place)} == pytest.approx(said(chain, place), abs=1e-5)
    assert all(value is None for key, value in rows[1].items() if key not in ("file", "error", "status", "defence"))


def test_pictures_come_where_they_are_asked_for(chain):
    mapped = defence()
    mapped.detector.suspicion_map = lambda images, **_: images.abs() * 3
    with running(mapped, seed=SEED) as service:
        flagged = next(place for place in range(40) if said(chain, place)["purified"])
        sound = next(place for place in range(40) if not said(chain, place)["purified"])
        ask = "/v1/verdict?scan=true&map=true&cleaned=true"
        row = service.client.post(ask, files={"file": png(flagged)}).json()
        other = service.client.post(ask, files={"file": png(sound)}).json()
        plain = service.client.post("/v1/verdict", files={"file": png(flagged)}).json()
    image = DATA.select(torch.tensor([flagged])).images
    assert list(picture(row["scan_png"]).tobytes()) == DATA.pixels[flagged].flatten().tolist()
    cleaned = chain.predict(image, seed=SEED).images.mul(255).round().flatten().tolist()
    assert list(picture(row["cleaned_png"]).tobytes()) == pytest.approx(cleaned, abs=1)
    assert other["cleaned_png"] is None
    assert (row["map_low"], row["map_high"]) == pytest.approx((3 * float(image.min()), 3 * float(image.max())))
    assert picture(row["map_png"]).getextrema() == (0, 255)
    assert not [key for key in plain if key.endswith("_png")]


def test_without_a_seed_the_noise_is_fresh(chain):
    flagged = next(place for place in range(40) if said(chain, place)["purified"])
    with running(chain) as service:
        files = [("files", png(flagged))] * 3
        rows = service.client.post("/v1/verdicts", files=files).json()["rows"]
        rows += service.client.post("/v1/verdicts", files=files).json()["rows"]
        refused = service.client.post("/v1/verdict?seed=7", files={"file": png(flagged)}).json()
    assert len({row["probability_0"] for row in rows}) == 6
    assert refused["probability_0"] != said(chain, flagged)["probability_0"]


class Brittle:
    """A chain that fails on whole batches in which one image is all white, as on a classifier's infinite answer."""

    def __init__(self, chain, error):
        self.chain, self.error, self.sizes = chain, error, []

    def predict(self, images, *arguments, **options):
        self.sizes.append(len(images))
        if bool((images == 1).flatten(1).all(1).any()):
            raise self.error
        return self.chain.predict(images, *arguments, **options)

    def __getattr__(self, name):
        return getattr(self.chain, name)


@pytest.mark.parametrize(("error", "status"), [(InputError("not finite"), 422), (RuntimeError("secret"), 500)])
def test_an_image_that_fails_takes_no_other_with_it(chain, error, status):
    brittle = Brittle(chain, error)
    batcher = Batcher(brittle, Limits(max_batch=4, max_wait_ms=0), Drift(None), SEED)
    images = [DATA.select(torch.tensor([place])).images[0] for place in range(3)]
    futures = [batcher.submit(image) for image in (images[0], torch.ones(1, 16, 16), images[1], images[2])]
    batcher.start()
    try:
        with pytest.raises(Refusal) as caught:
            futures[1].result(20)
        assert caught.value.status == status
        assert "secret" not in str(caught.value)
        for place, future in zip(range(3), (futures[0], *futures[2:]), strict=True):
            row, wanted = future.result(20).row, said(chain, place)
            assert {key: row[key] for key in wanted} == pytest.approx(wanted, abs=1e-5)
            assert row["why"] == (chain.detector.plugin_name if row["flagged"] else None)
        assert brittle.sizes == [4, 1, 1, 1, 1]
    finally:
        batcher.stop()


def test_images_are_collected_up_to_a_batch_or_a_deadline(chain):
    counted = Brittle(chain, InputError("none"))
    batcher = Batcher(counted, Limits(max_batch=3, max_wait_ms=60_000), Drift(None))
    image = DATA.select(torch.tensor([0])).images[0]
    batcher.start()
    futures = [batcher.submit(image) for _ in range(3)]
    assert all(future.result(20) for future in futures)
    assert counted.sizes == [3]
    left = batcher.submit(image)
    gone = batcher.submit(image)
    assert gone.cancel()
    batcher.stop()  # what waits is answered though its deadline is far, and nobody asks for what was given up
    assert left.result(0).row["label"] in (0, 1)
    assert counted.sizes == [3, 1]
    assert not batcher.alive


def test_the_monitor_watches_the_scores(chain):
    noise = torch.rand(40, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with running(chain, drift_window=20) as service:
        files = []
        for image in noise:
            written = io.BytesIO()
            Image.fromarray((image[0] * 255).byte().numpy()).save(written, "PNG")
            files.append(("files", written.getvalue()))
        assert service.client.post("/v1/verdicts", files=files).status_code == 200
        state = service.client.get("/ready").json()["drift"]
        text = service.client.get("/metrics").text
    assert (state["watched"], state["looks"], state["alarms"]) == (True, 2, 2)
    assert "shift or attack" in state["last"]
    assert "medfedpure_drift_alarms 2.0" in text
    assert 'medfedpure_images_total{outcome="verdict"} 40.0' in text


def test_where_nothing_can_be_watched_it_says_why():
    few = Drift(Calibration.fit(torch.linspace(0, 1, 5), 0.3), window=2)
    few.observe(torch.rand(10))
    assert few.state()["watched"] is few.watched is False
    assert "5 calibration scores" in few.state()["why"]
    assert "no calibration" in Drift(None).state()["why"]


def test_a_defence_that_knows_no_images_is_refused(chain):
    bare = defence()
    bare.image_facts = None
    with pytest.raises(ConfigError, match="calibrate it on a data set"):
        create_app(bare, token=None)
    with pytest.raises(ConfigError, match="queue = 0 lets nothing through"):
        Limits(queue=0)
