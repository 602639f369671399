# Written by tools/write_stubs.py from the room's api notebook: do not edit.
from .augment import aligned_crops as aligned_crops
from .augment import polar_spectra as polar_spectra
from .augment import random_views as random_views
from .augment import turns as turns
from .checkpoints import CheckpointError as CheckpointError
from .images import ImageEstimator as ImageEstimator
from .layers import MaskedLinear as MaskedLinear
from .loop import TorchEstimator as TorchEstimator
from .loop import train as train
from .rows import n_parameters as n_parameters
from .saving import load as load
from .saving import save as save
