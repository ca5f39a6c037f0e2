"""Images of one's own: arrays of any kind, folders with a class in each subfolder."""

import re

import numpy as np
import pytest
from PIL import Image

from odejax.data import ArrayDataset, DataNotFoundError, from_folder

RNG = np.random.default_rng(0)
GREY, COLOUR = (RNG.integers(0, 256, (3, 8, 9, c), dtype=np.uint8) for c in (1, 3))
LABELS = np.array([0, 1, 2])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_kept_as_floats(dtype):
    pixels = (COLOUR / 255).astype(dtype)
    data = ArrayDataset(pixels, LABELS)
    assert data.images.dtype == data.pixels.dtype == np.float32
    np.testing.assert_array_equal(data.images, pixels.astype(np.float32))
    np.testing.assert_array_equal(data.pixels, data.images)


def test_grey_images_may_leave_out_their_channel():
    one, other = ArrayDataset(GREY, LABELS), ArrayDataset(GREY[..., 0], LABELS)
    np.testing.assert_array_equal(one.images, other.images)
    assert one.provenance() == other.provenance()


@pytest.mark.parametrize("labels", [[0, 1, 2], *(LABELS.astype(d) for d in ("u1", "i8", "u8"))])
def test_labels_are_integers_of_any_type(labels):
    data = ArrayDataset(COLOUR, labels)
    assert (data.labels.dtype, data.labels.tolist()) == (np.int32, [0, 1, 2])


def test_classes_are_those_named_or_counted_or_seen():
    assert ArrayDataset(COLOUR, [1, 0, 1]).n_classes == 2
    assert ArrayDataset(COLOUR, [5, 0, 1], 7).n_classes == 7
    named = ArrayDataset(COLOUR, [2, 0, 2], class_names=["a", "b", "c"])
    assert (named.n_classes, named.class_names) == (3, ("a", "b", "c"))
    part = named.take(slice(0, 1))  # has one class of the three
    assert (part.n_classes, part.class_names) == (3, ("a", "b", "c"))


PIXELS = COLOUR / 255


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (COLOUR.astype(np.float32), LABELS, "divide them by 255"),
        (PIXELS + 0.1, LABELS, r"lie in \[0.0, 1.0\]; got \[0.\d+, 1.\d+\]$"),
        (np.where(PIXELS > 0.5, np.nan, PIXELS), LABELS, "got .nan, nan"),
        (COLOUR.astype(np.int64), LABELS, "int64"),
        (COLOUR.reshape(3, -1), LABELS, r"\(3, 216\)"),
        (np.moveaxis(COLOUR, -1, 1), LABELS, r"\(3, 3, 8, 9\): move .* np.moveaxis\(images, 1, -1"),
        (np.moveaxis(GREY, -1, 1), LABELS, r"\(3, 1, 8, 9\): move the axis"),
        ([COLOUR[0].tolist(), [1]], LABELS, "unequal rows"),
        (COLOUR[:0], LABELS[:0], "no images"),
        (COLOUR, LABELS[:2], r"\(2,\)"),
        (COLOUR, LABELS[:, None], r"\(3, 1\)"),
        (COLOUR, LABELS / 2, "float64"),
        (COLOUR, LABELS > 0, "bool"),
        (COLOUR, LABELS - 1, "without n_classes.* got 3 different ones from -1 to 1"),
        (COLOUR, LABELS + 1, "without n_classes.* got 3 different ones from 1 to 3"),
        (COLOUR, LABELS + 2**32, "at most 2147483647; got 4294967298"),
    ],
)
def test_arrays_of_another_form_are_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        ArrayDataset(images, labels)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_classes": 2}, "classes 0 to 1; got 2"),
        ({"n_classes": 0}, "n_classes must be at least 1; got 0"),
        ({"class_names": ("a", "b")}, "classes 0 to 1; got 2"),
        ({"class_names": ("a", "b", "c"), "n_classes": 4}, "class_names must be 4 names; got 3"),
        ({"class_names": "abc"}, "several names; got 'abc'"),
    ],
)
def test_labels_that_are_not_the_classes_given_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ArrayDataset(COLOUR, LABELS, **settings)


