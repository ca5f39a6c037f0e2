"""Data sets that TFDS has prepared, whatever they are named and however many classes they have."""

import importlib
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from odejax.data import DataNotFoundError, load

prepared = importlib.import_module("odejax.data.prepared")
pytestmark = pytest.mark.filterwarnings("ignore")  # TFDS's own
PIXELS = np.random.default_rng(0).integers(0, 256, (9, 4, 5, 3), dtype=np.uint8)
CLASSES = ["cat", "dog", "owl"]


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def builder(folder, name, rows, *, keys=("picture", "kind"), features=None):
    """TFDS's own, of a data set: `rows` by split, as `{"picture": ..., "kind": ...}`."""
    import tensorflow_datasets as tfds

    tf = tfds.features
    classes, picture = tf.ClassLabel(names=CLASSES), tf.Image(shape=(None, None, 3))
    features = features or {"picture": picture, "kind": classes}

    class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            made = tf.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=made, supervised_keys=keys)

        def _split_generators(self, manager):
            return {split: enumerate(of_split) for split, of_split in rows.items()}

        def _generate_examples(self):
            raise NotImplementedError

    Made.name = name
    return Made(data_dir=folder, file_format="array_record")


def prepare(*args, **settings):
    builder(*args, **settings).download_and_prepare(file_format="array_record")


def labelled(indices):
    return [{"picture": png(PIXELS[i]), "kind": i % 3} for i in indices]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """`beasts`, of three classes, with a split that is neither train nor test."""
    folder = tmp_path_factory.mktemp("tfds")
    prepare(folder, "beasts", {"train": labelled(range(6)), "validation": labelled(range(6, 9))})
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ODEJAX_CACHE_DIR", str(tmp_path / "cache"))


def test_features_classes_and_splits_are_those_that_tfds_states(tiny):
    for split, there in (("train", range(6)), ("validation", range(6, 9))):
        data = load("beasts", split, data_dir=tiny)
        assert (data.n_classes, data.class_names) == (3, tuple(CLASSES))
        assert (data.name, data.split, data.image_shape) == ("beasts", split, (4, 5, 3))
        # TFDS shuffles what it prepares.
        order = [int(np.flatnonzero((image == PIXELS).all((1, 2, 3)))[0]) for image in data.images]
        assert sorted(order) == list(there)
        assert data.labels.tolist() == [i % 3 for i in order]
    assert data.source == "TensorFlow Datasets beasts:1.0.0, images stored as PNG"


def test_what_is_read_from_the_cache_is_what_was_decoded(tiny, monkeypatch):
    first = load("beasts", "train", data_dir=tiny)
    monkeypatch.setattr(prepared, "_decode", None)
    again = load("beasts", "train", data_dir=tiny)
    np.testing.assert_array_equal(first.images, again.images)
    assert (again.class_names, again.provenance()) == (first.class_names, first.provenance())


def test_a_split_that_it_does_not_have_is_refused_with_those_it_has(tiny):
    with pytest.raises(ValueError, match="'test' of beasts; accepted: train, validation"):
        load("beasts", "test", data_dir=tiny)


@pytest.mark.parametrize("name", ["Beasts!", "../beasts", "beasts:1.0", "beasts/a/b", ""])
def test_a_name_of_another_form_is_refused(tiny, name):
    with pytest.raises(ValueError, match="data sets are named NAME, NAME/CONFIG"):
        load(name, "train", data_dir=tiny)


def test_the_newest_version_is_read_or_the_one_named(tiny, tmp_path):
    for version in ("9.0.0", "10.0.0"):
        shutil.copytree(tiny / "beasts" / "1.0.0", tmp_path / "beasts" / version)
        file = tmp_path / "beasts" / version / "dataset_info.json"
        file.write_text(file.read_text().replace("1.0.0", version))
    assert "beasts:10.0.0," in load("beasts", "train", data_dir=tmp_path).source
    assert "beasts:9.0.0," in load("beasts:9.0.0", "train", data_dir=tmp_path).source
    with pytest.raises(ValueError, match=r"unknown data set 'beasts:8\.0\.0'"):
        load("beasts:8.0.0", "train", data_dir=tmp_path)


