"""Data: `load(name, split)`, `from_folder(path)`, and what is done to images on the device."""

from .augment import (
    crop_and_flip as crop_and_flip,
    random_crop as random_crop,
    random_flip as random_flip,
)
from .cache import cache_dir as cache_dir
from .dataset import ArrayDataset as ArrayDataset
from .folder import from_folder as from_folder
from .load import load as load
from .perturbations import (
    brightness as brightness,
    gaussian_blur as gaussian_blur,
    gaussian_noise as gaussian_noise,
    resize as resize,
)
from .prepared import DataNotFoundError as DataNotFoundError
from .stream import StreamedDataset as StreamedDataset
