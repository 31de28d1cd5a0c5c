"""A file that holds a secret is its owner's alone, or it is refused with the command that mends it."""

import os
import sys
import tempfile

import pytest

from medfedpure.core.disk import secret
from medfedpure.core.disk.secret import key_in, read_secret
from medfedpure.core.errors import ArtifactError, ConfigError
from medfedpure.service.run import token_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="its files have no modes")
TOKEN = "a-token-of-24-characters"


def kept(path, mode, content=TOKEN):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_the_owner_alone_reads_it(tmp_path, mode):
    assert read_secret(kept(tmp_path / "token", mode)) == TOKEN.encode()
    assert token_of(tmp_path / "token", {}) == TOKEN
    assert key_in(tmp_path / "token") == TOKEN.encode()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o601])
def test_what_others_may_read_or_write_is_refused(tmp_path, mode):
    path = kept(tmp_path / "my token", mode)
    link = tmp_path / "link"
    link.symlink_to(path)
    for read, error in ((read_secret, ArtifactError), (key_in, ArtifactError), (token_of, ConfigError)):
        with pytest.raises(error, match=rf"mode is {mode:04o}; 0600 is wanted\): say chmod 600 '.*/my token', and"):
            read(path)
        with pytest.raises(error, match="0600 is wanted"):
            read(link)
    path.chmod(0o600)
    assert token_of(link, {}) == TOKEN


def test_where_the_file_system_has_no_modes_nothing_can_be_mended(tmp_path, monkeypatch):
    path = kept(tmp_path / "token", 0o644)

    def made(dir):
        (dir / "made").touch()
        (dir / "made").chmod(0o755)
        return (dir / "made").open("rb")

    monkeypatch.setattr(tempfile, "TemporaryFile", made)
    assert read_secret(path) == TOKEN.encode()


def test_where_nothing_can_be_written_beside_it_its_mode_counts(tmp_path, monkeypatch):
    path = kept(tmp_path / "token", 0o644)

    def made(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", made)
    with pytest.raises(ArtifactError, match="0600 is wanted"):
        read_secret(path)


def test_a_key_is_drawn_once_and_read_again(tmp_path):
    drawn = key_in(tmp_path / "key")
    assert len(drawn) == 32
    assert key_in(tmp_path / "key") == drawn != key_in(tmp_path / "other")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "other"]


def test_without_hard_links_a_key_is_drawn_too(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "Operation not permitted")))
    assert key_in(tmp_path / "key") == key_in(tmp_path / "key")


def test_of_two_who_draw_at_once_both_hold_the_same(tmp_path, monkeypatch):
    link = os.link

    def other_first(made, path):
        kept(path, 0o600, b"another's key of bytes")
        link(made, path)

    monkeypatch.setattr(os, "link", other_first)
    assert key_in(tmp_path / "key") == b"another's key of bytes"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_what_is_no_secret_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    (tmp_path / "away").symlink_to(tmp_path / "nowhere" / "key")
    for name in ("pipe", "zeros", "."):
        with pytest.raises(ArtifactError, match="is no file"):
            key_in(tmp_path / name)
    for name in ("away", "gone/key"):
        with pytest.raises(ArtifactError, match="cannot be read or written: No such file"):
            key_in(tmp_path / name)
    for content in (b"", b"few", bytes(secret.MOST + 1)):
        with pytest.raises(ArtifactError, match=f"holds {len(content)} bytes; 16 to 4096 are wanted"):
            key_in(kept(tmp_path / "key", 0o600, content))
    with pytest.raises(ConfigError, match="16 to 4096 letters and digits"):
        token_of(tmp_path / "zeros", {})
    for name, why in ((".", "Is a directory"), ("gone", "No such file")):
        with pytest.raises(ConfigError, match=f"the token file .* cannot be read: {why}"):
            token_of(tmp_path / name, {})
