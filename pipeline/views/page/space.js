// The 3D view: the chosen source's people on a floor, and the camera's position. A 2D canvas with its own projection.
// Its axes are the world's with z reversed (x right, y up from the floor, z away from the camera), mm.

import { drawLabels } from "./labels.js";
import { LOW_SCORE, colours, dot, stroke } from "./skeleton.js";

const START = { turn: -0.5, tilt: 0.26, radius: 1300 };
const LEAST_RADIUS = 600;
const MOST_RADIUS = 20000;
const ROOM_MM = 800; // from a pelvis to the floor's edge, before the view widens
const WIDEST = 6; // times one person's floor: if people are farther apart, a note says how many are outside
const BONE_MM = 42;

/** A pose's joints in the world, each moved along its line of sight so that the feet stand on the floor. */
function inWorld(pose, root, world) {
  const further = (pose.depth_scale - 1) * pose.joints_mm[root][2];
  return pose.joints_mm.map(([x, y, z]) => {
    const grown = z + further > 0 ? (z + further) / z : 1;
    const [right, up, back] = world.world_from_camera.map(([a, b, c, d]) => (a * x + b * y + c * z) * grown + d);
    return [right, up, -back];
  });
}

/** The people's positions, smoothed over time: noise in the depth must not shake the floor. Poses keep their shape. */
class Floor {
  constructor(root) {
    this.root = root;
    this.places = new Map();
    this.centre = null;
    this.zoom = 1; // the view's width relative to that for one person, smoothed
    this.height = 0; // the camera's height
  }

  follow(frame) {
    const now = performance.now() / 1000;
    const elapsed = now - (this.at ?? now);
    this.at = now;
    const share = (seconds) => (this.centre ? 1 - Math.exp(-elapsed / seconds) : 1);
    const places = new Map();
    this.height = frame.world.height_mm;
    this.joints = new Map(frame.poses.map((pose) => [pose.track_id, inWorld(pose, this.root, frame.world)]));
    for (const pose of frame.poses) {
      const [x, , z] = this.joints.get(pose.track_id)[this.root];
      const last = this.places.get(pose.track_id) ?? [x, z];
      places.set(pose.track_id, [last[0] + share(0.3) * (x - last[0]), last[1] + share(0.3) * (z - last[1])]);
    }
    this.places = places;
    if (!places.size) return;
    const middle = [0, 1].map((axis) => [...places.values()].reduce((sum, place) => sum + place[axis], 0) / places.size);
    const reach = Math.max(...[...places.values()].map(([x, z]) => Math.hypot(x - middle[0], z - middle[1])));
    this.zoom += share(0.6) * (Math.min(Math.max(1, (reach + ROOM_MM) / START.radius), WIDEST) - this.zoom);
    this.centre = this.centre ? this.centre.map((c, axis) => c + share(0.4) * (middle[axis] - c)) : middle;
  }

  /** A pose's joints relative to the floor's middle, mm, y up. */
  placeOnFloor(pose) {
    const joints = this.joints.get(pose.track_id);
    const root = joints[this.root];
    const [x, z] = this.places.get(pose.track_id);
    return joints.map((j) => [j[0] - root[0] + x - this.centre[0], j[1], j[2] - root[2] + z - this.centre[1]]);
  }
}

