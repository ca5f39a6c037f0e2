"""Data sets by name, arrays that are checked, and augmentation."""

import builtins
import dataclasses
import importlib
import importlib.util
import io
import json
import os
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn
from sklearn.datasets import load_digits

from odejax.data import (
    ArrayDataset,
    DataNotFoundError,
    StreamedDataset,
    crop_and_flip,
    load,
    random_crop,
    random_flip,
)


def small_dataset(n=10, n_classes=3):
    images = np.arange(n * 4, dtype=np.uint8).reshape(n, 2, 2, 1)
    return ArrayDataset(images, np.arange(n, dtype=np.int32) % n_classes, n_classes)


@pytest.mark.parametrize(("split", "n"), [("train", 1297), ("test", 500)])
def test_digits_have_the_published_sizes_and_types(split, n):
    data = load("digits", split)
    assert data.images.shape == (n, 8, 8, 1)
    assert data.images.dtype == np.uint8
    assert data.labels.shape == (n,)
    assert data.labels.dtype == np.int32
    assert set(data.labels) == set(range(10))
    assert (data.name, data.split, data.n_classes) == ("digits", split, 10)


def test_digits_are_scikit_learns_stretched_to_255_and_split_without_overlap():
    original = load_digits()
    train, test = load("digits", "train"), load("digits", "test")
    pixels = np.concatenate([train.pixels, test.pixels])[..., 0]
    np.testing.assert_allclose(pixels, original.images / 16, atol=0.5 / 255 + 1e-6)
    np.testing.assert_array_equal(np.concatenate([train.labels, test.labels]), original.target)


def test_grey_levels_stay_apart():
    assert len(np.unique(load("digits", "train").images)) == 17


# Of images and labels: a result that names one of them is a result on these very digits.
DIGESTS = {
    "train": "2b9efc8badea1a7e2b442de4e8f8d0e53f58a784ca12359b73a89d077ee1b60a",
    "test": "52ecb0168e398d9268f804ef4254f6da64da0529d7dd7cc3201e533a8dec1a9c",
}


@pytest.mark.parametrize("split", DIGESTS)
def test_the_digits_say_where_they_are_from_and_are_always_the_same(split):
    stated = load("digits", split).provenance()
    assert json.loads(json.dumps(stated)) == stated
    assert (stated["name"], stated["split"]) == ("digits", split)
    assert stated["n"] == len(load("digits", split))
    assert stated["source"].startswith(f"scikit-learn {sklearn.__version__} load_digits, 17 grey")
    assert f"odejax.data.load('digits', '{split}')" in stated["how_to_get"]
    assert stated["digest"] == DIGESTS[split]


@pytest.mark.parametrize(("name", "split"), [("minst", "train"), ("digits", "validation")])
def test_an_unknown_name_or_split_is_refused_with_those_accepted(name, split):
    wrong = name if name == "minst" else split
    with pytest.raises(ValueError, match=rf"'{wrong}'.*; accepted: .*(mnist|test)"):
        load(name, split)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    missing = tmp_path / "nowhere"
    with pytest.raises(DataNotFoundError, match="nowhere"):
        load("mnist", "train", data_dir=missing)
    assert not missing.exists()


@pytest.mark.parametrize("given_by", ["argument", "environment"])
def test_an_empty_folder_fails_fast_with_name_and_folder_and_leaves_no_files(
    given_by, tmp_path, monkeypatch
):
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.setenv("ODEJAX_CACHE_DIR", str(tmp_path / "cache"))
    find_spec = importlib.util.find_spec  # as on a machine without TensorFlow
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "tensorflow" else find_spec(name, *rest),
    )
    if given_by == "environment":
        monkeypatch.setenv("ODEJAX_DATA_DIR", str(folder))
    started = time.perf_counter()
    with pytest.raises(DataNotFoundError, match="mnist") as caught:
        load("mnist", "train", data_dir=folder if given_by == "argument" else None)
    assert time.perf_counter() - started < 10
    assert str(folder) in str(caught.value)
    assert "tensorflow" in str(caught.value)
    assert list(folder.iterdir()) == []
    assert not (tmp_path / "cache").exists()


def test_data_not_found_is_a_file_not_found():
    assert issubclass(DataNotFoundError, FileNotFoundError)


