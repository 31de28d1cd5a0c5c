"""The depth of pictures: what a defence of so many bits is shown, and what is said of pictures that come out black."""

import json
from dataclasses import asdict

import numpy
import pytest
import torch
from PIL import Image
from scans import anatomy, dicom_bytes
from typer.testing import CliRunner
from written import defence, rows_of

from medfedpure.cli.app import app
from medfedpure.core.errors import ArtifactError, ConfigError
from medfedpure.data.readers.derived.png import png_of
from medfedpure.defence.images import ImageFacts
from medfedpure.verdicts.decoding import FileDecoder, Shown
from medfedpure.verdicts.predict import predict_files
from medfedpure.verdicts.ray_engine import judge, unpacked

TWELVE = anatomy(3, 16)
SIXTEEN = anatomy(4, 16, top=65535)


@pytest.fixture(scope="module")
def chain():
    return defence()


@pytest.fixture
def deep(tmp_path):
    """A picture of 12 bits in 16, which does not say so, one of all 16, and one of 8."""
    folder = tmp_path / "deep"
    folder.mkdir()
    for name, values in (("12", TWELVE), ("16", SIXTEEN), ("8", (TWELVE // 16).astype(numpy.uint8))):
        Image.fromarray(values).save(folder / f"{name}.png")
    return folder


@pytest.mark.parametrize(
    ("top", "bit_depth", "white"), [(255, None, 65535), (255, 12, 4095), (4095, None, 4095), (65535, None, 65535)]
)
def test_a_defence_is_shown_every_bit_that_it_can_use(deep, top, bit_depth, white):
    found = FileDecoder(ImageFacts((1, 16, 16), (), top), shown=Shown(bit_depth=bit_depth)).read(deep / "12.png")
    step = 255 if top == 255 else 65535
    wanted = torch.tensor(TWELVE.astype(numpy.float64)) / white
    assert float((found.image(0)[0].double() - wanted).abs().max()) <= 0.5 / step + 1e-7
    assert found.dim is (white == 65535)


def test_colour_and_frames_of_16_bits_come_whole(tmp_path):
    colour = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    (tmp_path / "c.png").write_bytes(png_of(colour, True, {}))
    decoder = FileDecoder(ImageFacts((3, 16, 16), (), 65535), shown=Shown("full"))
    assert float((decoder.read(tmp_path / "c.png").image(0) - colour).abs().max()) < 1e-5
    pytest.importorskip("pydicom")
    (tmp_path / "d").write_bytes(dicom_bytes(numpy.stack([TWELVE, TWELVE[::-1]]), bits=12))
    grey = FileDecoder(ImageFacts((1, 16, 16), (), 4095), shown=Shown("full")).read(tmp_path / "d")
    assert float((grey.image(1)[0].double() * 4095 - torch.tensor(TWELVE[::-1].astype(float))).abs().max()) < 0.04


def test_pictures_that_come_out_black_are_counted_until_their_depth_is_said(chain, deep, tmp_path):
    before = predict_files(chain, [deep], tmp_path / "v.csv", seed=1)
    assert (before.images, before.dim) == (3, 1)
    assert "1 pictures were seen almost black" in before.describe()
    told = predict_files(
        chain, [deep / "12.png", deep / "8.png"], tmp_path / "w.csv", made_by="me", seed=1, shown=Shown(bit_depth=12)
    )
    assert told.dim == 0
    assert "black" not in told.describe()
    twelve, eight = rows_of(tmp_path / "w.csv")
    assert float(twelve["score"]) == pytest.approx(float(eight["score"]), abs=0.05), "one picture in two depths"
    assert twelve["defence"] == "me bit_depth=12"
    with pytest.raises(ArtifactError, match="under other settings, me bit_depth=12"):
        predict_files(chain, [deep], tmp_path / "w.csv", made_by="me", seed=1)


def test_an_engine_counts_them_as_this_process_does(chain, deep, tmp_path):
    class Engine:
        """Judges as a worker of Ray does, and hands its answers over as such a one."""

        def answers(self, asked, how):
            said = judge(chain, FileDecoder(chain.image_facts, shown=how.shown), asked, how)
            yield [unpacked(json.dumps(asdict(one))) for one in said]

    found = predict_files(chain, [deep], tmp_path / "v.csv", seed=1, engine=Engine())
    assert found == predict_files(chain, [deep], tmp_path / "w.csv", seed=1)
    assert found.dim == 1


@pytest.mark.parametrize("bits", [7, 17])
def test_a_depth_that_is_none_is_refused(bits):
    with pytest.raises(ConfigError, match=f"8 to 16 of them; got {bits}"):
        Shown(bit_depth=bits)


def test_the_command_takes_the_depth(chain, deep, tmp_path):
    chain.save(tmp_path / "guarded")
    words = ["predict", str(tmp_path / "guarded"), str(deep / "12.png"), "--out", str(tmp_path / "v.csv")]
    done = CliRunner().invoke(app, [*words, "--bit-depth", "12", "--json", "--quiet"], catch_exceptions=False)
    assert '"dim": 0' in done.stdout
    assert rows_of(tmp_path / "v.csv")[0]["defence"].endswith(" bit_depth=12")
