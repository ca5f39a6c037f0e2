"""Data: `load(name, split)` and what is done to images on the device."""

from .augment import (
    crop_and_flip as crop_and_flip,
    random_crop as random_crop,
    random_flip as random_flip,
)
from .dataset import ArrayDataset as ArrayDataset
from .load import DataNotFoundError as DataNotFoundError, cache_dir as cache_dir, load as load
from .perturbations import (
    brightness as brightness,
    gaussian_blur as gaussian_blur,
    gaussian_noise as gaussian_noise,
    resize as resize,
)
from .stream import StreamedDataset as StreamedDataset
