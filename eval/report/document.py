"""What every page of the evaluation is made in: the document, its style, its one script, and players of clips."""

from __future__ import annotations

import base64
import hashlib
from html import escape

from eval.report.media import Clip
from shards.inspect.page import BASE_STYLE

_MAX_TEXT = 2000  # characters of one text: hostile ones could be megabytes
_SLOW_FPS, _SLOW_RATE = 5.0, 8  # films of fewer frames a second than that are shown so many times as fast

_STYLE = (
    BASE_STYLE
    + """
:root { --good: #3f8f5b; --bad: #b4532a; --s0: #2b6cb0; --s1: #8a5cc2; --s2: #b08a12; --s3: #3f8f5b; --s4: #b4532a;
  --s5: #5f6b7a; }
@media (prefers-color-scheme: dark) { :root { --good: #74c690; --bad: #e8935f; --s0: #6fb1ee; --s1: #bb98ea;
  --s2: #dcbb4d; --s3: #74c690; --s4: #e8935f; --s5: #a3afbf; } }
h1, h2, h3 { overflow-wrap: anywhere; } h3 { font-size: 15px; margin: 28px 0 10px; font-weight: 600; }
a { color: var(--s0); } p { margin: 0 0 10px; overflow-wrap: anywhere; }
.mono { overflow-wrap: anywhere; }
.notice { border-left: 3px solid var(--bad); padding: 8px 14px; background: var(--card); margin: 16px 0; }
.scroll td { overflow-wrap: break-word; } .scroll td:first-child { white-space: normal; min-width: 110px; }
.two th:nth-child(2), .two td:nth-child(2) { text-align: left; }
.wrap td { white-space: normal; overflow-wrap: anywhere; } .wrap td, .wrap th { text-align: left; vertical-align: top; }
details { margin-top: 44px; } summary { cursor: pointer; font-size: 19px; font-weight: 650; }
.bars { display: grid; grid-template-columns: minmax(120px, max-content) 1fr max-content; gap: 4px 16px;
  align-items: center; margin-top: 22px; } .bars > div { display: contents; }
.bars b { font-variant-numeric: tabular-nums; font-weight: 600; }
.bars span { min-width: 0; overflow-wrap: anywhere; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 8px 0 0; font-size: 13px; color: var(--quiet); }
.legend i { display: inline-block; width: 4px; height: 14px; border-radius: 2px; margin-right: 6px;
  vertical-align: -2px; }
.legend .dot { width: 12px; height: 12px; border-radius: 50%; background: var(--mark); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)); gap: 16px; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 12px; overflow: hidden;
  min-width: 0; }
figure svg { display: block; width: 100%; height: auto; } figcaption { padding: 10px 12px 12px; font-size: 13.5px; }
.chart { padding: 12px 12px 0; } .chart figcaption { padding: 6px 0 12px; text-align: center; }
.heat { overflow-x: auto; padding: 14px; } .heat svg { max-width: none; } .heat figcaption { padding: 10px 0 0; }
svg text { font-size: 11px; fill: var(--quiet); font-family: inherit; } svg .count { fill: var(--ink); }
svg .axis { stroke: var(--line); fill: none; } svg .tick, svg .zero { stroke: var(--line); }
svg .zero { stroke: var(--ink); stroke-dasharray: 3 3; } svg .whisker { stroke: var(--mark); stroke-width: 2; }
svg .value, svg .point { fill: var(--mark); } svg .curve { stroke: var(--mark); stroke-width: 2; fill: none; }
svg .published { stroke-width: 3; } svg .good { fill: var(--good); } svg .bad { fill: var(--bad); }
svg .empty { fill: var(--track); }
.c0 { stroke: var(--s0); background: var(--s0); } .c1 { stroke: var(--s1); background: var(--s1); }
.c2 { stroke: var(--s2); background: var(--s2); } .c3 { stroke: var(--s3); background: var(--s3); }
.c4 { stroke: var(--s4); background: var(--s4); } .c5 { stroke: var(--s5); background: var(--s5); }
.question { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 16px;
  margin: 0 0 16px; }
.question header { display: flex; gap: 16px; align-items: flex-start; justify-content: space-between; }
.question .asked { font-size: 17px; font-weight: 600; line-height: 1.35; margin: 0 0 4px; }
.words { max-height: 9em; overflow-y: auto; white-space: pre-line; overflow-wrap: anywhere; margin: 0; }
.options { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(190px, 100%), 1fr)); gap: 12px;
  margin-top: 12px; }
.options figure { background: var(--ground); display: flex; flex-direction: column; }
.options figcaption { display: flex; flex-direction: column; gap: 6px; flex: 1; }
.options .mono { margin-top: auto; color: var(--quiet); }
.options .right { border-color: var(--good); box-shadow: 0 0 0 1px var(--good); }
.options .chosen:not(.right) { border-color: var(--bad); box-shadow: 0 0 0 1px var(--bad); }
video, figure img, .none { width: 100%; aspect-ratio: 4 / 3; object-fit: contain; display: flex; background: #000; }
.none { align-items: center; justify-content: center; color: var(--quiet); background: var(--track); font-size: 12px; }
h1 ~ .query { margin-top: 16px; } .query { width: 220px; flex: none; } .query video, .query img { border-radius: 8px; }
.badge { display: inline-block; padding: 1px 8px; border-radius: 9px; font-size: 12px; background: var(--track);
  margin-right: 6px; } .badge.good, .badge.bad { color: var(--card); } .badge.good { background: var(--good); }
.badge.bad { background: var(--bad); }
.meter { height: 5px; border-radius: 3px; background: var(--track); overflow: hidden; }
.meter i { display: block; height: 100%; background: var(--quiet); }
button { font: inherit; font-size: 13px; padding: 4px 12px; border-radius: 8px; border: 1px solid var(--line);
  background: var(--ground); color: var(--ink); cursor: pointer; flex: none; }
.film { position: relative; display: block; } .film:has(video:not([controls]))::after { content: "\\25B6"; color: #fff;
  position: absolute; left: 10px; bottom: 6px; font-size: 18px; text-shadow: 0 0 6px #000; pointer-events: none; }
video:not([controls]) { cursor: pointer; }
.pair { display: flex; flex-wrap: wrap; gap: 16px 32px; } .pair > div { flex: 1 1 320px; min-width: 0; }
.pair .scroll { margin-top: 0; }
@media (max-width: 600px) { main { padding: 24px 14px 60px; } .question header { flex-direction: column; }
  .bars { display: block; } .bars > div { display: flex; flex-wrap: wrap; justify-content: space-between; }
  .bars svg { order: 1; } .query { width: 100%; }
  .options { grid-template-columns: repeat(2, 1fr); gap: 8px; } .question { padding: 12px; } }
"""
)

