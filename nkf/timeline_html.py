"""The timeline of a video as one page of HTML with everything in it: values under the pointer, classes on and off."""

import json
from pathlib import Path

from nkf.report_html import Markup, element, markup, page
from nkf.timeline import Timeline, class_colours

_STYLE = """
body { max-width: 80rem; }
.classes { position: sticky; top: 0; background: #fffffff0; padding: .5rem 0; z-index: 2; }
.classes button { font: inherit; font-size: .87rem; margin: 0 .35rem .35rem 0; padding: .15rem .7rem; cursor: pointer;
  border: 1px solid #b8c2cc; border-radius: 1rem; background: #fff; color: #1d2733; }
.classes button::before { content: ""; display: inline-block; width: .75rem; height: .75rem; margin-right: .4rem;
  border-radius: 50%; background: var(--colour, #b8c2cc); vertical-align: -.06rem; }
.classes button[aria-pressed=false] { color: #8a949e; text-decoration: line-through; }
.classes button[aria-pressed=false]::before { background: #e3e7eb; }
.track { position: relative; margin: 1.4rem 0 0; }
.track figcaption { font-weight: 600; font-size: .92rem; }
.track canvas { display: block; width: 100%; height: 190px; cursor: crosshair; touch-action: pan-y; }
.values { position: absolute; top: 1.6rem; pointer-events: none; background: #1d2733f0; color: #fff; font-size: .8rem;
  line-height: 1.45; border-radius: 4px; padding: .35rem .6rem; display: none; white-space: nowrap; z-index: 1; }
.values td { border: 0; padding: 0 .5rem 0 0; } .values table { margin: .15rem 0 0; font-size: inherit; }
.values i { display: inline-block; width: .65rem; height: .65rem; border-radius: 50%; margin-right: .35rem; }
"""

_SCRIPT = """
const data = JSON.parse(document.getElementById("data").textContent);
const shown = data.classes.map(() => true), left = 42, right = 8, top_ = 8, bottom = 30;
let raw = true, range = [data.start, data.end], pointer = null, drag = null;

const figures = data.tracks.map((track) => {
  const figure = document.getElementById("track-" + track.track);
  const canvas = figure.querySelector("canvas"), values = figure.querySelector(".values");
  const view = { track, canvas, values };
  canvas.addEventListener("pointermove", (event) => { pointer = timeAt(canvas, event); draw(); });
  canvas.addEventListener("pointerleave", () => { pointer = drag = null; draw(); });
  canvas.addEventListener("pointerdown", (event) => { drag = timeAt(canvas, event); });
  canvas.addEventListener("pointerup", (event) => {
    const time = timeAt(canvas, event), [a, b] = [Math.min(drag, time), Math.max(drag, time)];
    if (drag !== null && b - a > (range[1] - range[0]) / 100) range = [a, b];
    drag = null;
    draw();
  });
  canvas.addEventListener("dblclick", () => { range = [data.start, data.end]; draw(); });
  return view;
});

function timeAt(canvas, event) {
  const box = canvas.getBoundingClientRect();
  const share = (event.clientX - box.left - left) / (box.width - left - right);
  return range[0] + Math.min(Math.max(share, 0), 1) * (range[1] - range[0]);
}

function nearest(times, time) {
  let low = 0, high = times.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (times[middle] < time) low = middle + 1; else high = middle;
  }
  return low > 0 && time - times[low - 1] < times[low] - time ? low - 1 : low;
}

function ticks(from, to) {
  const rough = (to - from) / 8, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((one) => one >= rough);
  const result = [];
  for (let k = Math.ceil(from / step - 1e-9); k * step <= to + step * 1e-6; k++) result.push(k * step);
  return [result, Math.max(0, -Math.floor(Math.log10(step) + 1e-9))];
}

function draw() { for (const view of figures) drawTrack(view); }

function drawTrack({ track, canvas, values }) {
  const scale = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  canvas.width = width * scale;
  canvas.height = height * scale;
  const pen = canvas.getContext("2d"), plotHeight = height - top_ - bottom;
  pen.scale(scale, scale);
  pen.font = "11px system-ui, sans-serif";
  const x = (time) => left + (time - range[0]) / (range[1] - range[0]) * (width - left - right);
  const y = (value) => top_ + (1 - value) * plotHeight;
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  for (const value of [0, 0.5, 1]) {
    pen.fillStyle = "#e8ecf0";
    pen.fillRect(left, y(value), width - left - right, 1);
    pen.fillStyle = "#5b6875";
    pen.fillText(value * 100 + "%", left - 5, y(value));
  }
  pen.textAlign = "center";
  const [marks, digits] = ticks(...range);
  for (const time of marks) {
    pen.fillStyle = "#e8ecf0";
    pen.fillRect(x(time), top_, 1, plotHeight);
    pen.fillStyle = "#5b6875";
    pen.fillText(time.toFixed(digits) + " s", Math.min(Math.max(x(time), left + 12), width - 16), height - 8);
  }
  pen.save();
  pen.beginPath();
  pen.rect(left, 0, width - left - right, height);
  pen.clip();
  drawSpans(pen, track, x, plotHeight);
  data.classes.forEach((_, k) => {
    if (!shown[k]) return;
    pen.strokeStyle = data.colours[k];
    if (raw) drawLine(pen, track.times, track.raw, k, x, y, 0.8, 0.3);
    drawLine(pen, track.times, track.smooth, k, x, y, 2, 1);
  });
  if (drag !== null && pointer !== null) {
    pen.fillStyle = "#2f5d8a30";
    pen.fillRect(Math.min(x(drag), x(pointer)), top_, Math.abs(x(pointer) - x(drag)), plotHeight);
  }
  const inside = pointer !== null && pointer >= track.times[0] - 0.5 && pointer <= track.times.at(-1) + 0.5;
  values.style.display = inside ? "block" : "none";
  if (inside) drawPointer(pen, track, values, x, y, width, height);
  pen.restore();
}

function drawLine(pen, times, rows, k, x, y, lineWidth, alpha) {
  pen.lineWidth = lineWidth;
  pen.globalAlpha = alpha;
  pen.lineJoin = "round";
  pen.beginPath();
  times.forEach((time, n) => pen.lineTo(x(time), y(rows[n][k])));
  pen.stroke();
  pen.globalAlpha = 1;
}

function runs(keys, draw) {
  let first = 0;
  keys.forEach((key, n) => {
    if (n + 1 < keys.length && keys[n + 1] === key) return;
    draw(key, first, Math.min(n + 1, keys.length - 1));
    first = n + 1;
  });
}

function drawSpans(pen, track, x, plotHeight) {
  const wide = (from, to) => x(track.times[to]) - x(track.times[from]);
  runs(track.trusted, (trusted, from, to) => {
    pen.fillStyle = trusted ? "#0000" : "#00000012";
    pen.fillRect(x(track.times[from]), top_, wide(from, to), plotHeight);
  });
  runs(track.smooth.map(best), (k, from, to) => {
    pen.fillStyle = data.colours[k];
    pen.fillRect(x(track.times[from]), top_ + plotHeight + 3, wide(from, to), 7);
  });
}

function best(row) { return row.indexOf(Math.max(...row)); }

function drawPointer(pen, track, values, x, y, width, height) {
  const n = nearest(track.times, pointer), place = x(track.times[n]);
  pen.fillStyle = "#1d2733";
  pen.fillRect(place, top_, 1, height - top_ - bottom);
  const order = data.classes.map((_, k) => k).filter((k) => shown[k]);
  order.sort((a, b) => track.smooth[n][b] - track.smooth[n][a]);
  for (const k of order) {
    pen.fillStyle = data.colours[k];
    pen.beginPath();
    pen.arc(place, y(track.smooth[n][k]), 3, 0, 7);
    pen.fill();
  }
  const percent = (value) => (value * 100).toFixed(0) + "%";
  const rows = order.map((k) => {
    const row = document.createElement("tr"), name = document.createElement("td"), dot = document.createElement("i");
    dot.style.background = data.colours[k];
    name.append(dot, data.classes[k]);
    row.append(name);
    for (const value of [percent(track.smooth[n][k]), raw ? "raw " + percent(track.raw[n][k]) : ""]) {
      row.insertCell().textContent = value;
    }
    return row;
  });
  const table = document.createElement("table");
  table.append(...rows);
  const doubt = track.trusted[n] ? "" : ", uncertain or of low quality";
  values.replaceChildren(track.times[n].toFixed(2) + " s" + doubt, table);
  const room = place + 14 + values.offsetWidth < width;
  values.style.left = (room ? place + 14 : place - 14 - values.offsetWidth) + "px";
}

document.querySelectorAll(".classes button").forEach((button, k) => button.addEventListener("click", () => {
  const on = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", on);
  if (k < shown.length) shown[k] = on; else raw = on;
  draw();
}));
window.addEventListener("resize", draw);
draw();
"""


