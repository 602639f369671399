"""Point groups found in maps that lie askew, off the middle and in noise; nothing found where there is nothing."""
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cellinterp.data.symmetry import find_symmetry, group_rotations
from cellinterp.factors.pose import geodesic_angle


def map_of(name, seed, noise=0.0, size=32):
    random, r = np.random.default_rng(seed), np.arange(size) - (size - 1) / 2
    frame = Rotation.random(rng=random).as_matrix()
    group = frame @ group_rotations(name) @ frame.T
    points = random.normal(size=(5, 3))
    points *= random.uniform(4, 9, (5, 1)) / np.linalg.norm(points, axis=1, keepdims=True)
    out = np.zeros((size,) * 3)
    for p, weight in zip(points, random.uniform(0.5, 1.5, 5)):
        for x, y, z in group @ p + 0.4:
            out += weight * np.exp(-((r[:, None, None] - z) ** 2 + (r[:, None] - y) ** 2 + (r - x) ** 2) / 6.5)
    return out + random.normal(0, noise * out.std(), out.shape), group


@pytest.mark.parametrize("name, seed, noise", [("C1", 1, 0.7), ("C3", 2, 0.5), ("T", 4, 0.7), ("D7", 2, 0.7)])
def test_the_group_is_found_in_its_own_frame(name, seed, noise):
    density, group = map_of(name, seed, noise)
    found = find_symmetry(density)
    assert found.name == name and len(found.rotations) == len(group)
    away = geodesic_angle(found.rotations[:, None], group[None]).min(1)
    assert away.max() < 6                                                               # degrees


def test_what_is_no_map_is_refused():
    with pytest.raises(ValueError, match="constant"): find_symmetry(np.zeros((16,) * 3))
    with pytest.raises(ValueError, match="expected .D, H, W."): find_symmetry(np.zeros((16, 16)))
