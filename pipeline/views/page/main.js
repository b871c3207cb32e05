// Connects the parts of the page: messages to cards, keys and buttons to their actions.

import { Link } from "./link.js";
import { write as writeNumbers } from "./numbers.js";
import { Card } from "./picture.js";
import { skeletonOf } from "./skeleton.js";
import { Space } from "./space.js";
import { applyTheme, nextTheme } from "./theme.js";

const WRITE_EVERY_MS = 250;

const $ = (id) => document.getElementById(id);
const space = new Space($("space").querySelector("canvas"), $("scale"));
const cards = new Map();
let headers = new Map();
let status = new Map();
let chosen = null;
let lost = true;
let paused = false;

function choose(card) {
  if (!card) return;
  chosen = card;
  for (const other of cards.values()) other.root.setAttribute("aria-current", String(other === card));
  space.choose(card);
  write();
}

function hello(message) {
  // The page outlives a run: a source's last picture stays until the next run's first frame of that source.
  headers = new Map(message.sources.map((header) => [header.source.name, header]));
  for (const [name, card] of cards) {
    if (headers.has(name)) continue;
    card.root.remove();
    cards.delete(name);
  }
  for (const [name, header] of headers) {
    if (!cards.has(name)) cards.set(name, new Card(name, () => choose(cards.get(name))));
    cards.get(name).begin(skeletonOf(header));
    $("sources").append(cards.get(name).root);
  }
  $("sources").classList.toggle("several", cards.size > 1);
  $("sources").style.setProperty("--columns", Math.ceil(Math.sqrt(cards.size)));
  const random = message.sources.some((header) => header.model.random);
  $("warning").hidden = !random;
  $("warning").textContent = "RANDOM WEIGHTS: these poses mean nothing";
  document.title = [...headers.keys()].join(", ") + " · convnextpose";
  if (!cards.has(chosen?.name)) choose(cards.values().next().value);
}

/** Wait for the next paint; false if the page is hidden before it: it must not show an old frame when it is visible again. */
function nextPaint() {
  return new Promise((resolve) => {
    const hidden = () => document.hidden && resolve(false);
    document.addEventListener("visibilitychange", hidden, { once: true });
    requestAnimationFrame(() => {
      document.removeEventListener("visibilitychange", hidden);
      resolve(true);
    });
    hidden();
  });
}

async function frames(message) {
  const bitmaps = await Promise.all(message.frames.map((frame) => createImageBitmap(frame.jpeg)));
  const seen = await nextPaint();
  message.frames.forEach((frame, index) => {
    const card = cards.get(frame.source);
    if (!card || !seen) return bitmaps[index].close();
    card.take(frame, bitmaps[index]);
    space.take(card, headers.get(frame.source).root);
  });
  if (message.status) {
    status = new Map(message.status.sources.map((source) => [source.name, source]));
    for (const [name, card] of cards) {
      const source = status.get(name);
      if (source) card.now = { ...source.now, dropped: source.ledger.dropped };
    }
  }
}

function write() {
  for (const card of cards.values()) card.write(lost, paused);
  $("space").classList.toggle("stale", chosen?.picture.classList.contains("stale") ?? false);
  if (chosen) writeNumbers($("numbers"), chosen, status.get(chosen.name), headers.get(chosen.name), lost);
}

function link(state) {
  lost = state !== "open";
  $("link").textContent = lost ? "no run answers at this address; trying again" : paused ? "paused" : "connected";
  $("link").className = lost ? "bad" : paused ? "warn" : "good";
  write();
}

function pause() {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  $("pause").textContent = paused ? "Resume" : "Pause";
  connection.pause(paused);
  link(lost ? "lost" : "open");
}

function full() {
  if (document.fullscreenElement) document.exitFullscreen();
  else document.documentElement.requestFullscreen?.();
}

function theme(name) {
  $("theme").textContent = { system: "Theme", light: "Light", dark: "Dark" }[name];
  space.draw();
}

const KEYS = {
  " ": pause,
  f: full,
  t: () => theme(nextTheme()),
  "?": () => $("help").showModal(),
  0: () => space.reset(),
  "+": () => space.zoom(1 / 1.2),
  "=": () => space.zoom(1 / 1.2),
  "-": () => space.zoom(1.2),
  ArrowLeft: () => space.turn(-0.1, 0),
  ArrowRight: () => space.turn(0.1, 0),
  ArrowUp: () => space.turn(0, -0.06),
  ArrowDown: () => space.turn(0, 0.06),
};

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  if (event.key === " " && event.target instanceof HTMLButtonElement) return; // the space bar presses the button
  if (event.key.startsWith("Arrow") && matchMedia("(max-width: 860px)").matches && event.target.tagName !== "CANVAS") return;
  const number = Number(event.key);
  const act = number >= 1 ? () => choose([...cards.values()][number - 1]) : (KEYS[event.key] ?? KEYS[event.key.toLowerCase()]);
  if (!act) return;
  event.preventDefault();
  act();
});
$("pause").addEventListener("click", pause);
$("full").addEventListener("click", full);
$("full").hidden = !document.fullscreenEnabled;
$("theme").addEventListener("click", () => theme(nextTheme()));
$("keys").addEventListener("click", () => $("help").showModal());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => space.draw());

theme(applyTheme());
const connection = new Link(hello, frames, link);
setInterval(write, WRITE_EVERY_MS);
