"""The commands for moving pictures: video files and cameras."""

from pathlib import Path
from typing import Annotated

import tyro

from nkf.commandline import CommandTable
from nkf.runtime import Device
from nkf.weights import DEFAULT_MODEL

Clip = Annotated[Path, tyro.conf.arg(metavar="CLIP", help_behavior_hint="")]
File = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
Name = Annotated[str, tyro.conf.arg(metavar="NAME")]
Source = Annotated[str | None, tyro.conf.arg(metavar="CAMERA|CLIP", help_behavior_hint="")]
Number = Annotated[float | None, tyro.conf.arg(help_behavior_hint="")]


def video(
    clip: Clip,
    /,
    *,
    model: Name = DEFAULT_MODEL,
    detector: Name = "auto",
    device: Device = "auto",
    stride: int = 1,
    start: Number = None,
    end: Number = None,
    min_confidence: Number = None,
    smooth_seconds: float = 0.5,
    json: File = None,
    jsonl: File = None,
    csv: File = None,
    parquet: File = None,
    annotate: File = None,
    timeline: File = None,
) -> int:
    """Follow the faces in a video and tell their expressions over time.

    Each face has the number of its track, its expression in the frame, and a smoothed one: the mean over a short time.
    Times are those of the file, in seconds, for a variable frame rate too. Without outputs a line is printed for each
    time that a track shows one expression. Files appear when all is done, or not at all; missing folders are made.
    Exit code 0: all done; 1: the file is no video, is damaged or cut off, or has no frame in the chosen time: the
    frames before are written, then a row with status "error"; 2: the command is wrong, nothing is written.

    Examples:
      nkf video clip.mp4
      nkf video clip.mp4 --csv clip.csv --annotate overlay.mp4 --timeline clip.html
      nkf video talk.webm --stride 5 --start 60 --end 120 --jsonl -

    Args:
        clip: mp4, mov, mkv, webm, avi, animated GIF, or what else FFmpeg reads
        model: expression network: a packaged name (see "nkf models"), a run folder, or a weights file
        detector: auto (our own, nkf), nkf, centerface, or none (each frame is one face already)
        device: where the networks run; auto takes CUDA if it is available
        stride: take every so many frames: 1 all, 3 every third one
        start: seconds, before which no frame is taken
        end: seconds, from which on no frame is taken
        min_confidence: 0 to 1, below which an expression is uncertain; by default the model's own
        smooth_seconds: time constant of the smoothed probabilities; 0 does not smooth
        json: write one object with a list of frames ("-": to standard output)
        jsonl: write one object a frame and line ("-": to standard output)
        csv: write a table with one row a face and frame ("-": to standard output)
        parquet: write the same table in typed columns
        annotate: write a video (.mp4, .mov) with boxes, landmarks and smoothed expressions, without sound
        timeline: draw the probabilities of each track over time: .png, or .html with values under the pointer
    """
    from nkf.video import FrameSelection
    from nkf.video_run import VideoOutputs, VideoSettings, predict_video

    infinity = float("inf")
    selection = FrameSelection(stride, -infinity if start is None else start, infinity if end is None else end)
    settings = VideoSettings(model, detector, device, min_confidence, smooth_seconds, selection)
    return predict_video(clip, VideoOutputs(json, jsonl, csv, parquet, annotate, timeline), settings)


def webcam(
    *,
    source: Source = None,
    seconds: Number = None,
    model: Name = DEFAULT_MODEL,
    detector: Name = "auto",
    device: Device = "auto",
    min_confidence: Number = None,
    smooth_seconds: float = 0.5,
    jsonl: File = None,
    window: bool = False,
) -> int:
    """Watch a camera and tell the expressions of the faces in front of it, live.

    Shows each track's smoothed probabilities in the terminal, always of the newest frame: those that there is no time
    for are dropped. Nothing is recorded unless --jsonl asks for it, and pictures never. Ctrl-C ends it. Exit code 0: it
    ended; 1: the camera went away, or the file is damaged; 2: the command is wrong, or there is nothing to open.

    Examples:
      nkf webcam
      nkf webcam --source /dev/video2 --window
      nkf webcam --source clip.mp4 --seconds 10 --jsonl log.jsonl

    Args:
        source: a camera as FFmpeg calls it, or a video file that is played in its place; by default the first camera
        seconds: stop after so long
        model: expression network: a packaged name (see "nkf models"), a run folder, or a weights file
        detector: auto (our own, nkf), nkf, centerface, or none (each frame is one face already)
        device: where the networks run; auto takes CUDA if it is available
        min_confidence: 0 to 1, below which an expression is uncertain; by default the model's own
        smooth_seconds: time constant of the smoothed probabilities; 0 does not smooth
        jsonl: write one object a frame and line, when it ends ("-": to standard output, at once)
        window: show the frames with boxes, landmarks and expressions in a window instead
    """
    from nkf.webcam import WebcamSettings, watch

    settings = WebcamSettings(source, model, detector, device, min_confidence, smooth_seconds, seconds)
    return watch(settings, jsonl=jsonl, window=window)


VIDEO_COMMANDS: CommandTable = {"video": video, "webcam": webcam}
