"""The page in a browser: a DICOM file is dropped on it, and what is to be read there is there, wide and narrow."""

import io
import os
from pathlib import Path

import pytest
import torch
from browser import browsing, chromium
from PIL import Image
from serving import DATA, SEED, TOKEN, defence, running
from test_dicom_uploads import dicom

from medfedpure.service.limits import Limits

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="no Chromium is installed"),
]
WIDTHS = {"wide": 1280, "narrow": 390}
TEXT = "document.body.innerText"
VERDICT = "!document.getElementById('verdict').hidden"


@pytest.fixture(scope="module")
def mapped():
    """A defence whose detector draws a map, with the places of a flagged image and of one that is not."""
    chain = defence()
    chain.detector.suspicion_map = lambda images, **_: (images - images.mean((-2, -1), keepdim=True)).abs()
    found = [chain.predict(DATA.select(torch.tensor([place])).images, seed=SEED).rows()[0] for place in range(40)]
    flagged = next(place for place, row in enumerate(found) if row["purified"])
    sound = next(place for place, row in enumerate(found) if not row["flagged"])
    return chain, flagged, sound, found


@pytest.fixture(scope="module")
def page():
    with browsing() as found:
        yield found


def looked_at(page, name):
    """The page as a picture, which is kept where SCREENSHOTS says so, for eyes."""
    shot = page.picture()
    if folder := os.environ.get("SCREENSHOTS"):
        (Path(folder) / f"{name}.png").write_bytes(shot)
    return Image.open(io.BytesIO(shot))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_dicom_file_that_is_dropped_is_answered_and_shown(page, mapped, tmp_path, width, scheme):
    chain, flagged, sound, rows = mapped
    with running(chain, seed=SEED, made_by="me") as service:
        page.requested.clear()
        page.said.clear()
        page.open(f"http://localhost:{service.port}/", WIDTHS[width], 900, scheme)
        begun = page.ask(TEXT)
        assert "no medical device" in begun
        assert "diagnosis" in begun
        assert not page.ask(VERDICT)
        for place, said in ((flagged, "Flagged"), (sound, "Not flagged")):
            file = tmp_path / f"IM{place}.dcm"
            file.write_bytes(dicom(DATA.pixels[place, 0].numpy()))
            page.drop(file, WIDTHS[width] // 2, 300)
            page.until(f"{VERDICT} && document.getElementById('state').innerText.includes('{file.name}')")
            text, row = page.ask(TEXT), rows[place]
            assert said in page.ask("document.getElementById('looks').innerText")
            assert page.ask("document.getElementById('class').innerText") == DATA.class_names[row["label"]]
            assert page.ask("document.querySelectorAll('#pictures img').length") == (3 if row["purified"] else 2)
            drawn = "[...document.querySelectorAll('#pictures img')].every((one) => one.complete && one.naturalWidth)"
            page.until(drawn)
            assert ("The classifier read the scan itself" in text) is not row["purified"]
            assert ("It was cleaned, at strength" in text) is row["purified"]
            assert "not for a diagnosis" in page.ask("document.getElementById('verdict').innerText")
            assert "MUSTERMANN" not in text
            shot = looked_at(page, f"{width}-{scheme}-{said.split()[0].lower()}")
            assert shot.width == WIDTHS[width]
            assert page.ask("document.documentElement.scrollWidth") <= WIDTHS[width], "it is wider than its window"
    assert page.said == []
    assert {address.split("/")[2] for address in page.requested if address.startswith("http")} == {
        f"localhost:{service.port}"
    }


def test_a_token_is_asked_for_and_what_cannot_be_read_is_said(page, mapped, tmp_path):
    chain, _, sound, _ = mapped
    (tmp_path / "text.txt").write_text("no scan")
    (tmp_path / "IM1").write_bytes(dicom(DATA.pixels[sound, 0].numpy()))
    with running(chain, TOKEN, seed=SEED, limits=Limits()) as service:
        page.open(f"http://localhost:{service.port}/", 390, 900)
        page.drop(tmp_path / "IM1", 200, 300)
        page.until("!document.getElementById('key').hidden")
        assert "type the token above" in page.ask("document.getElementById('state').innerText")
        looked_at(page, "token")
        page.ask("document.getElementById('token').value = 'wrong'")
        page.ask("document.querySelector('#key button').click()")
        page.until("document.getElementById('state').innerText.includes('this is not the token')")
        page.ask(f"document.getElementById('token').value = {TOKEN!r}")
        page.ask("document.querySelector('#key button').click()")
        page.until(VERDICT)
        page.drop(tmp_path / "text.txt", 200, 300)
        said = page.until(
            "document.getElementById('state').className === 'bad' && document.getElementById('state').innerText"
        )
        assert said.startswith("text.txt: the file is no DICOM, JPEG")
        assert not page.ask(VERDICT)
        looked_at(page, "refused")
