// A video's page: samples of the list and the timeline play in the one player, by mouse, keyboard or one after another.
"use strict";
const stage = document.querySelector("#stage");
if (stage) {
  const items = [...document.querySelectorAll("a.play")];
  const places = new Map(items.map((item, place) => [item.dataset.key, place]));
  const blocks = new Map([...document.querySelectorAll(".timeline a")].map((block) => [block.dataset.key, block]));
  const button = stage.querySelector("button.on");
  let current = Math.max(0, items.findIndex((item) => item.getAttribute("aria-current")));
  const playsOn = () => button.getAttribute("aria-pressed") === "true";
  const show = (place) => {
    const item = items[place];
    if (!item) return;
    items[current].removeAttribute("aria-current");
    blocks.get(items[current].dataset.key)?.classList.remove("chosen");
    current = place;
    item.setAttribute("aria-current", "true");
    blocks.get(item.dataset.key)?.classList.add("chosen");
    const data = item.dataset;
    const video = document.createElement("video");
    Object.assign(video, { muted: true, playsInline: true, preload: "none", poster: data.poster });
    Object.assign(video.dataset, { begin: data.begin, end: data.end, rate: data.rate });
    video.setAttribute("aria-label", data.text);
    video.src = `${data.video}#t=${data.begin},${data.end}`;
    const old = stage.querySelector("video");
    old.pause();
    old.removeAttribute("src");
    old.load();  // ends its download
    old.replaceWith(video);
    loopOver(video);
    stage.querySelector(".title").textContent = data.text;
    stage.querySelector(".where").textContent = data.where;
    stage.querySelector(".tags").replaceChildren(
      ...[...item.parentElement.querySelectorAll(".tags > *")].map((tag) => tag.cloneNode(true)));
    stage.querySelector(".about").href = `/sample/${data.key}`;
    for (const step of stage.querySelectorAll("[data-step]")) {
      const other = items[place + Number(step.dataset.step)];
      other ? step.setAttribute("href", other.getAttribute("href")) : step.removeAttribute("href");
    }
    history.replaceState(null, "", item.getAttribute("href"));
    video.play().catch(() => {});  // interrupted by the next one
  };
  const showOf = (event, key) => {
    if (!places.has(key) || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    show(places.get(key));
  };
  for (const item of items) item.addEventListener("click", (event) => showOf(event, item.dataset.key));
  for (const [key, block] of blocks) block.addEventListener("click", (event) => showOf(event, key));
  for (const step of stage.querySelectorAll("[data-step]")) {
    step.addEventListener("click", (event) => {
      event.preventDefault();
      show(current + Number(step.dataset.step));
    });
  }
  button.hidden = false;
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", String(!playsOn()));
    if (playsOn()) stage.querySelector("video").play().catch(() => {});
  });
  stage.addEventListener("clipend", (event) => {
    if (!playsOn() || current + 1 >= items.length) return;
    event.preventDefault();
    show(current + 1);
  });
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "ArrowRight") show(current + 1);
    else if (event.key === "ArrowLeft") show(current - 1);
    else if (event.key === " " && !event.target.closest("a, button, summary, video")) {
      const video = stage.querySelector("video");
      video.paused ? video.play().catch(() => {}) : video.pause();
    } else return;
    event.preventDefault();
  });
}
