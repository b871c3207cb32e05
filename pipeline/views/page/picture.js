// One source's card: its picture with the skeletons over it, its state, its age.

import { drawLabels } from "./labels.js";
import { LOW_SCORE, dot, personColours, stroke } from "./skeleton.js";

const ON_PICTURE = { left: "#4fa8ff", right: "#ff9c40", middle: "#ffffff", edge: "#14161a" };
const STALE_MS = 1000;

export const TONES = { running: "good", live: "good", open: "warn", connecting: "warn", stalled: "warn", lost: "bad", broken: "bad" };

export function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

export function duration(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60e3) return `${(ms / 1000).toFixed(1)} s`;
  if (ms < 3600e3) return `${Math.floor(ms / 60e3)} min`;
  return `${Math.floor(ms / 3600e3)} h`;
}

export class Card {
  constructor(name, onChoose) {
    this.name = name;
    this.skeleton = null;
    this.several = false; // whether each person has a colour of their own
    this.frame = null; // the newest frame that is shown
    this.now = null; // the newest status
    this.interval = STALE_MS / 3; // between frames, smoothed, ms
    this.root = element("article", "card");
    this.root.tabIndex = 0;
    this.root.setAttribute("aria-label", name);
    this.picture = element("div", "picture");
    this.canvas = element("canvas");
    this.canvas.width = 16;
    this.canvas.height = 9;
    this.empty = element("p", "empty", "no picture yet");
    this.badges = element("div", "badges");
    this.picture.append(this.canvas, this.empty, this.badges);
    this.caption = element("div", "caption");
    this.root.append(this.picture, this.caption);
    this.root.addEventListener("click", onChoose);
    this.root.addEventListener("keydown", (event) => event.key === "Enter" && onChoose());
    this.picture.addEventListener("dblclick", () =>
      document.fullscreenElement ? document.exitFullscreen() : this.picture.requestFullscreen?.(),
    );
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  /** Prepare for a new run. */
  begin(skeleton) {
    this.skeleton = skeleton;
    this.several = false;
  }

  /** The colours of a pose: `alone` for one person. After several people they stay: colours that change would identify nobody. */
  coloursOf(pose, alone) {
    return this.several ? personColours(this.skeleton, pose.track_id) : alone;
  }

  /** Take a frame and its decoded picture; the last picture is freed. */
  take(frame, bitmap) {
    const now = performance.now();
    if (this.frame) this.interval += 0.2 * (Math.min(now - this.frame.at, 10e3) - this.interval);
    this.bitmap?.close();
    this.bitmap = bitmap;
    this.frame = { ...frame, at: frame.arrived };
    this.several ||= frame.poses.length > 1;
    const age = (frame.age_ms ?? 0) + now - frame.arrived;
    this.drawnAge = (this.drawnAge ?? age) + 0.1 * (age - (this.drawnAge ?? age));
    this.empty.hidden = true;
    this.root.dataset.index = frame.index; // for programs that watch the page
    this.draw();
  }

  /** The age of a live source's frames when they are drawn, smoothed; if none arrive any more, the age of the last one, ms. */
  age() {
    const shown = (this.frame.age_ms ?? 0) + performance.now() - this.frame.at;
    return this.stale(false) && !this.paused ? shown : this.drawnAge;
  }

  stale(lost) {
    if (!this.frame) return false;
    return lost || performance.now() - this.frame.at > Math.max(STALE_MS, 4 * this.interval);
  }

  draw() {
    if (!this.bitmap) return;
    const { canvas, frame } = this;
    const shown = canvas.clientWidth * devicePixelRatio || this.bitmap.width;
    const width = Math.round(Math.min(Math.max(shown, 160), 1920));
    const height = Math.round((width * frame.height) / frame.width);
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
    }
    const context = canvas.getContext("2d");
    context.drawImage(this.bitmap, 0, 0, width, height);
    const scale = width / frame.width;
    // In joint coordinates, pixel centres are at whole numbers; on a canvas they are at halves.
    const place = ([x, y]) => [(x + 0.5) * scale, (y + 0.5) * scale];
    const unit = width / (canvas.clientWidth || width); // a CSS pixel, in canvas pixels
    const farFirst = [...frame.poses].sort((a, b) => b.root_depth_mm - a.root_depth_mm);
    for (const pose of farFirst) {
      const paint = this.coloursOf(pose, ON_PICTURE);
      const points = pose.joints_px.map(place);
      const size = Math.max(pose.box[2], pose.box[3]) * scale;
      const bone = Math.min(Math.max(0.016 * size, 2 * unit), 9 * unit);
      for (const { from, to, side } of this.skeleton.bones) {
        const unsure = pose.scores[from] < LOW_SCORE || pose.scores[to] < LOW_SCORE;
        stroke(context, points[from], points[to], unsure ? 0.6 * bone : bone, paint[side], paint.edge, unsure);
      }
      for (const { joint, side } of this.skeleton.joints)
        dot(context, points[joint], 0.7 * bone, paint[side], paint.edge, pose.scores[joint] < LOW_SCORE);
    }
    const labels = farFirst.reverse().map((pose) => {
      const [left, bottom] = place([pose.box[0], pose.box[1] - 3 / scale]);
      return { text: `#${pose.track_id}`, colour: this.coloursOf(pose, ON_PICTURE).middle, left, bottom };
    });
    const small = Math.min(Math.max(0.03 * canvas.clientWidth, 10), 13); // less on a phone's small pictures
    drawLabels(context, labels, small * unit);
  }

  /** Update the badges and the caption. */
  write(lost, paused) {
    this.paused = paused;
    const stale = lost || !paused ? this.stale(lost) : false;
    this.picture.classList.toggle("stale", stale);
    const badges = [];
    if (paused && this.frame) badges.push(element("span", "", "paused"));
    if (stale) badges.push(element("span", "old", `${duration(performance.now() - this.frame.at)} old`));
    if (this.guessed()) badges.push(element("span", "guess", "depth is a guess"));
    this.badges.replaceChildren(...badges);
    const now = this.now;
    const parts = [element("span", "name", this.name)];
    const state = lost ? "unreachable" : (now?.state ?? "connecting");
    parts.push(element("span", `state ${lost ? "bad" : (TONES[state] ?? "")}`, state));
    if (now && !lost) {
      parts.push(element("span", "soft", `${now.fps_out.toFixed(1)} fps`));
      if (now.live && this.frame) parts.push(element("span", "soft", `age ${duration(this.age())}`));
      if (now.dropped) parts.push(element("span", "soft", `${now.dropped} dropped`));
      if (now.cause) parts.push(element("span", "cause", now.cause));
    }
    this.caption.replaceChildren(...parts);
  }

  /** Whether depths are a guess because the camera's intrinsics were not given. */
  guessed() {
    return this.frame?.poses.some((pose) => !["intrinsics", "given"].includes(pose.root_depth_source)) ?? false;
  }
}
