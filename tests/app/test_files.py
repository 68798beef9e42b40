"""The page's temporary folder and what is removed from it, without a server."""

import os
import signal
import time

import pytest

from secvit.app.files import PREFIX, own_folder, remove_leftovers, sweep, use
from tests import fresh

fcntl = pytest.importorskip("fcntl")
MINUTE = 60
HOLD = "import time\nfrom secvit.app.files import own_folder\nwith own_folder() as f: print(f, flush=True); time.sleep(600)"


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def another():
    """The folder of another process, and the process."""
    with fresh.start(["-c", HOLD]) as process:
        yield process.stdout.readline().strip(), process
        process.kill()


def test_a_folder_goes_with_its_page(temporary):
    with own_folder() as folder:
        (folder / "photo.jpg").write_bytes(b"x")
        assert folder.parent == temporary
    assert not folder.exists()


def test_a_killed_pages_folder_goes_when_the_next_one_starts_and_a_living_ones_stays(another, temporary, capsys):
    folder, process = another
    with own_folder():
        assert os.path.isdir(folder)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert os.path.isdir(folder)
    with own_folder() as own:
        # what the killed process imported may have left folders of its own
        assert [name for name in os.listdir(temporary) if name.startswith(PREFIX)] == [own.name]
    assert "removed 1 temporary folder" in capsys.readouterr().out


def test_what_is_not_a_pages_folder_stays(temporary):
    (temporary / "secvit_app_notes").mkdir()  # no lock: somebody's own
    (temporary / "elsewhere").mkdir()
    (temporary / "elsewhere" / "in_use").touch()
    (temporary / "secvit_app_link").symlink_to(temporary / "elsewhere")
    (temporary / "secvit_app_file").touch()
    assert remove_leftovers() == 0
    assert len(os.listdir(temporary)) == 4


def make(folder, name, minutes_ago, size=10):
    path = folder / name / "image.png"
    path.parent.mkdir()
    path.write_bytes(b"x" * size)
    os.utime(path, (time.time() - MINUTE * minutes_ago,) * 2)
    return path


def test_files_go_an_hour_after_their_last_use(tmp_path):
    old, used, new = (make(tmp_path, name, age) for name, age in (("old", 61), ("used", 61), ("new", 59)))
    use(str(used))
    sweep(tmp_path)
    assert (old.exists(), used.exists(), new.exists()) == (False, True, True)


def test_beyond_so_many_mb_or_files_the_longest_unused_go_first(tmp_path):
    paths = [make(tmp_path, f"{age}", age, size=1024**2) for age in range(6)]
    sweep(tmp_path, max_mb=4.5)
    assert [path.exists() for path in paths] == [True] * 4 + [False] * 2
    sweep(tmp_path, max_files=2)
    assert [path.exists() for path in paths] == [True] * 2 + [False] * 4


def test_the_pages_own_files_stay_and_do_not_count(tmp_path):
    own, photo = make(tmp_path, "own", 600, size=1024**2), make(tmp_path, "photo", 1, size=1024**2)
    sweep(tmp_path, keep={str(own)}, max_mb=1.5)
    assert own.exists() and photo.exists()


def test_empty_folders_go_after_a_minute(tmp_path):
    (tmp_path / "old").mkdir()
    os.utime(tmp_path / "old", (time.time() - 2 * MINUTE,) * 2)
    (tmp_path / "new").mkdir()
    sweep(tmp_path)
    assert os.listdir(tmp_path) == ["new"]


def test_a_photo_that_is_gone_is_named_with_the_reason(tmp_path):
    with pytest.raises(
        ValueError, match=r"leaves.jpg: no longer here; photos are kept for 60 minutes .* give the photo"
    ):
        use(str(tmp_path / "leaves.jpg"))