def test_take_keeps_images_and_labels_together():
    data = small_dataset()
    for indices in (np.array([7, 2, 2]), slice(1, 4)):
        taken = data.take(indices, split="part")
        np.testing.assert_array_equal(taken.images, data.images[indices])
        np.testing.assert_array_equal(taken.labels, data.labels[indices])
        assert (taken.split, taken.n_classes) == ("part", data.n_classes)
    assert data.take(slice(2)).split == data.split


def test_other_images_labels_or_order_have_another_digest_and_the_same_source():
    data = dataclasses.replace(small_dataset(), source="drawn by hand", how_to_get="ask for it")
    whole = data.provenance()
    assert (whole["source"], whole["how_to_get"]) == ("drawn by hand", "ask for it")
    rest, held = data.holdout(4)
    others = [data.take(slice(8)), data.take(np.arange(10)[::-1]), rest, held]
    others.append(dataclasses.replace(data, labels=data.labels[::-1].copy()))
    stated = [other.provenance() for other in others]
    assert [one["n"] for one in stated] == [8, 10, 6, 4, 10]
    assert {(one["source"], one["how_to_get"]) for one in stated} == {
        ("drawn by hand", "ask for it")
    }
    assert len({one["digest"] for one in (whole, *stated)}) == 6
    assert data.take(slice(None), split="part").provenance()["digest"] == whole["digest"]
    assert small_dataset().provenance()["source"] == "custom"


def test_pixels_are_the_images_in_the_unit_interval():
    data = ArrayDataset(np.array([0, 51, 255], np.uint8).reshape(1, 1, 3, 1), [0])
    assert data.pixels.dtype == np.float32
    np.testing.assert_allclose(np.ravel(data.pixels), [0, 0.2, 1], atol=1e-7)


def test_a_holdout_is_disjoint_and_complete():
    data = small_dataset()
    rest, held = data.holdout(4, seed=1)
    assert (len(rest), len(held)) == (6, 4)
    first_pixels = np.concatenate([rest.images, held.images])[:, 0, 0, 0]
    np.testing.assert_array_equal(np.sort(first_pixels), data.images[:, 0, 0, 0])


def test_a_holdout_is_the_same_for_one_seed_and_another_for_another():
    data = small_dataset(100)
    first, again, other = (data.holdout(30, seed=s)[1].images for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("n", "said"),
    [
        (0, "n must be at least 1; got 0"),
        ("2", "n must be an integer; got '2'"),
        (10, "hold out 10 of 10"),
        (11, "hold out 11 of 10"),
    ],
)
def test_a_holdout_of_none_or_all_is_refused(n, said):
    with pytest.raises(ValueError, match=said):
        small_dataset().holdout(n)


def test_a_smaller_sample_of_one_seed_is_within_a_larger_one_and_in_order():
    data = ArrayDataset(np.arange(100, dtype=np.uint8)[:, None, None], np.zeros(100, int))
    few, more, other = (
        data.sample(n, seed=seed).images[:, 0, 0, 0] for n, seed in ((10, 1), (30, 1), (30, 2))
    )
    assert (np.diff(more.astype(int)) > 0).all()
    assert set(few) < set(more) != set(other)
    np.testing.assert_array_equal(data.sample(100).images, data.images)
    with pytest.raises(ValueError, match="cannot draw 101 of 100 images"):
        data.sample(101)


# Augmentation. Every pixel of the image has a value of its own, so no two windows are alike.
IMAGE = (1 + jnp.arange(8 * 6 * 2, dtype=jnp.float32).reshape(8, 6, 2)) / 100
KEYS = jax.random.split(jax.random.key(0), 2000)


def all_windows(x, padding):
    padded = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
    h, w, _ = x.shape
    return {
        padded[top : top + h, left : left + w].tobytes()
        for top in range(2 * padding + 1)
        for left in range(2 * padding + 1)
    }


def test_crops_are_all_81_windows_of_the_padded_image():
    crops = np.asarray(jax.jit(jax.vmap(lambda key: random_crop(IMAGE, key)))(KEYS))
    assert crops.shape == (2000, *IMAGE.shape)
    windows = all_windows(np.asarray(IMAGE), 4)
    assert len(windows) == 81
    assert {crop.tobytes() for crop in crops} == windows


def test_a_flip_mirrors_about_half_the_images_and_changes_nothing_else():
    flips = np.asarray(jax.jit(jax.vmap(lambda key: random_flip(IMAGE, key)))(KEYS))
    mirrored = (flips == np.asarray(IMAGE)[:, ::-1]).all(axis=(1, 2, 3))
    same = (flips == np.asarray(IMAGE)).all(axis=(1, 2, 3))
    assert (mirrored ^ same).all()
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / 2000**0.5


