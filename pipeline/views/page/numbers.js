// The chosen source's numbers: state, speed, age, time of each stage, outcome of the frames.

import { TONES, duration, element } from "./picture.js";

const CLOCKS = { kernel: "by the kernel's time stamp", sender: "by the sender's clock", arrival: "since its arrival" };
const SHOWN_REASONS = 5;

function figure(term, value, small) {
  const group = element("div");
  const data = element("dd", "", value);
  if (small) data.append(element("small", "", small));
  group.append(element("dt", "", term), data);
  return group;
}

function reasons(ledger, missed) {
  const list = element("ul", "reasons");
  const kinds = [["dropped", ledger.drop_reasons], ["failed", ledger.failures], ["without a pose", ledger.without_a_pose]];
  const rows = kinds.flatMap(([what, all]) => all.map(({ reason, count }) => `${count} ${what}: ${reason}`));
  rows.push(...Object.entries(missed).filter(([by]) => by !== "caller").map(([by, count]) => `${count} missed by ${by}, which was too slow`));
  for (const row of rows.slice(0, SHOWN_REASONS)) list.append(element("li", "", row));
  if (rows.length > SHOWN_REASONS) list.append(element("li", "", `and ${rows.length - SHOWN_REASONS} more reasons`));
  return list;
}

/** The time of each stage. A live source's capture may include waiting for the next frame, so it is left out of the shares. */
function stages(rows, live) {
  const table = element("table");
  const head = element("tr");
  for (const text of ["stage", "p50 ms", "p95 ms", "share of the work"]) head.append(element("th", "", text));
  table.append(head);
  const works = (row) => !(live && row.stage === "capture");
  const all = rows.filter(works).reduce((sum, row) => sum + row.share, 0) || 1;
  for (const row of rows) {
    const line = element("tr");
    line.append(element("td", "", row.stage), element("td", "", row.p50_ms.toFixed(1)), element("td", "", row.p95_ms.toFixed(1)));
    const bar = element("td", "bar");
    if (works(row)) {
      const fill = element("i");
      fill.style.width = `${(100 * row.share) / all}%`;
      bar.append(fill);
    }
    line.append(bar);
    table.append(line);
  }
  return table;
}

/** Write the numbers of a card into an element. `source` is its part of the status, `header` the run's header. */
export function write(root, card, source, header, lost) {
  const parts = [];
  const top = element("div");
  const now = source?.now;
  const state = lost ? "unreachable" : (now?.state ?? "connecting");
  top.append(element("h2", "", card.name), element("span", `state ${lost ? "bad" : (TONES[state] ?? "")}`, state));
  if (now?.cause && !lost) top.append(element("p", "cause", now.cause));
  parts.push(top);
  if (source) {
    const figures = element("dl", "figures");
    figures.append(figure("in", now.fps_in.toFixed(1), "frames/s"), figure("out", now.fps_out.toFixed(1), "frames/s"));
    if (now.live) figures.append(figure("age", card.frame ? duration(card.age()) : "none", CLOCKS[now.clock] ?? ""));
    else if (card.frame?.latency_ms != null) figures.append(figure("latency", `${card.frame.latency_ms.toFixed(0)} ms`, "capture to pose"));
    figures.append(figure("people", card.frame ? String(card.frame.poses.length) : "0", `${source.people.tracks} ${source.people.tracks === 1 ? "id" : "ids"} so far`));
    parts.push(figures);
    if (source.stages.length) parts.push(stages(source.stages, now.live));
    const ledger = element("div");
    const { received, posed, dropped, failed } = source.ledger;
    const open = now.in_flight ? ` + ${now.in_flight} in flight` : "";
    ledger.append(element("h2", "", "Frames"));
    ledger.append(element("p", "", `received ${received} = posed ${posed} + dropped ${dropped} + failed ${failed}${open}`));
    ledger.append(reasons(source.ledger, source.missed));
    parts.push(ledger);
  }
  const depth = header.root_depth_source === "assumed_fov" ? "from an assumed field of view, a guess" : "from the given camera";
  const runtime = header.runtime;
  parts.push(element("p", "about", `${header.model.name} on ${runtime.name} (${runtime.device}, ${runtime.precision}); depth ${depth}`));
  root.classList.toggle("past", lost);
  root.replaceChildren(...parts);
}
