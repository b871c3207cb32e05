// The drawn parts of a joint set and their colours, the same as in the videos. A single person's sides have one colour each; of
// several people each has a colour, by the track id, lighter on the left and darker on the right.

export const LOW_SCORE = 0.3; // below it a joint is hollow, and bones that end at it are dashed

/** The bones with their sides, and the people's colours, from a run's header. */
export function skeletonOf(header) {
  const side = (name) => (name.startsWith("L_") ? "left" : name.startsWith("R_") ? "right" : "middle");
  const bones = header.bones.map(([from, to]) => ({ from, to, side: side(header.joints[to]) }));
  const ends = [...new Set(header.bones.flat())];
  return { bones, joints: ends.map((joint) => ({ joint, side: side(header.joints[joint]) })), people: header.people_rgb };
}

/** The colours of one of several people. */
export function personColours(skeleton, trackId) {
  const own = skeleton.people[trackId % skeleton.people.length];
  const mixed = (other, share) => `rgb(${own.map((level) => Math.round(level + share * (other - level))).join(" ")})`;
  return { left: mixed(255, 0.5), right: mixed(0, 0.35), middle: mixed(0, 0), edge: "#14161a" };
}

export function colours() {
  const style = getComputedStyle(document.documentElement);
  const value = (name) => style.getPropertyValue(`--${name}`).trim();
  return Object.fromEntries(["left", "right", "middle", "edge", "floor", "grid", "space", "soft"].map((n) => [n, value(n)]));
}

/** Draw a line with an outline, so that it is visible on any background. */
export function stroke(context, from, to, width, colour, edge, dashed) {
  context.beginPath();
  context.moveTo(from[0], from[1]);
  context.lineTo(to[0], to[1]);
  context.lineCap = "round";
  context.setLineDash(dashed ? [width * 0.8, width * 1.8] : []);
  context.strokeStyle = edge;
  context.lineWidth = width + 2;
  context.stroke();
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.stroke();
  context.setLineDash([]);
}

export function dot(context, at, radius, colour, edge, hollow) {
  context.beginPath();
  context.arc(at[0], at[1], radius, 0, 2 * Math.PI);
  context.fillStyle = hollow ? edge : colour;
  context.fill();
  context.lineWidth = 1.5;
  context.strokeStyle = hollow ? colour : edge;
  context.stroke();
}
