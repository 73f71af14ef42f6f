"""The commands under ``nkf data``: import datasets into packs, check, show and split packs."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from nkf.cli_import import IMPORT_COMMANDS
from nkf.commandline import CommandTable
from nkf.errors import NkfError
from nkf.progress import track

File = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
Folder = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]
PackFolder = Annotated[Path, tyro.conf.arg(metavar="PACK", help_behavior_hint="")]
NewPack = Annotated[Path, tyro.conf.arg(metavar="OUT", help_behavior_hint="")]


def check(
    pack: PackFolder,
    /,
    *,
    out: Folder = None,
    against: tuple[Path, ...] = (),
) -> int:
    """Check a pack: counts, duplicates and people across splits, unreadable images; draw what is in it.

    Every image is decoded. Wrong, exit code 1: counts that are not the known ones of the dataset; the same file, the
    same pixels, the same person or photo in two splits; unreadable or changed images; boxes outside. Warnings: a
    split that is missing, images that are nearly the same in two splits, copies with different labels, classes without
    an image. Writes check.json, duplicates.csv, balance.png and a contact sheet of each class. Exit code 2: it is no
    pack.

    Examples:
      nkf data check data/ferplus
      nkf data check data/rafdb --against data/affectnet --out rafdb-check

    Args:
        pack: the pack
        out: folder for the results; by default PACK/check
        against: packs whose valid and test images must not be in this one's train
    """
    from nkf.data.check import check_pack
    from nkf.data.texts import print_check

    folder = out or pack / "check"
    report = check_pack(pack, folder, against=against, progress=track)
    print_check(report)
    print(f"written to {folder}")
    return 1 if report.problems else 0


def show(
    pack: PackFolder,
    /,
    *,
    name: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None,
    sheet: File = None,
    split: Literal["train", "valid", "test"] | None = None,
    label: Annotated[str | None, tyro.conf.arg(metavar="CLASS")] = None,
    count: int = 60,
    seed: int = 0,
) -> None:
    """Show what is in a pack: where it comes from, its counts and columns; one image of it; or a sheet of some.

    Examples:
      nkf data show data/ferplus
      nkf data show data/ferplus --name fer0000000.png
      nkf data show data/ferplus --sheet fear.png --split valid --label fear

    Args:
        pack: the pack
        name: print all that is known of this image as JSON; add --sheet to see it
        sheet: draw images with their boxes and landmarks into this PNG
        split: only of this split
        label: only of this class (under the rule majority)
        count: how many images, chosen at random; up to 2000
        seed: of that choice
    """
    from nkf.data.pack import Pack
    from nkf.data.show import describe_image, draw_some
    from nkf.data.texts import print_pack

    if sheet is None and (label is not None or (split is not None and name is None)):
        raise NkfError(f"{'--split' if label is None else '--label'} chooses images to draw; give --sheet FILE with it")
    opened = Pack(pack)
    if name is not None:
        print(describe_image(opened, name, split))
    elif sheet is None:
        print_pack(opened)
    if sheet is not None:
        shown = draw_some(opened, sheet, name=name, split=split, label=label, count=count, seed=seed)
        print(f"{shown} images drawn: {sheet}")


def split(
    pack: PackFolder,
    out: NewPack,
    /,
    *,
    valid: float = 0.0,
    test: float = 0.0,
    folds: int | None = None,
    keep_test: bool = False,
    by: Annotated[str, tyro.conf.arg(metavar="COLUMN")] = "",
    seed: int = 0,
) -> None:
    """Split a pack anew: stratified by class, and no person, photo, group or picture in two splits.

    The images are linked, not copied, where the disk allows it.

    Examples:
      nkf data split data/rafdb data/rafdb-valid --valid 0.1 --keep-test
      nkf data split data/own data/own-split --valid 0.1 --test 0.2
      nkf data split data/ckplus data/ckplus-folds --folds 10

    Args:
        pack: the pack
        out: folder of the new pack, or of the folds' packs
        valid: share of the images that becomes valid
        test: share of the images that becomes test
        folds: make this many packs, fold-00 and so on, each with another part as test
        keep_test: leave test as it is, and share out the rest
        by: a further column whose equal values stay together; people, photos and copies do so anyway
        seed: of the choice
    """
    from nkf.data.pack import Pack
    from nkf.data.split import fold_pack, split_pack
    from nkf.data.texts import print_counts

    if folds is not None:
        if valid or test or keep_test:
            raise NkfError("--folds makes train and test; give no --valid, --test or --keep-test with it")
        made = fold_pack(pack, out, count=folds, seed=seed, by=by)
        print(f"{len(made)} packs: {made[0]} to {made[-1].name}")
        return
    split_pack(pack, out, valid=valid, test=test, seed=seed, by=by, keep_test=keep_test)
    manifest = Pack(out).manifest
    print_counts(manifest["images_by_split"], manifest["counts"])
    for pair, number in manifest["leaks_found"].items():
        if number:  # with --keep-test
            print(f"duplicates: {number:,} {pair}; nkf data check names them")
    print(f"written to {out}")


DATA_COMMANDS: CommandTable = {"import": IMPORT_COMMANDS, "check": check, "show": show, "split": split}