# Folders.


@pytest.fixture
def folder(tmp_path):
    """Two owls and a cat in colour; what is no image, or hidden, is passed over."""
    for place, pixels in (("owl/2.png", 0), ("owl/10.PNG", 1), ("cat/a.jpeg", 2)):
        save(tmp_path / place, COLOUR[pixels])
    (tmp_path / "cat" / "notes.txt").write_text("a cat")
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"")
    (tmp_path / ".git").mkdir()
    return tmp_path


def save(file, pixels):
    file.parent.mkdir(exist_ok=True)
    Image.fromarray(np.squeeze(pixels)).save(file, quality=100, subsampling=0)


def test_a_folder_has_a_class_in_each_subfolder(folder):
    data = from_folder(folder, split="train")
    assert (data.class_names, data.n_classes, data.split) == (("cat", "owl"), 2, "train")
    assert data.labels.tolist() == [0, 1, 1]
    # Classes and files by name: 10 comes before 2. JPEG loses a little.
    np.testing.assert_array_equal(data.images[1:], COLOUR[[1, 0]])
    assert np.abs(data.images[0].astype(int) - COLOUR[2]).max() < 30
    assert data.provenance()["source"].endswith(f"a folder named {folder.name}")


def test_a_folder_of_grey_images_is_grey_and_one_in_colour_makes_all_of_them_colour(tmp_path):
    for i in range(2):
        save(tmp_path / "a" / f"{i}.png", GREY[i])
    np.testing.assert_array_equal(from_folder(tmp_path).images, GREY[:2])
    save(tmp_path / "a" / "2.png", COLOUR[2])
    images = from_folder(tmp_path).images
    np.testing.assert_array_equal(images[:2], np.repeat(GREY[:2], 3, axis=-1))
    np.testing.assert_array_equal(images[2], COLOUR[2])


def test_images_of_several_sizes_are_resized_or_refused(folder):
    save(folder / "owl" / "3.png", np.full((16, 18, 3), 77, np.uint8))
    with pytest.raises(ValueError, match=r"\(8, 9\) of .*a\.jpeg and \(16, 18\) of .*3\.png"):
        from_folder(folder)
    images = from_folder(folder, size=(16, 18)).images
    assert images.shape == (4, 16, 18, 3)
    assert (images[3] == 77).all()


def test_a_test_set_counts_its_classes_as_the_training_set(folder):
    swapped = from_folder(folder, class_names=("owl", "cat"))
    assert swapped.labels.tolist() == [0, 0, 1]
    with pytest.raises(ValueError, match=r"cat, owl; got .'cat', 'dog'"):
        from_folder(folder, class_names=("cat", "dog"))


def spoil(folder, how):
    """Write what is wrong, and return a pattern of what is to be said."""
    if how == "no folder":
        return "nowhere does not exist"
    if how == "no classes":
        return "has no subfolders"
    file = folder / "cat" / "b.png"
    if how == "no images":
        (folder / "dog").mkdir()
        return "dog has no images"
    if how == "no image":
        file.write_text("not an image")
        return "b.png cannot be read: no image"
    if how == "cut short":
        save(file, COLOUR[0])
        file.write_bytes(file.read_bytes()[:-60])
        return "b.png cannot be read: "
    Image.fromarray(np.zeros((8, 9), np.uint16)).save(file)
    return "b.png must have 8 bits a channel; got Pillow's mode I;16"


@pytest.mark.parametrize(
    "how", ["no folder", "no classes", "no images", "no image", "cut short", "16 bits"]
)
def test_what_is_wrong_with_a_folder_is_said_by_name(folder, how):
    message = spoil(folder, how)
    path = {"no folder": folder / "nowhere", "no classes": folder / "cat"}.get(how, folder)
    with pytest.raises((ValueError, DataNotFoundError), match=message) as caught:
        from_folder(path)
    assert len(re.split(r"\n", str(caught.value))) == 1


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("size", [(8,), 8, "8x8", (8, 0), (8.5, 8)])
def test_a_size_that_is_none_is_refused(folder, size):
    with pytest.raises(ValueError, match=r"(size|height|width) must be"):
        from_folder(folder, size=size)