def test_crop_and_flip_does_both_independently():
    both = np.asarray(jax.jit(jax.vmap(lambda key: crop_and_flip(IMAGE, key)))(KEYS))
    windows = all_windows(np.asarray(IMAGE), 4)
    mirrored = {
        np.frombuffer(w, np.float32).reshape(IMAGE.shape)[:, ::-1].tobytes() for w in windows
    }
    seen = {x.tobytes() for x in both}
    assert seen <= windows | mirrored
    assert len(seen & windows) > 70
    assert len(seen & mirrored) > 70


# Published data, where it is on disk.


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "shape", "n_train"), [("mnist", (28, 28, 1), 60_000), ("cifar10", (32, 32, 3), 50_000)]
)
def test_published_data_has_its_published_sizes(name, shape, n_train):
    for split, n in (("train", n_train), ("test", 10_000)):
        data = load(name, split)
        assert data.images.shape == (n, *shape)
        assert data.image_shape == shape


@pytest.mark.slow
@pytest.mark.data
def test_mnist_has_the_published_number_of_each_digit():
    train = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    test = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(load("mnist", "train").labels).tolist() == train
    assert np.bincount(load("mnist", "test").labels).tolist() == test


@pytest.mark.slow
@pytest.mark.data
def test_cifar10_has_as_many_of_every_class():
    assert np.bincount(load("cifar10", "train").labels).tolist() == [5000] * 10
    assert np.bincount(load("cifar10", "test").labels).tolist() == [1000] * 10


@pytest.mark.slow
@pytest.mark.data
def test_mnist_pixels_have_the_published_mean_and_deviation():
    images = load("mnist", "train").images
    np.testing.assert_allclose(images.mean() / 255, 0.1307, atol=5e-5)
    np.testing.assert_allclose(images.std() / 255, 0.3081, atol=5e-5)