# Without the script the clips play too, with what is stored around them after the first time.
_SCRIPT = """"use strict";
for (const video of document.querySelectorAll("video[data-begin]")) {
  const begin = Number(video.dataset.begin), end = Number(video.dataset.end);
  const play = () => video.play().catch(() => {});  // broken off by a pause or another source
  const again = () => { video.currentTime = begin; };
  const watch = () => {
    if (video.paused) return;
    if (video.currentTime >= end) again();
    requestAnimationFrame(watch);
  };
  video.defaultPlaybackRate = video.playbackRate = Number(video.dataset.rate);
  // A picture until it is played: controls would hide it.
  video.controls = false;
  video.tabIndex = 0;
  const begun = new AbortController();
  video.addEventListener("click", play, { signal: begun.signal });
  video.addEventListener("keydown", (event) => { if (event.key === "Enter") play(); }, { signal: begun.signal });
  video.addEventListener("play", () => {
    begun.abort();
    video.controls = true;
    if (video.readyState && (video.currentTime < begin || video.currentTime >= end)) again();
    watch();
  });
  video.addEventListener("ended", () => { again(); play(); });
  // At the end of the fragment in its address a browser pauses once, by itself.
  video.addEventListener("pause", () => {
    if (!video.ended && video.currentTime >= end - 0.03) { again(); play(); }
  });
  // From a server that gives no parts of files, such as Python's, a film can only be shown from its beginning: there
  // the whole of it is fetched.
  video.addEventListener("loadedmetadata", async () => {
    if (video.src.startsWith("blob:") || !location.protocol.startsWith("http")) return;
    if (video.seekable.length && video.seekable.end(0) > begin) return;
    const film = await (await fetch(video.src)).blob();
    video.src = URL.createObjectURL(film) + new URL(video.src).hash;
    play();
  });
}
for (const header of document.querySelectorAll(".question header")) {
  const videos = header.parentElement.querySelectorAll(".options video");
  if (videos.length < 2) continue;
  const button = document.createElement("button");
  button.textContent = "Play all";
  button.addEventListener("click", () => {
    const some = [...videos].some((video) => !video.paused);
    for (const video of videos) some ? video.pause() : video.play().catch(() => {});
    button.textContent = some ? "Play all" : "Pause all";
  });
  header.append(button);
}
"""


