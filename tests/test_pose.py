"""Head pose from projected points of known rotation."""

import numpy as np
import pytest

from nkf.geometry import LANDMARK_MIRROR, MEAN_SHAPE
from nkf.pose import MEAN_SHAPE_3D, head_pose


def rotation(yaw_deg, pitch_deg, roll_deg):
    """Rx(pitch), then Ry(yaw), then Rz(roll); the nose points to -z."""
    (cy, cp, cr), (sy, sp, sr) = (f(np.radians([yaw_deg, pitch_deg, roll_deg])) for f in (np.cos, np.sin))
    return (
        np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
        @ np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
        @ np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    )


@pytest.mark.parametrize("angles", [(0, 0, 0), (30, 0, 0), (0, 20, 0), (0, 0, 25), (-50, 10, 0), (30, -15, 40)])
def test_head_pose_of_a_rotated_mean_face(angles):
    points = (MEAN_SHAPE_3D @ rotation(*angles).T)[:, :2] * 40 + [70, 50]
    np.testing.assert_allclose(head_pose(points), angles, atol=1e-3)


def test_the_flat_mean_shape_looks_at_the_viewer():
    yaw, pitch, roll = head_pose(MEAN_SHAPE * 112)
    assert abs(yaw) < 1
    assert abs(pitch) < 10
    assert abs(roll) < 1


def test_the_mean_face_is_symmetric_and_centred():
    mirrored = MEAN_SHAPE_3D[LANDMARK_MIRROR] * [-1, 1, 1]
    np.testing.assert_allclose(mirrored, MEAN_SHAPE_3D, atol=2e-3)
    np.testing.assert_allclose(MEAN_SHAPE_3D.mean(axis=0), 0, atol=1e-3)


@pytest.mark.parametrize("points", [np.zeros((68, 2)), np.stack([np.arange(68.0), np.arange(68.0)], axis=1)])
def test_points_on_a_line_have_no_pose(points):
    with pytest.raises(ValueError, match="lie on one line"):
        head_pose(points)
