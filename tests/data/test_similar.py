"""The perceptual hash against changes it must ignore, and the search against comparing all pairs."""

import io

import numpy as np
import pytest
from PIL import Image

from nkf.data import similar
from nkf.data.similar import DEFAULT_DISTANCE, HASH_BITS, near_duplicates, perceptual_hash


def drawn_picture(seed: int, side: int = 96) -> np.ndarray:
    """Smooth random shapes in colour, with the falling spectrum of a photo."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(rng.normal(0, 40 / n**0.5, (n, n, 3)).astype(np.float32)[..., c]).resize((side,) * 2)
        )
        for n in (3, 6, 12, 24)
        for c in range(3)
    ]
    return np.clip(128 + np.stack([sum(layers[c::3]) for c in range(3)], axis=2), 0, 255).astype(np.uint8)


def distance(first: np.ndarray, second: np.ndarray) -> int:
    return int(np.bitwise_count(perceptual_hash(first) ^ perceptual_hash(second)).sum())


def as_jpeg(image: np.ndarray) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=60)
    return np.asarray(Image.open(stream))


CHANGES = {
    "jpeg": as_jpeg,
    "smaller": lambda image: np.asarray(Image.fromarray(image).resize((48, 48))),
    "darker": lambda image: (image * 0.8).astype(np.uint8),
    "less contrast": lambda image: (image * 0.8 + 25).astype(np.uint8),
    "grey": lambda image: np.asarray(Image.fromarray(image).convert("L").convert("RGB")),
    "cropped": lambda image: image[1:, :-1],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("seed", range(3))
def test_harmless_changes_stay_within_the_distance(change, seed):
    image = drawn_picture(seed)
    assert distance(image, CHANGES[change](image)) <= DEFAULT_DISTANCE


@pytest.mark.parametrize("change", [lambda i: i[:, ::-1], lambda i: i[::-1], lambda i: 255 - i], ids=["x", "y", "inv"])
def test_other_pictures_are_far(change):
    image = drawn_picture(0)
    assert distance(image, drawn_picture(1)) > 2 * DEFAULT_DISTANCE
    assert distance(image, np.ascontiguousarray(change(image))) > 2 * DEFAULT_DISTANCE


def test_hash_is_packed_bits():
    code = perceptual_hash(drawn_picture(0))
    assert (code.dtype, code.shape) == (np.uint8, (HASH_BITS // 8,))


@pytest.mark.parametrize(("level", "size"), [(0, (48, 48)), (77, (1, 1)), (255, (30, 200))])
def test_plain_picture_has_no_bit_set(level, size):
    assert not perceptual_hash(np.full((*size, 3), level, np.uint8)).any()


def test_first_bits_are_the_lowest_frequencies():
    ramp = np.repeat(np.linspace(255, 0, 64).astype(np.uint8)[None], 64, axis=0)  # bright at the left
    across, down = (np.repeat(image[..., None], 3, axis=2) for image in (ramp, ramp.T))
    assert np.unpackbits(perceptual_hash(across))[:2].tolist() == [1, 0]
    assert np.unpackbits(perceptual_hash(np.ascontiguousarray(down)))[:2].tolist() == [0, 1]


def all_pairs(hashes: np.ndarray, groups: np.ndarray, max_distance: int) -> list[tuple[int, int, int]]:
    distances = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(axis=2)
    i, j = np.nonzero((distances <= max_distance) & (groups[:, None] != groups[None]))
    return [(a, b, int(distances[a, b])) for a, b in zip(i.tolist(), j.tolist(), strict=True) if a < b]


def found(result: similar.Similar) -> list[tuple[int, int, int]]:
    return [(i, j, d) for (i, j), d in zip(result.pairs.tolist(), result.distances.tolist(), strict=True)]


def crowded_hashes(size: int, flips: int, seed: int = 0) -> np.ndarray:
    """Hashes around a few centres, with up to `flips` bits changed, and some equal ones."""
    rng = np.random.default_rng(seed)
    bits = np.repeat(rng.integers(0, 2, (12, 8 * size), np.uint8), 40, axis=0)
    for row in bits:
        row[rng.choice(8 * size, rng.integers(0, min(flips, 8 * size) + 1), replace=False)] ^= 1
    return np.packbits(rng.permutation(bits), axis=1)


@pytest.mark.parametrize("splits", [2, 3])
@pytest.mark.parametrize("max_distance", [0, 1, 2, 7, 15, 16, 17, 30])
def test_search_equals_comparing_all_pairs(max_distance, splits):
    hashes = crowded_hashes(16, max_distance)
    groups = np.random.default_rng(1).choice(
        [3, 0, 200][:splits], len(hashes), p=[[0.7, 0.3], [0.6, 0.3, 0.1]][splits - 2]
    )
    expected = all_pairs(hashes, groups, max_distance)
    result = near_duplicates(hashes, groups, max_distance)
    assert expected
    assert found(result) == expected
    assert result.note == ""


@pytest.mark.parametrize(("size", "max_distance"), [(1, 0), (1, 3), (1, 7), (3, 5), (8, 6), (9, 8), (32, 40)])
def test_search_takes_hashes_of_any_length(size, max_distance):
    hashes, groups = crowded_hashes(size, max_distance), np.arange(480) % 2
    assert found(near_duplicates(hashes, groups, max_distance)) == all_pairs(hashes, groups, max_distance)


@pytest.mark.parametrize("chunk", [20, 1000])
def test_chunks_do_not_change_the_result(monkeypatch, chunk):
    hashes, groups = crowded_hashes(16, 10), np.arange(480) % 3
    expected = all_pairs(hashes, groups, 16)
    monkeypatch.setattr(similar, "CHUNK", chunk)
    assert found(near_duplicates(hashes, groups)) == expected


def test_every_way_to_spread_the_differing_bits_is_found():
    """A pair at exactly the distance, its bits all in one place, spread evenly, or at random."""
    rng = np.random.default_rng(0)
    spreads = [np.arange(16), np.arange(112, 128), np.arange(0, 128, 8), np.arange(0, 128, 9)]
    spreads += [rng.choice(128, 16, replace=False) for _ in range(200)]
    bits = np.repeat(rng.integers(0, 2, (len(spreads), 128), np.uint8), 2, axis=0)
    for number, spread in enumerate(spreads):
        bits[2 * number + 1, spread] ^= 1
    result = near_duplicates(np.packbits(bits, axis=1), np.arange(len(bits)) % 2, 16)
    assert found(result) == [(2 * number, 2 * number + 1, len(spread)) for number, spread in enumerate(spreads)]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_one_group_has_no_pairs(count):
    result = near_duplicates(np.zeros((count, 16), np.uint8), np.zeros(count, np.int64))
    assert result.pairs.shape == (0, 2)
    assert result.distances.shape == (0,)
    assert result.note == ""


def test_many_blank_pictures_are_listed_but_not_each_with_each(monkeypatch):
    monkeypatch.setattr(similar, "MAX_PAIRS", 100)
    hashes = np.zeros((50, 16), np.uint8)
    groups = np.array([0] * 30 + [1] * 20)
    result = near_duplicates(hashes, groups)
    assert len(result.pairs) == 30
    assert set(result.pairs.ravel().tolist()) == set(range(50))
    assert (groups[result.pairs[:, 0]] != groups[result.pairs[:, 1]]).all()
    assert result.note == (
        "too many pictures look alike: 570 close pairs not listed, whose pictures occur in other pairs"
    )


def test_search_that_would_take_too_long_keeps_what_is_rare_and_says_so(monkeypatch):
    rng = np.random.default_rng(0)
    crowd = np.zeros((400, 16), np.uint8)
    crowd[:, 8:] = rng.integers(0, 256, (400, 8))  # half of the bits alike: in many bands nothing tells them apart
    pair = np.repeat(rng.integers(128, 256, (1, 16)).astype(np.uint8), 2, axis=0)
    hashes, groups = np.concatenate([crowd, pair]), np.array([0, 1] * 201)
    monkeypatch.setattr(similar, "MAX_COMPARISONS", 50_000)
    result = near_duplicates(hashes, groups, 3)
    assert (400, 401) in [tuple(row) for row in result.pairs.tolist()]
    assert result.note.startswith("too many pictures look alike: ")
    assert result.note.endswith(" comparisons not made, so close pairs may be missing")


def test_search_stops_where_nearly_all_are_close(monkeypatch):
    rng = np.random.default_rng(0)
    hashes = np.zeros((600, 16), np.uint8)
    hashes[:, 0] = rng.integers(0, 256, 600)  # 8 bits that differ at most
    monkeypatch.setattr(similar, "MAX_PAIRS", 500)
    monkeypatch.setattr(similar, "CHUNK", 1000)
    result = near_duplicates(hashes, np.arange(600) % 2)
    assert 500 < len(result.pairs) < 5000
    assert "comparisons not made" in result.note


@pytest.mark.parametrize("max_distance", [-1, 128])
def test_distance_out_of_range_is_refused(max_distance):
    with pytest.raises(ValueError, match=f"max_distance {max_distance}: expected 0 to 127"):
        near_duplicates(np.zeros((2, 16), np.uint8), np.arange(2), max_distance)


def test_groups_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"groups of shape \(3,\) for 2 hashes"):
        near_duplicates(np.zeros((2, 16), np.uint8), np.arange(3))
