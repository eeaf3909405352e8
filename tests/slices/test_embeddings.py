"""Embeddings on disk: what comes back, what is made again, what is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from medsam_tune.errors import DataError
from medsam_tune.slices.embeddings import EmbeddingStore, Place
from medsam_tune.slices.store import PreparedCase, SliceStore

MADE_BY = {"base": {"sha256": "ab", "image_size": 64}, "encoded_in": "float32"}


def embedding_store(root: Path, dtype: str = "float16", **other: object) -> EmbeddingStore:
    made = EmbeddingStore(root, "tiny", {**MADE_BY, **other}, (4, 2, 2), dtype)
    made.open()
    return made


def written(store: EmbeddingStore, place: Place) -> torch.Tensor:
    value = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(place.k))
    stored = store.rounded(value, [place])[0]
    store.put(place, stored)
    return stored


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_what_is_put_comes_back_to_every_process(
    store: SliceStore, prepared: list[PreparedCase], dtype: str
) -> None:
    embeddings = embedding_store(store.root, dtype)
    first, second = Place(prepared[0], 2, 0), Place(prepared[1], 5, 3)
    assert first not in embeddings
    assert embeddings.find(first) is None
    values = [written(embeddings, place) for place in (first, second)]
    assert values[0].dtype == getattr(torch, dtype)
    for other in (embeddings, embedding_store(store.root, dtype)):
        for reader in (other, pickle.loads(pickle.dumps(other))):
            found = [reader.find(place) for place in (first, second)]
            for value, one in zip(values, found, strict=True):
                assert one is not None
                assert torch.equal(one, value)
                assert one.dtype == value.dtype
            assert reader.find(Place(prepared[0], 2, 1)) is None  # another view
            assert reader.find(Place(prepared[0], 3, 0)) is None
            assert reader.find(Place(prepared[1], 2, 0)) is None
    assert [case.id for case in store.prepare([])] == []  # the slice store minds none of it


def test_one_file_of_known_size_for_each(store: SliceStore, prepared: list[PreparedCase]) -> None:
    embeddings = embedding_store(store.root)
    place = Place(prepared[0], 2, 1)
    written(embeddings, place)
    folder = embeddings.folder / prepared[0].path.name / "view_1"
    assert {path.name for path in folder.iterdir()} == {"zarr.json", "2.0.0.0"}
    assert (folder / "2.0.0.0").stat().st_size == 4 * 2 * 2 * 2 + 4  # and a checksum


@pytest.mark.parametrize("damage", ["shorter", "empty", "changed"])
def test_a_damaged_one_is_made_again(
    store: SliceStore, prepared: list[PreparedCase], damage: str
) -> None:
    embeddings = embedding_store(store.root)
    place = Place(prepared[0], 2, 0)
    value = written(embeddings, place)
    file = embeddings._chunk(place)
    content = file.read_bytes()
    changed = bytes([content[0] ^ 1]) + content[1:]
    file.write_bytes({"shorter": content[:-9], "empty": b"", "changed": changed}[damage])
    with pytest.warns(UserWarning, match=r"2\.0\.0\.0: is damaged and is made again"):
        assert embeddings.find(place) is None
    embeddings.put(place, value)
    found = embeddings.find(place)
    assert found is not None
    assert torch.equal(found, value)


@pytest.mark.parametrize(
    "other",
    [{"base": {"sha256": "cd", "image_size": 64}}, {"encoded_in": "bfloat16"}, {"rules": {}}],
)
def test_what_they_depend_on_is_their_key(
    store: SliceStore, prepared: list[PreparedCase], other: dict[str, object]
) -> None:
    place = Place(prepared[0], 2, 0)
    written(embedding_store(store.root), place)
    for another in (embedding_store(store.root, **other), embedding_store(store.root, "float32")):
        assert another.find(place) is None
    assert embedding_store(store.root).find(place) is not None


def test_a_folder_of_others_is_refused(store: SliceStore, prepared: list[PreparedCase]) -> None:
    embeddings = embedding_store(store.root)
    about = embeddings.folder / "about.json"
    assert json.loads(about.read_text())["base"]["sha256"] == "ab"
    about.write_text(about.read_text().replace('"ab"', '"cd"'))
    with pytest.raises(DataError, match=r"about\.json: is of other embeddings\. Delete "):
        embeddings.open()


def test_nothing_is_written_through_links(
    store: SliceStore, prepared: list[PreparedCase], tmp_path: Path
) -> None:
    embeddings = embedding_store(store.root)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    place = Place(prepared[0], 2, 0)
    (embeddings.folder / prepared[0].path.name).symlink_to(elsewhere)
    with pytest.raises(DataError, match=r"is a link; nothing is written through links"):
        written(embeddings, place)
    assert not [*elsewhere.iterdir()]
    (store.root / "embeddings").rename(tmp_path / "moved")
    (store.root / "embeddings").symlink_to(tmp_path / "moved")
    with pytest.raises(DataError, match=r"embeddings: is a link"):
        embeddings.open()


def test_a_strangers_description_is_not_followed(
    store: SliceStore, prepared: list[PreparedCase]
) -> None:
    place = Place(prepared[0], 2, 0)
    value = written(embedding_store(store.root), place)
    fresh = embedding_store(store.root)
    file = fresh._view(place) / "zarr.json"
    mine = file.read_text()
    file.write_text(mine.replace('"crc32c"', '"their_own"'))
    found = fresh.find(place)
    assert found is not None
    assert torch.equal(found, value)
    assert file.read_text() == mine


def test_the_size_is_said_and_a_full_disk_refused(
    store: SliceStore, prepared: list[PreparedCase], monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings = embedding_store(store.root)
    written(embeddings, Place(prepared[0], 2, 0))
    written(embeddings, Place(prepared[0], 2, 3))
    slices = [(prepared[0], 2), (prepared[1], 2)]
    usage = SimpleNamespace(free=111)
    monkeypatch.setattr("medsam_tune.slices.estimate.shutil.disk_usage", lambda _: usage)
    found = embeddings.estimate(slices, views=2)
    assert (found.there, found.bytes) == (1, 3 * 4 * 2 * 2 * 2)
    found.refuse_full_disk()
    found = embeddings.estimate(slices, views=3)
    assert found.bytes == 5 * 32
    with pytest.raises(DataError) as error:
        found.refuse_full_disk()
    assert "2 slices in 3 views; 1 are there, the others take 1.6e-07 GB; 1.11e-07" in str(
        error.value
    )
    assert "lower views (--set views=1)" in str(error.value)


def test_values_beyond_the_type_are_refused(
    store: SliceStore, prepared: list[PreparedCase]
) -> None:
    values = torch.zeros(2, 4, 2, 2)
    values[1, 0, 0, 0] = 1e5
    places = [Place(prepared[0], k, 0) for k in (2, 3)]
    with pytest.raises(DataError, match=r"case a: the embedding of slice 3 has values that float1"):
        embedding_store(store.root).rounded(values, places)
    assert embedding_store(store.root, "bfloat16").rounded(values, places).dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"cache_dtype is 'int8'; expected one of float16, bfl"):
        embedding_store(store.root, "int8")