def test_a_configuration_is_named_where_there_are_several(tiny, tmp_path):
    shutil.copytree(tiny / "beasts", tmp_path / "beasts" / "small")
    assert len(load("beasts", "train", data_dir=tmp_path)) == 6
    shutil.copytree(tiny / "beasts", tmp_path / "beasts" / "large")
    with pytest.raises(ValueError, match="load one of beasts/large, beasts/small"):
        load("beasts", "train", data_dir=tmp_path)
    data = load("beasts/small:1.0.0", "train", data_dir=tmp_path)
    assert data.source.startswith("TensorFlow Datasets beasts/small:1.0.0,")


def test_a_data_set_for_another_task_is_refused_by_name(tmp_path):
    import tensorflow_datasets as tfds

    tf = tfds.features
    text = {"text": tf.Text(), "kind": tf.ClassLabel(names=CLASSES)}
    prepare(
        tmp_path,
        "tales",
        {"train": [{"text": "once", "kind": 0}]},
        keys=("text", "kind"),
        features=text,
    )
    with pytest.raises(ValueError, match=r"tales is no set of uint8 images.*text \(Text of"):
        load("tales", "train", data_dir=tmp_path)
    prepare(tmp_path, "unlabelled", {"train": labelled([0])}, keys=None)
    with pytest.raises(ValueError, match=r"unlabelled is no set of uint8 images.*: None"):
        load("unlabelled", "train", data_dir=tmp_path)


def test_images_of_several_sizes_are_refused_by_name(tmp_path):
    rows = [{"picture": png(PIXELS[0][:size]), "kind": 0} for size in (3, 4)]
    prepare(tmp_path, "mixed", {"train": rows})
    with pytest.raises(ValueError, match=r"mixed have several shapes, \(., 5, 3\) and"):
        load("mixed", "train", data_dir=tmp_path)


def test_what_is_not_prepared_is_prepared_by_tfds_if_it_is_of_classified_images(
    tmp_path, monkeypatch
):
    import tensorflow_datasets as tfds

    made = {
        "beasts": builder(tmp_path, "beasts", {"train": labelled(range(3))}),
        "unlabelled": builder(tmp_path, "unlabelled", {"train": labelled([0])}, keys=None),
    }
    monkeypatch.setattr(tfds, "list_builders", lambda **_: list(made))
    monkeypatch.setattr(tfds, "builder", lambda name, **_: made[name])
    # As if TensorFlow were there: these images need no encoding.
    monkeypatch.setattr(prepared.importlib.util, "find_spec", lambda name: True)
    with pytest.raises(ValueError, match="unlabelled is no set of uint8 images"):
        load("unlabelled", "train", data_dir=tmp_path)
    assert list(tmp_path.glob("*/*")) == []
    assert len(load("beasts", "train", data_dir=tmp_path)) == 3
    with pytest.raises(ValueError, match=r"unknown data set 'beast'.*, such as beasts"):
        load("beast", "train", data_dir=tmp_path)


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_a_damaged_file_is_named(tiny, tmp_path, file):
    shutil.copytree(tiny / "beasts", tmp_path / "beasts")
    (tmp_path / "beasts" / "1.0.0" / file).write_text("{")
    with pytest.raises(DataNotFoundError, match=r"beasts.* cannot be read .*: prepare it again"):
        load("beasts", "train", data_dir=tmp_path)


def test_what_is_prepared_in_another_format_counts_as_not_prepared(tiny, tmp_path):
    shutil.copytree(tiny / "beasts", tmp_path / "mnist")
    file = tmp_path / "mnist" / "1.0.0" / "dataset_info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(DataNotFoundError, match="mnist is not prepared in"):
        load("mnist", "train", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("stored", "encoding"),
    [(b"\xff\xd8\xff\xe0", "JPEG"), (b"\x89PNG\r\n", "PNG"), (b"GIF89a", "an unknown format")],
)
def test_the_first_bytes_of_an_image_tell_how_it_is_stored(stored, encoding):
    assert prepared._encoding(stored) == encoding
    source, how_to_get = prepared._origin("cifar10", "test", "3.0.2", encoding)
    how = "stored as PNG" if encoding == "PNG" else f"re-encoded as {encoding}"
    assert source == f"TensorFlow Datasets cifar10:3.0.2, images {how}"
    assert how_to_get.startswith("not by downloading") == (encoding != "PNG")
    other, _ = prepared._origin("food101", "test", "2.0.0", encoding)  # whose images may be JPEG
    assert other.endswith(f"stored as {encoding}")
