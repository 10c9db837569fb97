/** Place labels so that they do not cover each other or the lines. */

/**
 * Move labels as little as possible so that neighbours are at least `gap` apart within [top, bottom].
 * Labels that collide form a block around the mean of their preferred positions (pool adjacent violators).
 * @param {number[]} wishes
 * @param {number} gap
 * @param {number} top
 * @param {number} bottom
 * @returns {number[]} in the order of the wishes
 */
export function spread(wishes, gap, top, bottom) {
  const order = wishes.map((_, i) => i).sort((a, b) => wishes[a] - wishes[b] || a - b);
  /** @type {{ start: number, count: number }[]} */
  const blocks = [];
  const fit = (/** @type {number} */ start, /** @type {number} */ count) =>
    Math.max(top, Math.min(start, bottom - (count - 1) * gap));
  for (const index of order) {
    let block = { start: fit(wishes[index], 1), count: 1 };
    let last = blocks[blocks.length - 1];
    while (last && last.start + last.count * gap > block.start) {
      const centre = (b) => b.start + ((b.count - 1) * gap) / 2;
      const count = last.count + block.count;
      const middle = (centre(last) * last.count + centre(block) * block.count) / count;
      block = { start: fit(middle - ((count - 1) * gap) / 2, count), count };
      blocks.pop();
      last = blocks[blocks.length - 1];
    }
    blocks.push(block);
  }
  const places = blocks.flatMap(({ start, count }) => Array.from({ length: count }, (_, i) => start + i * gap));
  const result = new Array(wishes.length);
  order.forEach((index, rank) => (result[index] = places[rank]));
  return result;
}

/** @typedef {{ x: number, y: number, width: number, height: number }} Box */

/**
 * The position of a note near a point, such that it covers the fewest of the given points and no other box.
 * @param {{ x: number, y: number }} anchor
 * @param {{ width: number, height: number }} size
 * @param {Box} frame
 * @param {{ x: number, y: number }[]} marks points along what is drawn
 * @param {Box[]} boxes notes already placed
 * @returns {Box}
 */
export function placeNote(anchor, size, frame, marks, boxes) {
  const { width, height } = size;
  let best = { x: frame.x, y: frame.y, width, height };
  let least = Infinity;
  for (let y = frame.y; y <= frame.y + frame.height - height; y += 6)
    for (let x = frame.x; x <= frame.x + frame.width - width; x += 8) {
      const nearX = Math.max(x, Math.min(anchor.x, x + width));
      const nearY = Math.max(y, Math.min(anchor.y, y + height));
      const distance = Math.hypot(nearX - anchor.x, nearY - anchor.y);
      let cost = distance + (distance < 9 ? 60 : 0);
      if (cost >= least) continue;
      const inside = (/** @type {number} */ px, /** @type {number} */ py) =>
        px > x - 4 && px < x + width + 4 && py > y - 3 && py < y + height + 3;
      for (const mark of marks) if (inside(mark.x, mark.y)) cost += 14;
      for (const box of boxes)
        if (x < box.x + box.width + 6 && box.x < x + width + 6 && y < box.y + box.height + 3 && box.y < y + height + 3)
          cost += 4000;
      if (cost < least) {
        least = cost;
        best = { x, y, width, height };
      }
    }
  return best;
}
