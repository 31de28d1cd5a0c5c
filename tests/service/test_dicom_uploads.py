"""A DICOM file is answered as its picture is, and nothing of its header comes back or stays."""

import json

import numpy
import pytest
import torch
from PIL import Image
from scans import dicom_bytes
from serving import DATA, SEED, chain, running

from medfedpure.service.audit import AuditLog
from medfedpure.service.limits import Limits
from medfedpure.verdicts.decoding import Shown
from medfedpure.verdicts.predict import predict_files

pytest.importorskip("pydicom")
PLANTED = "MUSTERMANN^ERIKA"


def dicom(pixels):
    """The file of grey pixels `(H, W)`, or of frames `(F, H, W)`, that says a patient's name and number."""
    return dicom_bytes(pixels, PatientName=PLANTED, PatientID=PLANTED, WindowCenter=128, WindowWidth=256)


def test_a_dicom_file_is_answered_as_its_picture(tmp_path, chain):
    with (
        AuditLog(tmp_path / "log") as log,
        running(chain, seed=SEED, audit=log, limits=Limits(max_pixels=100 * 100)) as service,
    ):
        found = [
            service.client.post("/v1/verdict", files={"file": ("a.dcm", dicom(pixels))})
            for pixels in (
                DATA.pixels[0, 0].numpy(),
                DATA.pixels[:3, 0].numpy(),
                numpy.zeros((100, 101), numpy.uint8),
            )
        ]
        torn = service.client.post("/v1/verdict", files={"file": dicom(DATA.pixels[0, 0].numpy())[:-9]})
        metrics = service.client.get("/metrics").text
    one, several, large = found
    (wanted,) = chain.predict(DATA.select(torch.tensor([0])).images, seed=SEED).rows()
    assert one.status_code == 200
    assert one.json()["score"] == pytest.approx(wanted["score"], abs=1e-3)
    assert one.json()["probability_0"] == pytest.approx(wanted["probability_0"], abs=0.02)
    assert (several.status_code, "3 pictures" in several.json()["error"]) == (422, True)
    assert (large.status_code, "101 x 100" in large.json()["error"]) == (413, True)
    assert torn.status_code == 422
    told = "".join(answer.text for answer in (*found, torn)) + metrics + (tmp_path / "log").read_text()
    assert "MUSTERMANN" not in told


def test_a_window_that_was_agreed_on_is_that_of_predict(tmp_path, chain):
    (tmp_path / "a.dcm").write_bytes(dicom(DATA.pixels[0, 0].numpy()))
    told = {"shown": Shown.parse("0,60", "axial"), "made_by": "me", "seed": SEED}
    predict_files(chain, [tmp_path / "a.dcm"], tmp_path / "v.jsonl", format="jsonl", **told)
    wanted = json.loads((tmp_path / "v.jsonl").read_text())
    with running(chain, **told) as service:
        row = service.client.post("/v1/verdict", files={"file": (tmp_path / "a.dcm").read_bytes()}).json()
    with running(chain, seed=SEED) as service:
        other = service.client.post("/v1/verdict", files={"file": (tmp_path / "a.dcm").read_bytes()}).json()
    assert (row["defence"], row["score"]) == (wanted["defence"], pytest.approx(wanted["score"], abs=1e-6))
    assert row["defence"] == "me window=0,60"
    assert other["score"] != pytest.approx(wanted["score"], abs=1e-6)


def test_a_depth_that_was_said_is_that_of_predict(tmp_path, chain):
    """A picture of 12 bits, stored in 16."""
    Image.fromarray(DATA.pixels[0, 0].numpy().astype("uint16") * 16).save(tmp_path / "a.png")
    predict_files(
        chain, [tmp_path / "a.png"], tmp_path / "v.jsonl", format="jsonl", seed=SEED, shown=Shown(bit_depth=12)
    )
    wanted = json.loads((tmp_path / "v.jsonl").read_text())
    found = []
    for shown in (Shown(bit_depth=12), Shown()):
        with running(chain, seed=SEED, shown=shown) as service:
            found.append(service.client.post("/v1/verdict", files={"file": (tmp_path / "a.png").read_bytes()}).json())
    assert found[0]["score"] == pytest.approx(wanted["score"], abs=1e-6)
    assert found[1]["score"] != pytest.approx(wanted["score"], abs=1e-6)


def test_a_dicom_file_is_answered_as_predict_writes_it(tmp_path, chain):
    content = dicom(DATA.pixels[5, 0].numpy())
    (tmp_path / "IM1").write_bytes(content)
    predict_files(chain, [tmp_path / "IM1"], tmp_path / "v.jsonl", format="jsonl", seed=SEED)
    with running(chain, seed=SEED) as service:
        row = service.client.post("/v1/verdict", files={"file": ("IM1", content)}).json()
    wanted = json.loads((tmp_path / "v.jsonl").read_text())
    for key in ("label", "score", "probability_0", "probability_1", "flagged"):
        assert row[key] == pytest.approx(wanted[key], abs=1e-6), key
