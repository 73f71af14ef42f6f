"""nkf: facial expression recognition built on keypoint features."""

__version__ = "0.1.0"