@pytest.fixture(scope="module")
def decoded(tmp_path_factory):
    """MNIST's test images, decoded once, and the cache folder that holds them."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ODEJAX_CACHE_DIR", str(folder))
        return load("mnist", "test"), folder


def kept(data):
    """In the place of `_decode`, which takes seconds."""
    version = data.source.split(":")[1].split(",")[0]
    stored = {"version": version, "encoding": data.source.rsplit(" as ")[-1]}
    stored["class_names"] = list(data.class_names)
    return lambda *_: (data.images, data.labels, stored)


@pytest.mark.data
def test_what_tfds_prepared_can_be_streamed(decoded):
    import tensorflow_datasets as tfds

    source = tfds.data_source("mnist", split="test", data_dir=os.environ["ODEJAX_DATA_DIR"])
    order, (held, _) = np.array([9_999, 3, 5_000, 3]), decoded
    batches = list(StreamedDataset(source).read(order, 2))
    images, labels = (np.concatenate(part) for part in zip(*batches, strict=True))
    np.testing.assert_array_equal(images, held.images[order])
    np.testing.assert_array_equal(labels, held.labels[order])


@pytest.mark.data
def test_a_second_load_takes_less_than_a_second(decoded, monkeypatch):
    first, folder = decoded
    monkeypatch.setenv("ODEJAX_CACHE_DIR", str(folder))
    started = time.perf_counter()
    second = load("mnist", "test")
    assert time.perf_counter() - started < 1
    np.testing.assert_array_equal(first.images, second.images)
    np.testing.assert_array_equal(first.labels, second.labels)


@pytest.mark.data
def test_prepared_data_says_its_version_and_how_its_images_are_stored(decoded):
    provenance = decoded[0].provenance()
    versions = [path.name for path in Path(os.environ["ODEJAX_DATA_DIR"]).glob("mnist/*")]
    sources = [f"TensorFlow Datasets mnist:{v}, images stored as PNG" for v in versions]
    assert provenance["source"] in sources
    assert "odejax[download] downloads mnist" in provenance["how_to_get"]


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_the_encoding_is_that_of_the_stored_images(name):
    import tensorflow_datasets as tfds
    from PIL import Image

    folder, raw = os.environ["ODEJAX_DATA_DIR"], {"image": tfds.decode.SkipDecoding()}
    stored = tfds.data_source(name, split="test", data_dir=folder, decoders=raw)[0]["image"]
    encoding = Image.open(io.BytesIO(stored)).format
    assert load(name, "test").source.endswith(f" as {encoding}")


@pytest.mark.data
def test_the_cache_keeps_where_the_data_are_from(decoded, monkeypatch):
    first, folder = decoded
    monkeypatch.setenv("ODEJAX_CACHE_DIR", str(folder))
    monkeypatch.setattr(importlib.import_module("odejax.data.prepared"), "_decode", None)
    assert load("mnist", "test").provenance() == first.provenance()


@pytest.mark.data
def test_a_crash_while_writing_the_cache_leaves_nothing_behind(decoded, tmp_path, monkeypatch):
    monkeypatch.setenv("ODEJAX_CACHE_DIR", str(tmp_path))
    data, save = decoded[0], np.save
    # The cache is what is tested, not the decoding.
    module = importlib.import_module("odejax.data.prepared")
    monkeypatch.setattr(module, "_decode", kept(data))

    def crash_on_labels(path, array):
        if "labels" in str(path):
            raise OSError("no space left on device")
        save(path, array)

    # The work goes on: what was decoded is returned, and decoded again next time.
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", crash_on_labels)
        with pytest.warns(UserWarning, match="could not be kept in .*no space"):
            assert len(load("mnist", "test")) == 10_000
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(load("mnist", "test")) == 10_000
    assert sorted(p.name for p in tmp_path.rglob("*.npy")) == ["images.npy", "labels.npy"]


@pytest.mark.data
def test_no_flipped_bit_of_the_cache_is_used(decoded, tmp_path, monkeypatch):
    data, folder = decoded
    monkeypatch.setenv("ODEJAX_CACHE_DIR", str(tmp_path))
    module = importlib.import_module("odejax.data.prepared")
    again, rng = [], np.random.default_rng(0)

    def decode(*_):
        again.append(True)
        return kept(data)()

    monkeypatch.setattr(module, "_decode", decode)
    for i in range(8):
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        shutil.copytree(folder / "data", tmp_path / "data")
        file = rng.choice(sorted(path for path in tmp_path.rglob("*") if path.is_file()))
        content = bytearray(file.read_bytes())
        place = rng.integers(8 * min(len(content), 10 ** (1 + i)))  # the header, too
        content[place // 8] ^= 1 << place % 8
        file.write_bytes(content)
        with pytest.warns(UserWarning, match="is damaged: it is decoded anew"):
            loaded = load("mnist", "test")
        assert len(again) == i + 1
        np.testing.assert_array_equal(loaded.images, data.images)
        np.testing.assert_array_equal(loaded.labels, data.labels)
        assert loaded.source == data.source


@pytest.mark.data
def test_what_a_killed_process_left_in_the_cache_is_removed(decoded, tmp_path, monkeypatch):
    data, _ = decoded
    monkeypatch.setenv("ODEJAX_CACHE_DIR", str(tmp_path))
    module = importlib.import_module("odejax.data.prepared")
    monkeypatch.setattr(module, "_decode", kept(data))
    old, new = (tmp_path / "data" / f".tmp-{age}" for age in ("old", "new"))
    for unfinished in (old, new):
        unfinished.mkdir(parents=True)
    os.utime(old, (time.time() - 7200,) * 2)
    load("mnist", "test")
    assert not old.exists()
    assert new.exists()  # another process may be at work in it


@pytest.mark.slow
@pytest.mark.data
def test_two_processes_that_write_one_cache_entry_do_not_disturb_each_other(tmp_path, monkeypatch):
    monkeypatch.setenv("ODEJAX_CACHE_DIR", str(tmp_path))
    save, started, nested = np.save, [], []

    def another_writer_is_faster(path, array):
        save(path, array)
        if "labels" in str(path) and not started:
            started.append(True)
            nested.append(load("mnist", "test"))  # finds no entry yet, and writes its own

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", another_writer_is_faster)
        data = load("mnist", "test")
    assert len(nested) == 1
    np.testing.assert_array_equal(data.images, nested[0].images)
    assert len(list((tmp_path / "data").iterdir())) == 1


@pytest.mark.data
def test_a_cached_data_set_is_read_without_tfds(decoded, monkeypatch):
    monkeypatch.setenv("ODEJAX_CACHE_DIR", str(decoded[1]))
    real_import = builtins.__import__

    def no_tfds(name, *rest, **named):
        assert not name.startswith("tensorflow_datasets")
        return real_import(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", no_tfds)
    assert len(load("mnist", "test")) == 10_000
