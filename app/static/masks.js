// Masks: decoding, pasting, outlines. Pure functions, no page; same conventions as dynamask.ops.masks (boxes xyxy in
// continuous pixels, a mask value belongs to the centre of its cell, cells beyond the mask count as 0).

export const LEVEL = 127.5; // probability 0.5 in bytes

// Bytes of a base64 text that holds a zlib stream.
export async function inflate(text) {
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// One byte array per size for each of `count` instances, views into `bytes`.
export function splitMasks(bytes, sizes, count) {
  const masks = [];
  let offset = 0;
  for (let i = 0; i < count; i++) {
    masks.push(sizes.map((size) => bytes.subarray(offset, (offset += size * size))));
  }
  return masks;
}

// One list of one byte array for each [rows, columns], views into `bytes`.
export function splitByShape(bytes, shapes) {
  let offset = 0;
  return shapes.map(([rows, columns]) => [bytes.subarray(offset, (offset += rows * columns))]);
}

// Positions of samples on a mask's cells along one axis: index of the cell before, weight of the cell after.
function cellsAlong(start, count, low, high, size) {
  const index = new Int32Array(count);
  const weight = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    const position = ((start + i + 0.5 - low) / Math.max(high - low, 1e-6)) * size - 0.5;
    index[i] = Math.floor(position);
    weight[i] = position - index[i];
  }
  return { index, weight };
}

// Bilinear values (0-255) of a mask at the pixel centres of its box, in a window with a border of one pixel of zeros.
// `size` cells across and `sizeDown` down. Returns {x, y, w, h, values}: pixel (x + i, y + j) of the picture has values[j * w + i].
export function pasteField(mask, size, box, width, height, sizeDown = size) {
  const left = Math.max(0, Math.ceil(box[0] - 0.5));
  const right = Math.max(left, Math.min(width, Math.ceil(box[2] - 0.5)));
  const top = Math.max(0, Math.ceil(box[1] - 0.5));
  const bottom = Math.max(top, Math.min(height, Math.ceil(box[3] - 0.5)));
  const w = right - left + 2;
  const h = bottom - top + 2;
  const values = new Float32Array(w * h);
  const columns = cellsAlong(left, right - left, box[0], box[2], size);
  const rows = cellsAlong(top, bottom - top, box[1], box[3], sizeDown);
  const at = (r, c) => (r < 0 || c < 0 || r >= sizeDown || c >= size ? 0 : mask[r * size + c]);
  for (let j = 0; j < bottom - top; j++) {
    const r = rows.index[j];
    const down = rows.weight[j];
    for (let i = 0; i < right - left; i++) {
      const c = columns.index[i];
      const across = columns.weight[i];
      const above = at(r, c) * (1 - across) + at(r, c + 1) * across;
      const below = at(r + 1, c) * (1 - across) + at(r + 1, c + 1) * across;
      values[(j + 1) * w + i + 1] = above * (1 - down) + below * down;
    }
  }
  return { x: left - 1, y: top - 1, w, h, values };
}

// Marching squares. Corners of a square as bits: top left 1, top right 2, bottom right 4, bottom left 8; each entry lists
// the directed pieces of outline (from side, to side) with the inside on the right. Sides: 0 top, 1 right, 2 bottom, 3 left.
const PIECES = [
  [], [[0, 3]], [[1, 0]], [[1, 3]], [[2, 1]], [[0, 3], [2, 1]], [[2, 0]], [[2, 3]],
  [[3, 2]], [[0, 2]], [[1, 0], [3, 2]], [[1, 2]], [[3, 1]], [[0, 1]], [[3, 0]], [],
];

// For each crossed side of the grid, the side that the outline crosses next (-1 where it does not pass).
function linkOutline(field) {
  const { w, h, values } = field;
  const next = new Int32Array(2 * w * h).fill(-1);
  for (let y = 0; y + 1 < h; y++) {
    for (let x = 0; x + 1 < w; x++) {
      const p = y * w + x;
      const corners = (values[p] >= LEVEL) | ((values[p + 1] >= LEVEL) << 1) |
        ((values[p + w + 1] >= LEVEL) << 2) | ((values[p + w] >= LEVEL) << 3);
      if (corners === 0 || corners === 15) continue;
      const sides = [2 * p, 2 * (p + 1) + 1, 2 * (p + w), 2 * p + 1];
      for (const [from, to] of PIECES[corners]) next[sides[from]] = sides[to];
    }
  }
  return next;
}

// Closed outlines of a field at probability 0.5, as flat lists of picture coordinates [x0, y0, x1, y1, …].
export function traceOutlines(field) {
  const { w, values } = field;
  const next = linkOutline(field);
  const outlines = [];
  for (let start = 0; start < next.length; start++) {
    if (next[start] < 0) continue;
    const points = [];
    let side = start;
    while (next[side] >= 0) {
      const p = side >> 1;
      const vertical = side & 1;
      const other = vertical ? p + w : p + 1;
      const t = (LEVEL - values[p]) / (values[other] - values[p]);
      points.push(field.x + (p % w) + 0.5 + (vertical ? 0 : t), field.y + Math.floor(p / w) + 0.5 + (vertical ? t : 0));
      const following = next[side];
      next[side] = -1;
      side = following;
    }
    outlines.push(points);
  }
  return outlines;
}

// The outlines as a Path2D.
export function outlinePath(field) {
  const path = new Path2D();
  for (const points of traceOutlines(field)) {
    path.moveTo(points[0], points[1]);
    for (let i = 2; i < points.length; i += 2) path.lineTo(points[i], points[i + 1]);
    path.closePath();
  }
  return path;
}

// Intersection over union of two fields with the same window; 1 where both are empty.
export function fieldIoU(a, b) {
  let both = 0;
  let either = 0;
  for (let i = 0; i < a.values.length; i++) {
    const inA = a.values[i] >= LEVEL;
    const inB = b.values[i] >= LEVEL;
    both += inA && inB;
    either += inA || inB;
  }
  return either ? both / either : 1;
}

// Eq. 4: cells of a mask that touch the other side across one of their four sides; the border of the mask is no edge.
export function edgeCells(mask, size) {
  const edges = new Uint8Array(size * size);
  for (let r = 0; r < size; r++) {
    for (let c = 0; c < size; c++) {
      const own = mask[r * size + c] >= LEVEL;
      const differs = (rr, cc) => rr >= 0 && cc >= 0 && rr < size && cc < size && (mask[rr * size + cc] >= LEVEL) !== own;
      edges[r * size + c] = differs(r - 1, c) || differs(r + 1, c) || differs(r, c - 1) || differs(r, c + 1);
    }
  }
  return edges;
}
