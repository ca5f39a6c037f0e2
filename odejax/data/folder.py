"""A folder of images, one subfolder for each class."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .._checks import check_count
from .._paths import local_path
from .dataset import ArrayDataset
from .prepared import DataNotFoundError

_ENDINGS = (".png", ".jpg", ".jpeg")
_GREY, _COLOUR = ("1", "L", "LA"), ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # Pillow's modes


def from_folder(
    path: str | os.PathLike,
    *,
    split: str = "all",
    size: tuple[int, int] | None = None,
    class_names: Sequence[str] | None = None,
) -> ArrayDataset:
    """The PNG and JPEG images of a folder that has one subfolder for each class.

        path/cat/a.png, path/cat/b.png, path/dog/1.jpg, ...: class 0 is "cat", class 1 is "dog"

    The images are in the order of their classes, and of their file names within a class. They are
    grey, (n, h, w, 1), if all files are, else colour, (n, h, w, 3). An alpha channel is dropped.
    Names that begin with a dot, and files with other endings, are not read.

    - `path`: the folder.
    - `split`: its name in results ("all").
    - `size`: (h, w) that every image is resized to (Pillow's bilinear filter, without keeping the
      aspect ratio). None, the default: all images must have one size.
    - `class_names`: the subfolders in the order of their classes, by default sorted by name. For a
      test set pass the training set's, `train.class_names`, so that both count the same.

    Raises `DataNotFoundError` for a folder that does not exist. Raises `ValueError`, naming file or
    folder, for no class or a class without images, subfolders other than `class_names`, a file that
    cannot be read or has more than 8 bits a channel, and images of several sizes.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name, grey in (("dark", 0), ("light", 255)):
    ...         (Path(folder) / name).mkdir()
    ...         Image.new("L", (4, 3), grey).save(Path(folder) / name / "1.png")
    ...     data = odejax.data.from_folder(folder)
    >>> data.images.shape, data.labels.tolist(), data.class_names
    ((2, 3, 4, 1), [0, 1], ('dark', 'light'))
    """
    folder = local_path("path", path)
    if not folder.is_dir():
        raise DataNotFoundError(f"the data folder {folder} does not exist")
    if size is not None:
        _check_size(size)
    class_names = _class_names(folder, class_names)
    files = {name: _images_of(folder / name) for name in class_names}
    every = [file for of_class in files.values() for file in of_class]
    # What can be wrong is read from the headers, before any image is decoded.
    headers = [_header(file) for file in every]
    if size is None:
        size = _one_size(every, [header[1] for header in headers])
    mode = "L" if all(header[0] in _GREY for header in headers) else "RGB"
    images = np.empty((len(every), *size, len(mode)), np.uint8)
    for i, file in enumerate(every):
        images[i] = _decoded(file, mode, size).reshape(images.shape[1:])
    return ArrayDataset(
        images,
        np.repeat(np.arange(len(files)), [len(of_class) for of_class in files.values()]),
        name=folder.name,
        split=split,
        source=f"the PNG and JPEG files of a folder named {folder.name}",
        class_names=class_names,
    )


def _check_size(size):
    if not isinstance(size, Sequence) or isinstance(size, str) or len(size) != 2:
        raise ValueError(f"size must be (height, width); got {size}")
    check_count(height=size[0], width=size[1])


def _class_names(folder: Path, given: Sequence[str] | None) -> tuple[str, ...]:
    there = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not there:
        raise ValueError(f"{folder} has no subfolders: it must have one for each class")
    if given is None:
        return tuple(there)
    if isinstance(given, str) or sorted(given) != there:
        raise ValueError(
            f"class_names must be the subfolders of {folder}, {', '.join(there)}; got {given}"
        )
    return tuple(given)


def _images_of(folder: Path) -> list[Path]:
    files = sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in _ENDINGS and not file.name.startswith(".")
    )
    if not files:
        raise ValueError(f"the class {folder} has no images ({', '.join(_ENDINGS)})")
    return files


def _header(file: Path) -> tuple[str, tuple[int, int]]:
    """Its mode, and its (height, width)."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            mode, (width, height) = image.mode, image.size
    except UnidentifiedImageError:
        raise ValueError(f"{file} cannot be read: no image") from None
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    if mode not in (*_GREY, *_COLOUR):
        raise ValueError(f"{file} must have 8 bits a channel; got Pillow's mode {mode}")
    return mode, (height, width)


def _one_size(files: list[Path], sizes: list[tuple[int, int]]) -> tuple[int, int]:
    for file, size in zip(files, sizes, strict=True):
        if size != sizes[0]:
            raise ValueError(
                f"images must have one size, or size=(h, w) be given; got {sizes[0]} of {files[0]} "
                f"and {size} of {file}"
            )
    return sizes[0]


def _decoded(file: Path, mode: str, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(file) as image:
            pixels = image.convert(mode)
    except (OSError, SyntaxError, ValueError) as error:  # whatever its decoders raise
        raise ValueError(f"{file} cannot be read: {error}") from None
    if pixels.size != (size[1], size[0]):
        pixels = pixels.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(pixels)
