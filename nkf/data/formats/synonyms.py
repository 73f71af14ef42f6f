"""What folders and tables of people's own data share: names of classes and splits, and parts of messages."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from nkf.data.labels import EXPRESSIONS

OWN_TERMS = "Own data; its terms were not stated when it was imported."

# Name in lower case -> class. Other names are refused: a wrong guess would go unnoticed.
SYNONYMS: Mapping[str, str] = {
    "neutral": "neutral",
    "happiness": "happiness",
    "happy": "happiness",
    "joy": "happiness",
    "joyful": "happiness",
    "sadness": "sadness",
    "sad": "sadness",
    "surprise": "surprise",
    "surprised": "surprise",
    "fear": "fear",
    "fearful": "fear",
    "afraid": "fear",
    "scared": "fear",
    "disgust": "disgust",
    "disgusted": "disgust",
    "anger": "anger",
    "angry": "anger",
    "contempt": "contempt",
    "contemptuous": "contempt",
}
CALM = "calm"  # neutral to some, an expression of its own to others; taken only when the user says so

SPLIT_NAMES: Mapping[str, str] = {
    "train": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "dev": "valid",
    "test": "test",
}

NUMBERS_DIFFER = (
    "numbers mean different classes in different datasets (1 is surprise in RAF-DB, disgust in FER-2013); "
    f"expected names: {', '.join(EXPRESSIONS)}"
)


def canonical(name: str, *, calm_is_neutral: bool = False) -> str | None:
    """The class that a name stands for, out of `EXPRESSIONS`; None for a name that is not known.

    Args:
        name: as people write it; upper or lower case.
        calm_is_neutral: take ``calm`` for neutral.
    """
    key = name.strip().lower()
    if key == CALM and calm_is_neutral:
        return "neutral"
    return SYNONYMS.get(key)


def split_of(name: str) -> str | None:
    """The split that a name stands for, out of `SPLITS`; None for a name that is not known."""
    return SPLIT_NAMES.get(name.strip().lower())


def known_classes() -> str:
    """All class names with their synonyms, for a message."""
    names = []
    for expression in EXPRESSIONS:
        others = [name for name, meant in SYNONYMS.items() if meant == expression and name != expression]
        names.append(f"{expression} ({', '.join(others)})" if others else expression)
    return ", ".join(names)


def perhaps(name: str, known: Iterable[str], nearness: float = 0.6) -> str:
    """A question that names the nearest known name, for the end of a message; empty where none is near (0 ... 1)."""
    near = get_close_matches(name.strip().lower(), known, 1, nearness)
    return f". Perhaps you meant {near[0]!r}?" if near else ""
