"""Predictions that tests draw and write."""

import numpy as np

from nkf.predict import FacePrediction, Prediction

CLASSES = ("neutral", "happiness")


def make_face(box=(10, 20, 60, 90), classes=CLASSES):
    x0, y0, x1, y1 = box
    landmarks = np.column_stack([np.linspace(x0, x1, 68), np.linspace(y0, y1, 68)])
    probabilities = dict.fromkeys(classes, 0.25 / (len(classes) - 1)) | {"happiness": 0.75}
    return FacePrediction(np.array(box, float), 0.91234567, landmarks, np.ones(68), "happiness", probabilities)


def make_prediction(*boxes, size=(100, 120), classes=CLASSES):
    faces = tuple(make_face(box, classes) for box in boxes)
    return Prediction("a,b.jpg", size[1], size[0], "ok" if faces else "no_face", faces=faces)
