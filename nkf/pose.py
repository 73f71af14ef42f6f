"""Head pose from 68 landmarks: a mean face in three dimensions, fitted by weak perspective."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nkf.geometry import Points

# fmt: off
# (68, 3): x right, y down, z away from the viewer, in distances of the outer eye corners, about the mean. From the mean
# face mesh of our teacher, made symmetric.
MEAN_SHAPE_3D: NDArray[np.float64] = np.array(
    [
        [-0.766, -0.405, 0.545], [-0.758, -0.252, 0.603], [-0.750, -0.094, 0.617], [-0.727, 0.077, 0.599],
        [-0.678, 0.259, 0.546], [-0.533, 0.525, 0.337], [-0.432, 0.623, 0.250], [-0.252, 0.754, 0.111],
        [0.000, 0.816, 0.047], [0.252, 0.754, 0.111], [0.432, 0.623, 0.250], [0.533, 0.525, 0.337],
        [0.678, 0.259, 0.546], [0.727, 0.077, 0.599], [0.750, -0.094, 0.617], [0.758, -0.252, 0.603],
        [0.766, -0.405, 0.545], [-0.632, -0.583, 0.013], [-0.563, -0.640, -0.076], [-0.458, -0.668, -0.150],
        [-0.322, -0.657, -0.212], [-0.165, -0.632, -0.242], [0.165, -0.632, -0.242], [0.322, -0.657, -0.212],
        [0.458, -0.668, -0.150], [0.563, -0.640, -0.076], [0.632, -0.583, 0.013], [0.000, -0.389, -0.245],
        [0.000, -0.220, -0.343], [0.000, -0.101, -0.427], [0.000, -0.006, -0.448], [-0.151, 0.078, -0.213],
        [-0.091, 0.116, -0.233], [0.000, 0.121, -0.250], [0.091, 0.116, -0.233], [0.151, 0.078, -0.213],
        [-0.500, -0.411, 0.013], [-0.429, -0.448, -0.061], [-0.314, -0.453, -0.081], [-0.199, -0.389, -0.043],
        [-0.295, -0.370, -0.065], [-0.406, -0.368, -0.046], [0.199, -0.389, -0.043], [0.314, -0.453, -0.081],
        [0.429, -0.448, -0.061], [0.500, -0.411, 0.013], [0.406, -0.368, -0.046], [0.295, -0.370, -0.065],
        [-0.288, 0.365, -0.018], [-0.171, 0.292, -0.189], [-0.088, 0.272, -0.230], [0.000, 0.285, -0.238],
        [0.088, 0.272, -0.230], [0.171, 0.292, -0.189], [0.288, 0.365, -0.018], [0.226, 0.445, -0.094],
        [0.091, 0.518, -0.149], [0.000, 0.528, -0.153], [-0.091, 0.518, -0.149], [-0.226, 0.445, -0.094],
        [-0.260, 0.366, -0.038], [-0.071, 0.342, -0.160], [0.000, 0.345, -0.168], [0.071, 0.342, -0.160],
        [0.260, 0.366, -0.038], [0.074, 0.429, -0.143], [0.000, 0.435, -0.151], [-0.074, 0.429, -0.143],
    ]
)
# fmt: on


class HeadPose(NamedTuple):
    """Where a face looks, in degrees: pitch down, then yaw to the image's right, then roll clockwise as displayed."""

    yaw_deg: float
    pitch_deg: float
    roll_deg: float


def head_pose(landmarks_px: Points) -> HeadPose:
    """Fit the mean face to (68, 2) landmarks: the affine map with the least squares, made a rotation.

    An expression moves the landmarks too, so a few degrees, of pitch above all, are within the method's error.

    Raises:
        ValueError: when the landmarks lie on one line.
    """
    points = landmarks_px - landmarks_px.mean(axis=0)
    affine = np.linalg.lstsq(MEAN_SHAPE_3D, points, rcond=None)[0].T  # (2, 3)
    u, stretch, vt = np.linalg.svd(affine, full_matrices=False)
    if not stretch[1] > 1e-6 * max(stretch[0], 1e-6):
        raise ValueError("the landmarks lie on one line, which has no pose")
    x_axis, y_axis = u @ vt  # the nearest two orthonormal rows
    z_axis = np.cross(x_axis, y_axis)
    yaw = np.degrees(np.arctan2(z_axis[0], np.hypot(x_axis[0], y_axis[0])))  # R = Rz(roll) Ry(yaw) Rx(pitch)
    pitch = np.degrees(np.arctan2(z_axis[1], z_axis[2]))
    return HeadPose(float(yaw), float(pitch), float(np.degrees(np.arctan2(y_axis[0], x_axis[0]))))
