// The socket to the run: parses messages, acknowledges each once it is shown, and reconnects after a restart.

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 5000;

/** A message of the server: 4 bytes with the length of the head, the head as JSON, then one JPEG for each frame of the head. */
export function parse(buffer) {
  const length = new DataView(buffer).getUint32(0);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let at = 4 + length;
  for (const frame of head.frames) {
    frame.arrived = performance.now();
    frame.jpeg = new Blob([new Uint8Array(buffer, at, frame.jpeg_bytes)], { type: "image/jpeg" });
    at += frame.jpeg_bytes;
  }
  return head;
}

export class Link {
  /**
   * @param onHello gets the description of the run.
   * @param onFrames gets a message's frames and status; returns a promise that resolves when they are on the screen.
   * @param onState gets "open" or "lost".
   */
  constructor(onHello, onFrames, onState) {
    this.onHello = onHello;
    this.onFrames = onFrames;
    this.onState = onState;
    this.paused = false;
    this.wait = FIRST_WAIT_MS;
    this.connect();
    // A hidden page requests nothing, and continues with the newest frame, not with an old one.
    document.addEventListener("visibilitychange", () => this.tell());
    addEventListener("online", () => this.hurry());
  }

  connect() {
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(`${scheme}//${location.host}/socket`);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    socket.onopen = () => {
      this.wait = FIRST_WAIT_MS;
      this.onState("open");
      this.tell();
    };
    socket.onmessage = async (event) => {
      if (typeof event.data === "string") {
        this.onHello(JSON.parse(event.data));
        return;
      }
      try {
        await this.onFrames(parse(event.data));
      } finally {
        if (socket.readyState === WebSocket.OPEN) socket.send("ack");
      }
    };
    socket.onclose = () => {
      if (this.socket !== socket) return;
      this.onState("lost");
      this.timer = setTimeout(() => this.connect(), this.wait);
      this.wait = Math.min(2 * this.wait, LONGEST_WAIT_MS);
    };
  }

  hurry() {
    if (this.socket.readyState !== WebSocket.CLOSED) return;
    clearTimeout(this.timer);
    this.connect();
  }

  pause(paused) {
    this.paused = paused;
    this.tell();
  }

  tell() {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(this.paused || document.hidden ? "pause" : "resume");
    if (!document.hidden) this.hurry();
  }
}
