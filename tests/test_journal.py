"""The journal of a run that may be stopped."""

import json

import pytest

from nkf.errors import NkfError
from nkf.journal import Entry, Journal

SETTINGS = {"model": "mobile", "min_confidence": 0.5}
ENTRIES = [Entry({"path": f"{k}.jpg", "status": "ok"}, "no room" if k == 1 else None) for k in range(7)]


def journal_of(file, *, resume=True, block=1, settings=SETTINGS):
    return Journal(file, settings, resume=resume, block=block)


def fill(file, entries=ENTRIES):
    with journal_of(file, resume=False) as journal:
        for entry in entries:
            journal.add(*entry)


def test_what_was_added_is_read_again_and_more_follows(tmp_path):
    fill(tmp_path / "new" / "a.journal", ENTRIES[:3])
    with journal_of(tmp_path / "new" / "a.journal") as journal:
        assert journal.count == 3
        assert list(journal) == ENTRIES[:3]
        journal.add(*ENTRIES[3])
        assert list(journal) == ENTRIES[:4]
        journal.remove()
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(("block", "kept"), [(1, 7), (2, 6), (4, 4), (8, 0)])
def test_only_whole_blocks_are_kept(tmp_path, block, kept):
    fill(tmp_path / "a.journal")
    with journal_of(tmp_path / "a.journal", block=block) as journal:
        assert list(journal) == ENTRIES[:kept]
        journal.add(*ENTRIES[0])
        assert list(journal) == [*ENTRIES[:kept], ENTRIES[0]]


@pytest.mark.parametrize("cut", range(1, 40, 6))
def test_a_line_that_a_kill_cut_off_is_dropped(tmp_path, cut):
    fill(tmp_path / "a.journal")
    content = (tmp_path / "a.journal").read_bytes()
    (tmp_path / "a.journal").write_bytes(content[:-cut])
    with journal_of(tmp_path / "a.journal") as journal:
        assert list(journal) == ENTRIES[:6]
    assert (tmp_path / "a.journal").read_bytes() == content[: content.rindex(b"\n", 0, -1) + 1]


def test_without_resume_it_starts_anew(tmp_path):
    fill(tmp_path / "a.journal")
    with journal_of(tmp_path / "a.journal", resume=False) as journal:
        assert (journal.count, list(journal)) == (0, [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}\n", "no journal of nkf"),
        (b"a picture", "no journal of nkf"),
        (b"a picture\n", "no journal of nkf"),
        (b'{"a": 1}\n', "no journal of nkf"),
        (
            json.dumps({"journal": 1, "model": "x", "min_confidence": 0.5}).encode() + b"\n",
            "another model; run without",
        ),
        (json.dumps({"journal": 1, "model": "x", "seed": 1}).encode() + b"\n", "another min_confidence, model, seed;"),
    ],
)
def test_a_foreign_journal_is_refused_and_stays(tmp_path, content, message):
    (tmp_path / "a.journal").write_bytes(content)
    with pytest.raises(NkfError, match=message), journal_of(tmp_path / "a.journal"):
        pass
    assert (tmp_path / "a.journal").read_bytes() == content


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("content", [b"", b"{", b'{"journal": 1, "mod'])
def test_a_journal_that_was_stopped_in_its_first_line_is_begun_anew(tmp_path, content, resume):
    (tmp_path / "a.journal").write_bytes(content)
    with journal_of(tmp_path / "a.journal", resume=resume) as journal:
        assert journal.count == 0
        journal.add(*ENTRIES[0])
    with journal_of(tmp_path / "a.journal") as journal:
        assert list(journal) == ENTRIES[:1]


def test_a_journal_that_cannot_be_begun_leaves_no_file(tmp_path, monkeypatch):
    def full(*args):
        raise OSError("no space left")

    monkeypatch.setattr(Journal, "_append", full)
    with pytest.raises(OSError, match="no space"), journal_of(tmp_path / "a.journal", resume=False):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_journal_of_another_run_is_not_removed(tmp_path):
    with journal_of(tmp_path / "a.journal", resume=False) as journal:
        fill(tmp_path / "a.journal", ENTRIES[:2])
        journal.remove()
    with journal_of(tmp_path / "a.journal") as journal:
        assert list(journal) == ENTRIES[:2]


def test_a_file_that_is_no_journal_is_not_replaced_by_one(tmp_path):
    (tmp_path / "a.journal").write_text("dear diary\n")
    with pytest.raises(NkfError, match="no journal of nkf"), journal_of(tmp_path / "a.journal", resume=False):
        pass
    assert (tmp_path / "a.journal").read_text() == "dear diary\n"


def test_two_runs_cannot_go_on_with_one_journal(tmp_path):
    fill(tmp_path / "a.journal")
    with (
        journal_of(tmp_path / "a.journal"),
        pytest.raises(NkfError, match=r"a\.journal: another run is writing it"),
        journal_of(tmp_path / "a.journal"),
    ):
        pass


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NkfError, match=r"file/a\.journal: cannot be written"), journal_of(tmp_path / "file/a.journal"):
        pass