export class Space {
  constructor(canvas, note) {
    this.canvas = canvas;
    this.root = canvas.parentElement;
    this.note = note;
    this.floors = new Map();
    this.view = { ...START };
    this.card = null;
    this.handle();
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  /** Take a new frame of a source. */
  take(card, root) {
    if (!this.floors.has(card.name)) this.floors.set(card.name, new Floor(root));
    this.floors.get(card.name).follow(card.frame);
    if (card === this.card) this.draw();
  }

  choose(card) {
    this.card = card;
    this.draw();
  }

  reset() {
    this.view = { ...START };
    this.draw();
  }

  turn(x, y) {
    this.view.turn += x;
    this.view.tilt = Math.min(Math.max(this.view.tilt + y, 0.02), Math.PI / 2);
    this.draw();
  }

  zoom(factor) {
    this.view.radius *= Math.min(Math.max(this.radius * factor, LEAST_RADIUS), MOST_RADIUS) / this.radius;
    this.draw();
  }

  /** The floor's radius, mm: large enough for the people, times the user's zoom. */
  get radius() {
    return this.view.radius * (this.floors.get(this.card?.name)?.zoom ?? 1);
  }

  handle() {
    const { canvas } = this;
    const fingers = new Map();
    const apart = () => {
      const [a, b] = [...fingers.values()];
      return Math.hypot(a[0] - b[0], a[1] - b[1]);
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, [event.clientX, event.clientY]);
    });
    canvas.addEventListener("pointermove", (event) => {
      const last = fingers.get(event.pointerId);
      if (!last) return;
      const before = fingers.size === 2 ? apart() : 0;
      fingers.set(event.pointerId, [event.clientX, event.clientY]);
      if (fingers.size === 1) this.turn((event.clientX - last[0]) * 0.008, (event.clientY - last[1]) * 0.006);
      if (fingers.size === 2 && before) this.zoom(before / Math.max(apart(), 1));
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => fingers.delete(event.pointerId));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(event.deltaY * 0.001));
    }, { passive: false });
    canvas.addEventListener("dblclick", () => this.reset());
  }

  /** A function from points relative to the floor's middle, mm, to [x px, y px, nearness]: 1 there, more in front of it. */
  projector(width, height) {
    const { turn, tilt } = this.view;
    const { radius } = this;
    const eye = 3.2 * radius;
    const scale = Math.min(width / (2.5 * radius), height / (2.2 * Math.max(radius, 1200)));
    const lift = 0.52 * Math.min(radius, 1800); // height above the floor of the point in the middle of the canvas
    const [ct, st, cp, sp] = [Math.cos(turn), Math.sin(turn), Math.cos(tilt), Math.sin(tilt)];
    return ([x, y, z]) => {
      const across = ct * x + st * z;
      const deep = ct * z - st * x;
      const up = y - lift;
      const ahead = deep * cp - up * sp;
      const nearness = eye / Math.max(eye + ahead, 0.1 * eye);
      return [width / 2 + across * scale * nearness, height / 2 - (up * cp + deep * sp) * scale * nearness, nearness, scale];
    };
  }

  draw() {
    const { canvas, card } = this;
    const width = Math.round(canvas.clientWidth * devicePixelRatio);
    const height = Math.round(canvas.clientHeight * devicePixelRatio);
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
    }
    const context = canvas.getContext("2d");
    const paint = colours();
    const project = this.projector(width, height);
    context.fillStyle = paint.space;
    context.fillRect(0, 0, width, height);
    const floor = card && this.floors.get(card.name);
    const step = this.radius < 2600 ? 500 : this.radius < 8000 ? 1000 : 5000;
    this.ground(context, project, floor?.centre ?? [0, 0], step, paint);
    const words = [`grid ${step / 1000} m`];
    if (!floor?.centre || !card.frame.poses.length) words.push(card?.frame ? "nobody in sight" : "no frame yet");
    if (card?.guessed()) words.push("distances are a guess");
    this.root.classList.toggle("several", card?.several ?? false);
    if (floor?.centre) {
      this.mark(context, project, floor, paint);
      const outside = this.people(context, project, floor, paint);
      if (outside) words.push(`${outside} farther away`);
    }
    this.note.textContent = words.join(" · ");
  }

  ground(context, project, centre, step, paint) {
    const { radius } = this;
    const rim = Array.from({ length: 72 }, (_, i) => project([radius * Math.cos((i * Math.PI) / 36), 0, radius * Math.sin((i * Math.PI) / 36)]));
    context.beginPath();
    rim.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
    context.closePath();
    context.fillStyle = paint.floor;
    context.fill();
    context.strokeStyle = paint.grid;
    context.lineWidth = devicePixelRatio;
    context.beginPath();
    for (const axis of [0, 1]) {
      // The grid stays in place in the world while people walk.
      const shift = ((centre[axis] % step) + step) % step;
      for (let at = -Math.ceil(radius / step) * step - shift; at < radius; at += step) {
        if (Math.abs(at) >= radius) continue;
        const half = Math.sqrt(radius ** 2 - at ** 2);
        const line = axis ? [[-half, 0, at], [half, 0, at]] : [[at, 0, -half], [at, 0, half]];
        const [from, to] = line.map(project);
        context.moveTo(from[0], from[1]);
        context.lineTo(to[0], to[1]);
      }
    }
    context.stroke();
  }

  /** Draw the camera: a small pyramid at its position, or at the floor's edge if it is farther away. */
  mark(context, project, floor, paint) {
    const { radius } = this;
    const away = Math.hypot(...floor.centre);
    if (!away) return;
    const far = away > 0.94 * radius;
    const [x, z] = floor.centre.map((c) => (far ? (-c / away) * 0.94 * radius : -c));
    const y = far ? 0.04 * radius : floor.height;
    const size = 0.075 * radius;
    const at = project([x, y, z]);
    const corners = [[-1, -0.75], [1, -0.75], [1, 0.75], [-1, 0.75]].map(([a, b]) => project([x + a * size, y + b * size, z + 1.3 * size]));
    context.strokeStyle = paint.soft;
    context.lineWidth = 1.5 * devicePixelRatio;
    context.lineJoin = "round";
    context.beginPath();
    corners.forEach(([cx, cy], i) => {
      context.moveTo(at[0], at[1]);
      context.lineTo(cx, cy);
      const next = corners[(i + 1) % 4];
      context.lineTo(next[0], next[1]);
    });
    context.stroke();
    context.font = `${12.5 * devicePixelRatio}px system-ui, sans-serif`;
    context.fillStyle = paint.soft;
    context.textAlign = "center";
    context.textBaseline = "bottom";
    const text = `camera${far ? `, ${(away / 1000).toFixed(1)} m away` : ""}`;
    const room = context.measureText(text).width / 2 + 4;
    context.fillText(text, Math.min(Math.max(at[0], room), context.canvas.width - room), Math.min(at[1], ...corners.map((c) => c[1])) - 4);
  }

  /** Draw the people. Returns how many of them are outside the view. */
  people(context, project, floor, paint) {
    const { skeleton, frame } = this.card;
    const { width: wide, height: high } = this.canvas;
    const shows = ([x, y]) => x >= 0 && x < wide && y >= 0 && y < high;
    const parts = [];
    const labels = [];
    const shadow = new Path2D();
    for (const pose of frame.poses) {
      const tones = this.card.coloursOf(pose, paint);
      const joints = floor.placeOnFloor(pose);
      const points = joints.map(project);
      const onFloor = joints.map(([x, , z]) => project([x, 0, z]));
      const width = (joint) => BONE_MM * points[joint][3] * points[joint][2] ** 1.5;
      for (const { from, to, side } of skeleton.bones) {
        shadow.moveTo(onFloor[from][0], onFloor[from][1]);
        shadow.lineTo(onFloor[to][0], onFloor[to][1]);
        const unsure = pose.scores[from] < LOW_SCORE || pose.scores[to] < LOW_SCORE;
        const thick = Math.max((width(from) + width(to)) / 2, 1.5 * devicePixelRatio) * (unsure ? 0.5 : 1);
        const near = (points[from][2] + points[to][2]) / 2;
        parts.push({ near, paint: () => stroke(context, points[from], points[to], thick, tones[side], tones.edge, unsure) });
      }
      for (const { joint, side } of skeleton.joints) {
        const near = points[joint][2] + 1e-3;
        const radius = Math.max(0.62 * width(joint), 1.2 * devicePixelRatio);
        parts.push({ near, paint: () => dot(context, points[joint], radius, tones[side], tones.edge, pose.scores[joint] < LOW_SCORE) });
      }
      const seen = points.filter(shows);
      if (!seen.length) continue; // nothing to label
      const top = seen.reduce((a, b) => (b[1] < a[1] ? b : a));
      const label = { text: `#${pose.track_id}`, colour: this.card.coloursOf(pose, { middle: "#ffffff" }).middle };
      labels.push({ ...label, near: top[2], left: top[0] - 9 * devicePixelRatio, bottom: top[1] - 7 * devicePixelRatio });
    }
    context.save();
    context.globalAlpha = 0.16;
    context.lineCap = "round";
    context.lineWidth = 2.4 * BONE_MM * project([0, 0, 0])[3];
    context.strokeStyle = "#000";
    context.stroke(shadow);
    context.restore();
    for (const part of parts.sort((a, b) => a.near - b.near)) part.paint();
    drawLabels(context, labels.sort((a, b) => b.near - a.near), 12 * devicePixelRatio);
    return frame.poses.length - labels.length;
  }
}
