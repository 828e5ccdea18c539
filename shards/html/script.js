// The one script of the project's pages: players that loop over a clip, "play all", and charts.
"use strict";
function loopOver(video) {
  const begin = Number(video.dataset.begin), end = Number(video.dataset.end);
  const play = () => video.play().catch(() => {});  // interrupted by a pause or a new source
  // A page that goes on to another clip at the end of one cancels the event.
  const again = () => {
    if (video.dispatchEvent(new CustomEvent("clipend", { bubbles: true, cancelable: true }))) video.currentTime = begin;
  };
  const restart = () => { video.currentTime = begin; };
  const watch = () => {
    if (video.paused) return;
    if (video.currentTime >= end) again();
    requestAnimationFrame(watch);
  };
  video.defaultPlaybackRate = video.playbackRate = Number(video.dataset.rate);
  // Controls would hide the poster, so they appear with the first play.
  video.controls = false;
  video.tabIndex = 0;
  const begun = new AbortController();
  video.addEventListener("click", play, { signal: begun.signal });
  video.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    play();
  }, { signal: begun.signal });
  video.addEventListener("play", () => {
    begun.abort();
    video.controls = true;
    if (video.readyState && (video.currentTime < begin || video.currentTime >= end)) restart();
    watch();
  });
  video.addEventListener("ended", () => { again(); play(); });
  // At the end of the fragment in its address a browser pauses once by itself; any other pause is the reader's.
  let hasPaused = false;
  video.addEventListener("pause", () => {
    if (hasPaused || video.ended || video.currentTime < end - 0.03) return;
    hasPaused = true;
    again();
    play();
  });
  // Servers without range requests, such as Python's, make videos unseekable: fetch the whole file from those.
  video.addEventListener("loadedmetadata", async () => {
    if (video.src.startsWith("blob:") || !location.protocol.startsWith("http")) return;
    if (video.seekable.length && video.seekable.end(0) > begin) return;
    const file = await (await fetch(video.src)).blob();
    video.src = URL.createObjectURL(file) + new URL(video.src).hash;
    play();
  });
}
for (const video of document.querySelectorAll("video[data-begin]")) loopOver(video);
for (const header of document.querySelectorAll(".item > header")) {
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
for (const plot of document.querySelectorAll(".plot")) {
  if (window.Bokeh) Bokeh.embed.embed_item(JSON.parse(plot.querySelector("script").textContent), plot);
  else plot.append("The chart library is missing: copy the whole folder of this page.");
}
