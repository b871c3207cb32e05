// Labels of people, placed so that they do not overlap, as in the videos.

const REACH = 10; // positions to try on each side, in half labels

function clamp(value, most) {
  return Math.min(Math.max(value, 0), Math.max(most, 0));
}

/**
 * Draw labels in order, each as near to its preferred position as the earlier ones and the canvas's edges allow.
 *
 * A label is { text, colour, left, bottom }: the background colour, and the preferred position of its bottom left corner.
 */
export function drawLabels(context, labels, height) {
  const { canvas } = context;
  const taken = [];
  context.font = `600 ${height}px system-ui, sans-serif`;
  context.textAlign = "left";
  context.textBaseline = "middle";
  for (const { text, colour, left, bottom } of labels) {
    const wide = context.measureText(text).width + 0.6 * height;
    const high = 1.35 * height;
    const wanted = [clamp(left, canvas.width - wide), clamp(bottom - high, canvas.height - high)];
    let place = wanted;
    let least = Infinity;
    for (let down = -REACH; down <= REACH; down++) {
      for (let right = -REACH; right <= REACH; right++) {
        const x = clamp(wanted[0] + 0.52 * right * wide, canvas.width - wide);
        const y = clamp(wanted[1] + 0.52 * down * high, canvas.height - high);
        const far = (x - wanted[0]) ** 2 + (y - wanted[1]) ** 2;
        if (far >= least || taken.some(([l, t, r, b]) => x < r && x + wide > l && y < b && y + high > t)) continue;
        least = far;
        place = [x, y];
      }
    }
    const [x, y] = place;
    taken.push([x, y, x + wide, y + high]);
    context.fillStyle = colour;
    context.fillRect(x, y, wide, high);
    context.fillStyle = "#14161a";
    context.fillText(text, x + 0.3 * height, y + 0.53 * high);
  }
}