def document(title: str, body: str) -> bytes:
    """Return an HTML page of this title and body.

    It asks for nothing outside its own folder, and no script runs but ours, whatever a text in it holds.
    """
    script = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src 'self' data:; media-src 'self' blob:; connect-src 'self'; "
        f"style-src 'unsafe-inline'; script-src 'sha256-{script}'; base-uri 'none'; form-action 'none'"
    )
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{text(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main>{body}</main><script>{_SCRIPT}</script></body></html>\n"
    )
    return page.encode(errors="replace")  # JSON can hold lone surrogates, UTF-8 cannot


def text(value: object) -> str:
    """Return what anyone may have written as HTML that shows it, cut where it is endless."""
    whole = str(value)
    shown = whole if len(whole) <= _MAX_TEXT else f"{whole[:_MAX_TEXT]}… ({len(whole):,} characters)"
    return escape(shown.replace("\0", "\N{REPLACEMENT CHARACTER}"), quote=True)


def player(clip: Clip | None, missing: str = "not in the shards") -> str:
    """Return a player of a clip, over and over without the frames stored around it; its picture where it has no film.

    `missing` is what stands there for None.
    """
    if clip is None:
        return f'<span class="none">{text(missing)}</span>'
    if clip.film is None:
        return f'<img loading="lazy" alt="{text(clip.text)}" src="{text(clip.picture)}">'
    # A quarter of a frame inside, so that rounding lets no frame of before or after appear.
    begin, end = clip.begin + 0.25 / clip.fps, clip.end - 0.25 / clip.fps
    rate = _SLOW_RATE if clip.fps < _SLOW_FPS else 1
    return (
        f'<span class="film"><video controls muted playsinline preload="none" poster="{text(clip.picture)}" '
        f'aria-label="{text(clip.text)}" src="{text(clip.film)}#t={begin:.4f},{end:.4f}" '
        f'data-begin="{begin:.4f}" data-end="{end:.4f}" data-rate="{rate}"></video></span>'
    )


def place(clip: Clip) -> str:
    """Return in words when in its video a clip is, and how fast it is shown."""
    rate = f" · shown {_SLOW_RATE}× as fast" if clip.fps < _SLOW_FPS and clip.film else ""
    return f"{clock(clip.clip_start)} to {clock(clip.clip_end)}{rate}"


def clock(seconds: float) -> str:
    """Return a time in a video as h:mm:ss or m:ss, to a tenth of a second."""
    minutes, tenths = divmod(round(seconds * 10), 600)
    hours, minutes = divmod(minutes, 60)
    rest = f"{tenths // 10:02d}.{tenths % 10}"
    return f"{hours}:{minutes:02d}:{rest}" if hours else f"{minutes}:{rest}"