def write_timeline_html(timeline: Timeline, file: Path) -> None:
    """Write a page with a plot for each track; it asks for nothing from anywhere.

    Args:
        timeline: of one video.
        file: HTML to write.
    """
    lines, colours = timeline.lines(), class_colours(timeline.classes)
    tracks = [
        {
            "track": line.track,
            "times": [round(time_s, 4) for time_s in line.times_s],
            "raw": [[round(value, 3) for value in row] for row in line.raw],
            "smooth": [[round(value, 3) for value in row] for row in line.smooth],
            "trusted": [int(trusted) for trusted in line.trusted],
        }
        for line in lines
    ]
    start_s = timeline.start_s or 0.0
    data = {"classes": timeline.classes, "colours": colours, "start": start_s}
    data |= {"end": max(timeline.end_s, start_s + 1e-3), "tracks": tracks}
    figures = [
        Markup(
            f'<figure class="track" id="track-{line.track}"><figcaption>{line.title}</figcaption><canvas></canvas>'
            '<div class="values"></div></figure>'
        )
        for line in lines
    ]
    name = Path(timeline.path).name
    hint = "Thick lines are smoothed, thin ones raw; the strip below is the smoothed answer; grey: uncertain or of low "
    hint += "quality. Drag over a part to enlarge it, double-click to see all."
    parts = [
        Markup(f"<style>{_STYLE}</style>"),
        element("h1", f"Expressions in {name}"),
        element("p", hint if lines else "No faces were found.", kind="quiet"),
        element("p", timeline.left_out(), kind="quiet"),
        _buttons(timeline.classes, colours) if lines else markup(""),
        *figures,
        # "<" could end the element that the data is in.
        Markup(
            f'<script type="application/json" id="data">{json.dumps(data).replace("<", chr(92) + "u003c")}</script>'
        ),
        Markup(f"<script>{_SCRIPT}</script>"),
    ]
    file.write_text(page(f"Expressions in {name}", parts), encoding="utf-8")


def _buttons(classes: tuple[str, ...], colours: list[str]) -> Markup:
    buttons = [
        Markup(f'<button aria-pressed="true" style="--colour: {colour}">{markup(name)}</button>')
        for name, colour in zip(classes, colours, strict=True)
    ]
    return element("div", *buttons, Markup('<button aria-pressed="true">raw</button>'), kind="classes")
