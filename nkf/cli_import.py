"""The commands under ``nkf data import``."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import tyro

from nkf.commandline import CommandTable
from nkf.errors import NkfError
from nkf.progress import track
from nkf.runtime import Device

if TYPE_CHECKING:
    from nkf.data.importers import ImportOptions, ListDataset

File = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
Source = Annotated[Path, tyro.conf.arg(metavar="SOURCE", help_behavior_hint="")]
NewPack = Annotated[Path, tyro.conf.arg(metavar="OUT", help_behavior_hint="")]

MIN_CROP, MAX_CROP = 16, 1024  # pixels


@dataclass(frozen=True)
class Common:
    """What every import can be told.

    Attributes:
        landmarks: auto: the dataset's, and our own network's where there are none; dataset: only the dataset's; search:
            only our own network's; none; or a teacher's NPZ with name, found and landmarks68
        drop_leaks: drop from train what is pixel-identical to an image of valid or test
        leak_md5: list of MD5s of pixels, one a line, that count as copies too
        valid_share: carve this share of train out as valid: stratified by class, people and copies kept together
        seed: of that choice
        licence: terms of the images, for the manifest, in place of what nkf knows of the dataset
        subset: mark the images of a list, one name a line, in the column subset_NAME; may be given several times
        crops: cut crops of this side at once, so that training starts without a wait
        device: where the networks run that search for landmarks
    """

    landmarks: Annotated[str, tyro.conf.arg(metavar="WORD|NPZ")] = "auto"
    drop_leaks: bool = False
    leak_md5: File = None
    valid_share: float = 0.0
    seed: int = 0
    licence: Annotated[str, tyro.conf.arg(metavar="TEXT")] = ""
    subset: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=FILE")] = ()
    crops: int | None = None
    device: Device = "auto"


Options = Annotated[Common, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="")]
DEFAULTS = Common()


def import_ferplus(source: Source, out: NewPack, /, *, fer2013new: File = None, options: Options = DEFAULTS) -> int:
    """Import FERPlus (FER+).

    SOURCE is a folder or zip in FER+'s layout (FER2013Train, FER2013Valid, FER2013Test, or some of them), or with
    fer2013.csv and fer2013new.csv. Counts by split and class are printed and compared with the known ones.

    Examples:
      nkf data import ferplus ferplus.zip data/ferplus
      nkf data import ferplus ferplus.zip data/clean --landmarks teacher.npz --drop-leaks --leak-md5 test_md5.txt

    Args:
        source: folder or zip
        out: folder of the new pack
        fer2013new: take the votes from this fer2013new.csv instead of the label.csv files
        options: see there
    """
    from nkf.data.formats.ferplus import list_ferplus

    return _import(partial(list_ferplus, fer2013new=fer2013new), source, out, options)


def import_rafdb(
    source: Source,
    out: NewPack,
    /,
    *,
    images: Literal["auto", "aligned", "original"] = "auto",
    options: Options = DEFAULTS,
) -> int:
    """Import RAF-DB, the basic part.

    SOURCE is the folder or a zip with EmoLabel, Image and Annotation. RAF-DB has no validation split: --valid-share
    carves one out of train.

    Example:
      nkf data import rafdb RAF-DB/basic data/rafdb --valid-share 0.1

    Args:
        source: folder or zip
        out: folder of the new pack
        images: the official aligned ones (100x100), or the original photos; auto prefers aligned
        options: see there
    """
    from nkf.data.formats.rafdb import list_rafdb

    return _import(partial(list_rafdb, images=images), source, out, options)


def import_affectnet(
    source: Source, out: NewPack, /, *, with_automatic: bool = False, options: Options = DEFAULTS
) -> int:
    """Import AffectNet, its first release (CSV lists) or its second (.npy annotations).

    The official validation set becomes the split test, since everybody reports on it; --valid-share carves a validation
    split out of train. Images without an expression (none, uncertain, no face) are counted and left out.

    Example:
      nkf data import affectnet AffectNet/ data/affectnet --valid-share 0.02

    Args:
        source: folder or zip; a folder is much faster
        out: folder of the new pack
        with_automatic: add the automatically annotated images of the first release to train
        options: see there
    """
    from nkf.data.formats.affectnet import list_affectnet

    return _import(partial(list_affectnet, with_automatic=with_automatic), source, out, options)


def import_expw(source: Source, out: NewPack, /, *, min_confidence: float = 0.0, options: Options = DEFAULTS) -> int:
    """Import ExpW (Expression in the Wild): one row a face, several in a photo.

    Example:
      nkf data import expw ExpW/ data/expw --min-confidence 20 --valid-share 0.1

    Args:
        source: folder or zip with label/label.lst and the images
        out: folder of the new pack
        min_confidence: leave out faces whose box has a lower confidence, 0 to 100
        options: see there
    """
    from nkf.data.formats.expw import list_expw

    return _import(partial(list_expw, min_confidence=min_confidence), source, out, options)


def import_ckplus(
    source: Source, out: NewPack, /, *, frames: int = 3, no_neutral: bool = False, options: Options = DEFAULTS
) -> int:
    """Import CK+ (Extended Cohn-Kanade): the last frames of each labelled sequence, and its first as neutral.

    There are no official splits: "nkf data split PACK OUT --folds 10" makes folds without a person in two.

    Example:
      nkf data import ckplus CK+/ data/ckplus

    Args:
        source: folder or zip with cohn-kanade-images and Emotion
        out: folder of the new pack
        frames: how many frames at the end of a sequence show its expression
        no_neutral: leave the first frames out
        options: see there
    """
    from nkf.data.formats.ckplus import list_ckplus

    return _import(partial(list_ckplus, frames=frames, neutral=not no_neutral), source, out, options)


def import_kdef(source: Source, out: NewPack, /, *, straight: bool = False, options: Options = DEFAULTS) -> int:
    """Import KDEF: 70 people, seven expressions, five angles.

    Example:
      nkf data import kdef KDEF.zip data/kdef --straight

    Args:
        source: folder or zip
        out: folder of the new pack
        straight: only the pictures from straight ahead
        options: see there
    """
    from nkf.data.formats.kdef import list_kdef

    return _import(partial(list_kdef, angles=("S",)) if straight else list_kdef, source, out, options)


def import_jaffe(source: Source, out: NewPack, /, *, options: Options = DEFAULTS) -> int:
    """Import JAFFE: ten Japanese women, seven expressions.

    Example:
      nkf data import jaffe jaffe.zip data/jaffe

    Args:
        source: folder or zip with the TIFF files
        out: folder of the new pack
        options: see there
    """
    from nkf.data.formats.jaffe import list_jaffe

    return _import(list_jaffe, source, out, options)


def import_sfew(
    source: Source, out: NewPack, /, *, images: Literal["original", "aligned"] = "original", options: Options = DEFAULTS
) -> int:
    """Import SFEW 2.0: frames of films. The official Val set becomes the split test, since everybody reports on it.

    Example:
      nkf data import sfew SFEW/ data/sfew --images aligned

    Args:
        source: folder or zip with Train and Val
        out: folder of the new pack
        images: the frames, or the faces that the organisers cut out
        options: see there
    """
    from nkf.data.formats.sfew import list_sfew

    return _import(partial(list_sfew, images=images), source, out, options)


def import_folders(
    source: Source,
    out: NewPack,
    /,
    *,
    faces: bool = False,
    calm_is_neutral: bool = False,
    options: Options = DEFAULTS,
) -> int:
    """Import your own pictures, a folder for each class.

    SOURCE holds folders such as happy, sad, angry, disgusted, afraid, surprised, neutral, contempt; or train, valid and
    test with such folders in them. Unknown names are refused.

    Example:
      nkf data import folders pictures/ data/own --valid-share 0.2

    Args:
        source: folder or zip
        out: folder of the new pack
        faces: each picture is one face already; otherwise the largest face of each is searched for
        calm_is_neutral: take a folder "calm" for neutral
        options: see there
    """
    from nkf.data.formats.folders import list_folders

    reader = partial(list_folders, calm_is_neutral=calm_is_neutral, shows="face" if faces else "photo")
    return _import(reader, source, out, options)


def import_table(
    source: Source,
    out: NewPack,
    /,
    *,
    table: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None,
    faces: bool = False,
    options: Options = DEFAULTS,
) -> int:
    """Import your own pictures, listed in a CSV, TSV or Parquet file among them.

    The table has a column path, and one of: label; a column of votes for each class; shares p_happiness and so on.
    Optional are split, the box x0 y0 x1 y1 and the landmarks lm00_x ... lm67_y in pixels, subject (keeps a person in
    one split), and any others, which the pack keeps.

    Example:
      nkf data import table pictures/ data/own --table labels.csv

    Args:
        source: folder or zip
        out: folder of the new pack
        table: the file in SOURCE; needed where there are several
        faces: each picture without a box is one face already; otherwise its largest face is searched for
        options: see there
    """
    from nkf.data.formats.table import list_table

    return _import(partial(list_table, table=table, shows="face" if faces else "photo"), source, out, options)


def import_faces(source: Source, out: NewPack, /, *, options: Options = DEFAULTS) -> int:
    """Import face pictures without labels, all of them as train.

    Example:
      nkf data import faces fairface.zip data/fairface --landmarks teacher.npz --licence "CC BY 4.0"

    Args:
        source: folder, searched with its subfolders, or zip
        out: folder of the new pack
        options: see there
    """
    from nkf.data.formats.faces import list_faces

    return _import(list_faces, source, out, options)


def _import(list_dataset: "ListDataset", source: Path, out: Path, common: Common) -> int:
    from nkf.data.importers import import_dataset
    from nkf.data.texts import print_report

    options = _import_options(common)
    try:
        report = import_dataset(list_dataset, source, out, options, progress=track)
    except KeyboardInterrupt:
        print(f"nkf: interrupted; the same command goes on from {out}.partial", file=sys.stderr)
        raise
    print_report(report)
    print(f"written to {out}")
    if common.crops is not None:
        from nkf.data.dataset import load_crops
        from nkf.data.pack import Pack

        load_crops(Pack(out), "aligned", common.crops, track)
    return 1 if report.images_skipped else 0


def _import_options(common: Common) -> "ImportOptions":
    from nkf.data.importers import ImportOptions, LandmarkWord
    from nkf.finder import LandmarkFinder

    if common.seed < 0:
        raise NkfError(f"--seed {common.seed}: expected a whole number from 0")
    if common.crops is not None and not MIN_CROP <= common.crops <= MAX_CROP:
        limits = f"from {MIN_CROP} to {MAX_CROP}"
        raise NkfError(f"--crops {common.crops}: expected the side of a crop in pixels, such as 112, {limits}")
    word = common.landmarks
    words = {name: name for name in get_args(LandmarkWord)}
    if word not in words and not Path(word).exists():
        raise NkfError(f"--landmarks {word}: neither one of {', '.join(words)}, nor a file")
    return ImportOptions(
        landmarks=words.get(word) or Path(word),
        find_faces=LandmarkFinder(common.device) if word in ("auto", "search") else None,
        drop_leaks=common.drop_leaks,
        leak_md5=common.leak_md5,
        valid_share=common.valid_share,
        seed=common.seed,
        licence=common.licence,
        subsets=_subsets(common.subset),
    )


def _subsets(texts: Sequence[str]) -> dict[str, Path]:
    subsets: dict[str, Path] = {}
    for text in texts:
        name, _, file = text.partition("=")
        if not name or not file:
            raise NkfError(f"--subset {text}: expected NAME=FILE, such as occlusion=occlusion.txt")
        if name in subsets:
            raise NkfError(f"--subset {text}: a second list of {name}; expected one")
        subsets[name] = Path(file)
    return subsets


IMPORT_COMMANDS: CommandTable = {
    "ferplus": import_ferplus,
    "rafdb": import_rafdb,
    "affectnet": import_affectnet,
    "expw": import_expw,
    "ckplus": import_ckplus,
    "kdef": import_kdef,
    "jaffe": import_jaffe,
    "sfew": import_sfew,
    "folders": import_folders,
    "table": import_table,
    "faces": import_faces,
}
