"use strict";
// Pictures as SVG text: scales, ticks, markers, labels that do not overlap. They know nothing of records.

const escape = (text) => String(text).replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt(0)};`);
const round = (value) => Math.round(value * 100) / 100;

// paths around (0, 0), of about equal weight: the markers of the notebooks' pictures
const MARKERS = {
  o: "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0Z",
  s: "M-3.7,-3.7H3.7V3.7H-3.7Z",
  D: "M0,-5L5,0L0,5L-5,0Z",
  "^": "M0,-4.8L4.8,3.8H-4.8Z",
  v: "M0,4.8L4.8,-3.8H-4.8Z",
  "<": "M-4.8,0L3.8,-4.8V4.8Z",
  ">": "M4.8,0L-3.8,-4.8V4.8Z",
  P: "M-1.7,-5H1.7V-1.7H5V1.7H1.7V5H-1.7V1.7H-5V-1.7H-1.7Z",
  X: "M-4.7,-2.3L-2.3,-4.7L0,-2.4L2.3,-4.7L4.7,-2.3L2.4,0L4.7,2.3L2.3,4.7L0,2.4L-2.3,4.7L-4.7,2.3L-2.4,0Z",
};

const mark = ([colour, marker], at = "") => `<path class="mark" fill="${colour}" d="${MARKERS[marker]}"${at}/>`;
const swatch = (look) => `<svg class="swatch" viewBox="-7 -7 14 14" aria-hidden="true">${mark(look)}</svg>`;

/** A scale from values to pixels, with its ticks; `room` is the share left free at both ends. */
function scale(values, [from, to], { log = false, room = 0.05 } = {}) {
  const forth = log ? Math.log10 : (value) => value;
  let low = Math.min(...values.map(forth)),
    high = Math.max(...values.map(forth));
  if (high - low < 1e-12) {
    low -= log ? 0.3 : Math.abs(low) * 0.05 || 0.01;
    high += log ? 0.3 : Math.abs(high) * 0.05 || 0.01;
  }
  const margin = (high - low) * room;
  low -= margin;
  high += margin;
  const place = (value) => from + ((forth(value) - low) / (high - low)) * (to - from);
  place.ticks = log ? logTicks(low, high) : linearTicks(low, high, Math.abs(to - from) / 70);
  place.step = log ? 0 : place.ticks[1] - place.ticks[0];
  return place;
}

function linearTicks(low, high, count) {
  const raw = (high - low) / Math.max(2, count),
    power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw);
  const ticks = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-9; tick += step)
    ticks.push(Math.abs(tick) < step / 1e6 ? 0 : tick);
  return ticks;
}

function logTicks(low, high) {
  if (high - low < 0.7) return linearTicks(10 ** low, 10 ** high, 5);
  const factors = high - low > 1.8 ? [1] : [1, 2, 5],
    ticks = [];
  for (let power = Math.floor(low); power <= high; power++) {
    for (const factor of factors) {
      const tick = factor * 10 ** power;
      if (Math.log10(tick) >= low && Math.log10(tick) <= high) ticks.push(tick);
    }
  }
  return ticks;
}

const plain = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
const tickText = (value, step) =>
  (step && step < 1 ? value.toFixed(Math.max(0, Math.ceil(-Math.log10(step) - 1e-9))) : plain.format(value)).replace(
    "-",
    "−",
  );

/** Frame, ticks, and axis titles of a picture `width` wide and `height` high around a plot area. */
function axes({ left, right, top, bottom }, x, y, xTitle, yTitle) {
  const rows = y.ticks.map(
    (tick) =>
      `<path class="rule" d="M${left},${round(y(tick))}H${right}"/><text x="${left - 8}" y="${round(y(tick)) + 4}" text-anchor="end">${tickText(tick, y.step)}</text>`,
  );
  let last = -Infinity;
  const columns = x.ticks
    .filter((tick) => x(tick) - last > 44 && (last = x(tick)))
    .map(
      (tick) => `<text x="${round(x(tick))}" y="${bottom + 18}" text-anchor="middle">${tickText(tick, x.step)}</text>`,
    );
  const titles = `<text x="${(left + right) / 2}" y="${bottom + 38}" text-anchor="middle">${escape(xTitle)}</text><text x="0" y="12">${escape(yTitle)}</text>`;
  return rows.join("") + columns.join("") + titles;
}

/** Move label heights apart until neighbours are `gap` apart, within the area. */
function spread(heights, gap, top, bottom) {
  const order = heights.map((_, place) => place).sort((a, b) => heights[a] - heights[b]);
  const placed = heights.slice();
  order.forEach((place, rank) => {
    if (rank) placed[place] = Math.max(placed[place], placed[order[rank - 1]] + gap);
  });
  for (let rank = order.length - 1, limit = bottom; rank >= 0; rank--, limit -= gap)
    placed[order[rank]] = Math.min(placed[order[rank]], limit);
  return placed.map((height) => Math.max(height, top));
}

/** Write texts beside their points where they cover neither each other nor a taken box; leave out those that cannot. */
function labels(wanted, taken, { left, right, top, bottom }) {
  const boxes = taken.slice(),
    written = [];
  for (const { x, y, text } of wanted) {
    const width = 6.6 * text.length;
    for (const [dx, dy, anchor] of [
      [7, -7, "start"],
      [9, 4, "start"],
      [0, -10, "middle"],
      [-7, -7, "end"],
      [7, 16, "start"],
      [0, 19, "middle"],
      [-9, 4, "end"],
      [-7, 16, "end"],
    ]) {
      const start = x + dx - (anchor === "end" ? width : anchor === "middle" ? width / 2 : 0);
      const box = [start, y + dy - 11, start + width, y + dy + 3];
      if (box[0] < left || box[2] > right || box[1] < top || box[3] > bottom) continue;
      if (boxes.some((other) => covers(box, other))) continue;
      boxes.push(box);
      written.push(
        `<text class="named halo" x="${round(x + dx)}" y="${round(y + dy)}" text-anchor="${anchor}">${escape(text)}</text>`,
      );
      break;
    }
  }
  return written.join("");
}

/** Those of the lines across that lie near enough to the values not to flatten them. */
function near(lines, values) {
  const low = Math.min(...values),
    high = Math.max(...values),
    room = Math.max(high - low, 0.01);
  return lines.filter((line) => line.at >= low - room && line.at <= high + room);
}

const covers = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];

/** Lines across, named where that covers nothing taken, and the boxes of both; one outside is a note at its edge. */
function across(area, y, lines, taken = []) {
  const heights = lines.map(({ at }) => Math.min(area.bottom, Math.max(area.top, y(at))));
  const boxes = heights.map((height) => [area.left, height - 1, area.right, height + 1]);
  const drawn = lines.map(({ at, text, kind, note }, rank) => {
    const out = y(at) < area.top - 1 ? ` ${note} ↑` : y(at) > area.bottom + 1 ? ` ${note} ↓` : "";
    const width = 6.6 * (text.length + out.length);
    const spots = [-5, 15, -19, 29, -33, 43].flatMap((off) =>
      [area.left + 4, area.right - width - 4, (area.left + area.right - width) / 2].map((left) => {
        const base = Math.min(area.bottom - 4, Math.max(area.top + 10, heights[rank] + off));
        return [left, base - 11, left + width, base + 3];
      }),
    );
    const spot = spots.find((box) => ![...taken, ...boxes].some((other) => covers(box, other))) ?? spots[0];
    boxes.push(spot);
    const line = out ? "" : `<path class="across ${kind}" d="M${area.left},${round(y(at))}H${area.right}"/>`;
    return `${line}<text class="halo" x="${round(spot[0])}" y="${round(spot[3] - 3)}">${escape(text)}${out}</text>`;
  });
  return [drawn.join(""), boxes];
}

/** A point that opens its cell. One of a picture is a tab stop; arrow keys move on. */
function point(x, y, cell, look, { title, faded = false, whisker = "", stop = false }) {
  return `<g class="point${faded ? " faded" : ""}" data-cell="${cell}" role="button" tabindex="${stop ? 0 : -1}" aria-label="${escape(title)}"><title>${escape(title)}</title>${whisker}<g transform="translate(${round(x)},${round(y)})"><circle class="ring" r="9"/>${mark(look)}</g></g>`;
}

/** Put a picture in its place, as wide as that is, under the sentence that it shows; `paint` gives its height too. */
function draw(id, caption, paint) {
  const place = document.getElementById(id);
  place.closest("figure").querySelector("figcaption").textContent = caption;
  const width = Math.max(280, place.clientWidth);
  const [content, height] = paint(width);
  place.innerHTML = `<svg viewBox="0 0 ${width} ${height}" height="${height}" role="group" aria-label="${escape(caption)}">${content}</svg>`;
}

/** Put a sentence in a picture's place. */
function say(id, sentence) {
  const place = document.getElementById(id);
  place.closest("figure").querySelector("figcaption").textContent = sentence;
  place.innerHTML = "";
}
