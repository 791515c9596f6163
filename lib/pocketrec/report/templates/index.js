// The page of a suite. What is chosen lives in the address, so that a view can be sent; every choice redraws all.

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const NAMES = Object.keys(data.methods).sort((a, b) => (b === "full") - (a === "full") || a.localeCompare(b));
const TIMES = {
  p50: { label: "Latency p50", unit: "ms", digits: 3, scale: 1, better: "lower" },
  p99: { label: "Latency p99", unit: "ms", digits: 3, scale: 1, better: "lower" },
  throughput: { label: "Throughput", unit: "samples/s", digits: 0, scale: 1, better: "higher" },
};
const METRICS = { ...data.metrics, ...TIMES };
const COLUMNS = [
  "ratio_achieved",
  "inference_bytes",
  "auc",
  "auc_loss",
  "log_loss",
  "auc_tail",
  "p50",
  "p99",
  "throughput",
  "train_samples_per_s",
];

// --- numbers ---

const times = (ratio) => `${plain.format(ratio)}×`;
/** Bytes with three digits: `3.77 MB`, below 0.1 MB `64.8 kB`. */
const sized = (bytes) => (bytes < 1e5 ? `${three.format(bytes / 1e3)} kB` : `${three.format(bytes / 1e6)} MB`);
const three = new Intl.NumberFormat("en", { minimumSignificantDigits: 3, maximumSignificantDigits: 3 });
const formats = {};
function shown(metric, value) {
  if (value == null) return "–";
  if (metric.unit === "MB") return sized(value).replace(" MB", "");
  const format = (formats[metric.digits] ??= new Intl.NumberFormat("en", {
    minimumFractionDigits: metric.digits,
    maximumFractionDigits: metric.digits,
  }));
  return format
    .format(value * metric.scale)
    .replace(/^-(?=[0.]*$)/, "")
    .replace("-", "−");
}
const withInterval = (metric, [mean, half]) =>
  half == null ? shown(metric, mean) : `${shown(metric, mean)} ± ${shown(metric, half)}`;
const axis = (metric) => (metric.unit ? `${metric.label} (${metric.unit})` : metric.label);

/** `[mean, half of the interval]` of a cell; times are those of the chosen batch, on the chosen machine. */
function valueOf(cell, name) {
  if (!(name in TIMES)) return cell.values[name];
  const measured = cell.speed && cell.speed.machine === state.machine && cell.speed.batches[state.batch];
  return [measured ? measured[Object.keys(TIMES).indexOf(name)] : null, null];
}
const number = (cell, name) => valueOf(cell, name)[0];
/** Tell whether any cell of the dataset has such a number. */
const known = (name) => ofDataset().some((cell) => number(cell, name) != null);

const natural = new Intl.Collator("en", { numeric: true }).compare; // dim=4 before dim=16

// --- what is chosen ---

const timed = data.cells.filter((cell) => cell.speed);
const batches = [...new Set(timed.flatMap((cell) => Object.keys(cell.speed.batches)))].sort((a, b) => a - b);
const DEFAULTS = {
  dataset: Object.keys(data.datasets)[0],
  without: "",
  megabytes: "",
  milliseconds: "",
  batch: batches[0] ?? "",
  machine:
    data.machines
      .map((name) => [timed.filter((cell) => cell.speed.machine === name).length, name])
      .sort((a, b) => b[0] - a[0])[0]?.[1] ?? "",
  ratio: "",
  over: "step",
  metric: "auc",
  search: "",
  sort: "ratio",
  down: "",
};
const state = { ...DEFAULTS };

function read() {
  const sent = location.hash.includes("=") ? new URLSearchParams(location.hash.slice(1)) : new URLSearchParams();
  for (const name in DEFAULTS) state[name] = sent.get(name) ?? DEFAULTS[name];
  if (!(state.dataset in data.datasets)) state.dataset = DEFAULTS.dataset;
}

function choose(changes) {
  Object.assign(state, changes);
  const kept = Object.entries(state).filter(([name, value]) => value !== DEFAULTS[name]);
  history.replaceState(null, "", kept.length ? `#${new URLSearchParams(kept)}` : location.pathname + location.search);
  show();
}

const hidden = () => new Set(state.without.split(",").filter(Boolean));
const ofDataset = () => data.cells.filter((cell) => cell.dataset === state.dataset);
const visible = () => {
  const out = hidden();
  return ofDataset().filter((cell) => !out.has(cell.method));
};
const named = (cell) => (cell.full ? cell.label : `${cell.label} ${times(cell.called)}`);
const place = (cell) => data.cells.indexOf(cell);
const survivors = ({ seeds: [done, failed] }) => (failed ? ` (${done} of ${done + failed} seeds)` : "");

// --- which method fits ---

/** Tell whether one cell beats another: better on one axis, as good on the other; near sizes and times are equal. */
function beats(a, b, x) {
  const [gain, closer] = [number(b, "auc_loss") - number(a, "auc_loss"), number(a, x) <= data.near[x] * number(b, x)];
  return closer && (gain > 0 || (gain === 0 && number(a, x) < number(b, x)));
}

/** Half of the interval of a cell's loss, where it has the seeds to say something. */
const whisker = (cell) => (cell.seeds[0] >= data.enough ? (valueOf(cell, "auc_loss")[1] ?? 0) : 0);

const front = (cells, x) =>
  cells.filter((cell) => !cells.some((other) => beats(other, cell, x))).sort((a, b) => number(a, x) - number(b, x));

/** The full table and the best reachable score, where they are known, each `at` its place on an axis of AUC. */
function linesAcross(place, metric) {
  const { against, reference, ceiling } = data.datasets[state.dataset];
  const line = (auc, text, kind) => ({ at: place(auc), text, kind, note: shown(metric, place(auc)) });
  const known = reference == null ? [] : [line(reference, against, "")];
  if (ceiling != null) known.push(line(ceiling, "best reachable", "dashed"));
  return known;
}

function pareto(id, x, limit) {
  const lines = data.datasets[state.dataset];
  const cells = visible().filter((cell) => number(cell, "auc_loss") != null && number(cell, x) > 0);
  const ahead = front(cells, x),
    unit = METRICS[x].scale;
  if (!cells.length)
    return say(
      id,
      x === "p99"
        ? `No request was timed on ${state.dataset} at this batch and machine.`
        : "No run of these has finished.",
    );
  const names = ahead.slice(0, ahead.length > 5 ? 4 : 5).map(named),
    more = ahead.length - names.length;
  const caption = `${state.dataset}: the best AUC for ${x === "p99" ? "its time" : "its size"} is that of ${names.join(", ")}${more ? ` and ${more} more` : ""}`;
  const title = x === "p99" ? `${METRICS[x].label} at batch ${plain.format(state.batch)} (ms)` : axis(METRICS[x]);
  draw(id, caption, (width) => {
    const area = { left: 52, right: width - 8, top: 28, bottom: 350 };
    const ends = cells.flatMap((cell) => [-1, 1].map((sign) => number(cell, "auc_loss") + sign * whisker(cell)));
    const sx = scale(
      cells.map((cell) => number(cell, x) * unit),
      [area.left, area.right],
      { log: true, room: 0.08 },
    );
    const limits = linesAcross((auc) => lines.reference - auc, METRICS.auc_loss);
    const sy = scale([...ends, ...near(limits, [...ends, 0]).map((line) => line.at), 0], [area.bottom, area.top], {
      room: 0.1,
    });
    const at = (cell) => [sx(number(cell, x) * unit), sy(number(cell, "auc_loss"))];
    const bar = (cell) => [1, -1].map((sign) => sy(number(cell, "auc_loss") + sign * whisker(cell)));
    let drawn = axes(area, sx, sy, title, `AUC loss against the ${lines.against}`);
    if (limit > 0) {
      const edge = Math.max(area.left, Math.min(area.right, sx(limit)));
      drawn += `<rect class="budget" x="${round(edge)}" y="${area.top}" width="${round(area.right - edge)}" height="${area.bottom - area.top}"/><path class="limit" d="M${round(edge)},${area.top}V${area.bottom}"/>`;
    }
    const taken = cells.flatMap((cell) => {
      const [px, py] = at(cell),
        [high, low] = bar(cell);
      return [
        [px - 6, py - 6, px + 6, py + 6],
        [px - 1, high, px + 1, low],
      ];
    });
    const [crossing, boxes] = across(area, sy, limits, taken);
    drawn += crossing;
    const steps = ahead.slice(1).flatMap((cell, rank) => {
      const [[fromX, fromY], [toX, toY]] = [at(ahead[rank]), at(cell)];
      return [
        [fromX, fromY - 1, toX, fromY + 1],
        [toX - 1, Math.min(fromY, toY), toX + 1, Math.max(fromY, toY)],
      ];
    });
    drawn += `<path class="front" d="${ahead
      .map((cell, rank) => {
        const [px, py] = at(cell);
        return rank ? `H${round(px)}V${round(py)}` : `M${round(px)},${round(py)}`;
      })
      .join("")}"/>`;
    const faded = [...cells].sort((a, b) => ahead.includes(a) - ahead.includes(b));
    for (const cell of faded) {
      const [px, py] = at(cell),
        [high, low] = bar(cell).map(round);
      drawn += point(px, py, place(cell), data.methods[cell.method], {
        title: described(cell, x),
        faded: !ahead.includes(cell),
        whisker: `<path d="M${round(px)},${high}V${low}" stroke="${data.methods[cell.method][0]}" stroke-width="1.6" opacity="0.55"/>`,
        stop: cell === ahead[0],
      });
    }
    const wanted = ahead.filter((cell) => !cell.baseline); // its line is named
    drawn += labels(
      wanted.map((cell) => ({ x: at(cell)[0], y: at(cell)[1], text: named(cell) })),
      [...taken, ...boxes, ...steps],
      area,
    );
    return [drawn, 400];
  });
}

const described = (cell, x) =>
  `${named(cell)}: AUC ${withInterval(METRICS.auc, valueOf(cell, "auc"))}${survivors(cell)}, loss ${shown(METRICS.auc_loss, number(cell, "auc_loss"))}, ${x === "p99" ? `${shown(METRICS.p99, number(cell, x))} ms` : sized(number(cell, x))}`;

function answer() {
  const megabytes = Number(state.megabytes),
    milliseconds = Number(state.milliseconds);
  if (!(megabytes > 0) && !(milliseconds > 0)) return "";
  const within = [
    megabytes > 0 && `${plain.format(megabytes)} MB`,
    milliseconds > 0 && `${plain.format(milliseconds)} ms`,
  ]
    .filter(Boolean)
    .join(" and ");
  const all = visible().filter((cell) => number(cell, "auc") != null);
  const fits = all.filter(
    (cell) =>
      (!(megabytes > 0) || number(cell, "inference_bytes") / 1e6 <= megabytes) &&
      (!(milliseconds > 0) || (number(cell, "p99") ?? Infinity) <= milliseconds),
  );
  if (!fits.length)
    return `Nothing of ${all.length} finished configurations on ${escape(state.dataset)} fits ${within}.`;
  const best = fits.reduce((a, b) => (b.score > a.score ? b : a)); // by validation
  const half = (cell) => valueOf(cell, "auc")[1] ?? 0;
  const near = fits.filter(
    (cell) => cell !== best && number(cell, "auc") + half(cell) >= number(best, "auc") - half(best),
  );
  const rivals = near.length
    ? ` Its 95 % interval overlaps that of ${near.map((cell) => escape(named(cell))).join(", ")}.`
    : "";
  const untimed = milliseconds > 0 ? all.filter((cell) => number(cell, "p99") == null).length : 0;
  const left = untimed ? ` ${untimed} without a time at this batch are left out.` : "";
  return `Best within ${within}: <b><button type="button" class="link" data-cell="${place(best)}">${escape(named(best))}</button></b> with AUC ${withInterval(METRICS.auc, valueOf(best, "auc"))}${survivors(best)}, ${sized(number(best, "inference_bytes"))}${number(best, "p99") == null ? "" : `, ${shown(METRICS.p99, number(best, "p99"))} ms`}.${rivals}${left}`;
}

// --- learning curves ---

/** What others published as the validation AUC of the cells shown. */
function published(cells) {
  const theirs = (cell) =>
    data.published.filter(({ method, ratio }) => method === cell.method && Math.abs(ratio / cell.ratio - 1) < 1e-4);
  return cells.flatMap((cell) =>
    theirs(cell).map(({ auc }) => ({
      at: auc,
      text: `${cell.label}, published`,
      kind: "dotted",
      note: shown(METRICS.auc, auc),
    })),
  );
}

const DASHES = ["", "7 4", "2 3", "9 3 2 3"];

/** Colour and dashes of each cell's line: variants of a method differ in dashes, from the fifth on in shade too. */
function strokes(cells) {
  const seen = {};
  return cells.map(({ method }) => {
    const nth = (seen[method] = (seen[method] ?? -1) + 1);
    const colour = `color-mix(in oklab, ${data.methods[method][0]} ${100 - 20 * Math.floor(nth / 4)}%, var(--ink))`;
    return `style="stroke: ${colour}" stroke-dasharray="${DASHES[nth % 4]}"`;
  });
}

/** Where the names of lines stand: beside the plot at the `heights` of their ends, or in rows below it. */
function keys(names, width, bottom) {
  const needs = names.map((name) => 52 + 6.8 * name.length);
  const right = width - Math.max(...needs);
  if (width > 640 && names.length < 24)
    return { right, below: 0, spots: (heights) => spread(heights, 14, 28, bottom).map((y) => [right + 10, y]) };
  let [left, row] = [0, 0];
  const spots = needs.map((need) => {
    if (left && left + need > width) [left, row] = [0, row + 1];
    left += need;
    return [left - need, bottom + 62 + 20 * row];
  });
  return { right: width - 12, below: 20 * row + 30, spots: () => spots };
}

function learning() {
  const cells = visible().filter(
    (cell) => cell.curve && (cell.full || cell.ratio === Number(state.ratio)),
  );
  if (!cells.length) return say("learning-picture", "No run of these recorded a validation score.");
  const last = (cell) => cell.curve.auc.at(-1);
  const peak = (cell) => Math.max(...cell.curve.auc);
  const small = cells.filter((cell) => !cell.full);
  const best = (small.length ? small : cells).reduce((a, b) => (peak(b) > peak(a) ? b : a));
  const over = { step: "Training steps", seconds: "Time in training (s)", samples: "Training samples" }[state.over];
  const few = cells.length <= 6; // bands of more would cover each other: each shows under the pointer
  const banded = cells.some((cell) => cell.curve.half.some((half) => half != null));
  const edge = (cell, sign) => cell.curve.auc.map((mean, at) => mean + sign * (cell.curve.half[at] ?? 0));
  cells.sort((a, b) => last(b) - last(a));
  draw("learning-picture", `${state.dataset}: ${named(best)} climbs to ${shown(METRICS.auc, peak(best))}`, (width) => {
    const legend = keys(
      cells.map((cell) => cell.label),
      width,
      390,
    );
    const area = { left: 52, right: legend.right, top: 28, bottom: 390 };
    const xs = cells.flatMap((cell) => cell.curve[state.over]);
    const sx = scale([0, ...xs], [area.left, area.right], { room: 0.02 });
    const values = cells.flatMap((cell) => (few ? [...edge(cell, 1), ...edge(cell, -1)] : cell.curve.auc));
    const limits = [...linesAcross((auc) => auc, METRICS.auc).filter((line) => line.kind), ...published(cells)];
    const sy = scale([...values, ...near(limits, values).map((line) => line.at)], [area.bottom, area.top]);
    const dots = (cell) => cell.curve.auc.map((auc, at) => [sx(cell.curve[state.over][at]), sy(auc)]);
    const taken = cells.flatMap(dots).map(([x, y]) => [x - 5, y - 5, x + 5, y + 5]);
    const title = `Validation AUC, mean over seeds${banded && few ? " and 95 % band" : ""}`;
    const spots = legend.spots(cells.map((cell) => sy(last(cell))));
    const looks = strokes(cells);
    const lines = cells.map((cell, rank) => {
      const band = [1, -1].map((sign) => edge(cell, sign).map((auc, at) => [sx(cell.curve[state.over][at]), sy(auc)]));
      return lineOf(cell, dots(cell), [...band[0], ...band[1].reverse()], looks[rank], spots[rank], rank);
    });
    const clip = `<clipPath id="plot"><rect x="${area.left}" y="${area.top}" width="${area.right - area.left}" height="${area.bottom - area.top}"/></clipPath>`;
    const drawn = axes(area, sx, sy, over, title) + across(area, sy, limits, taken)[0];
    return [`${clip}${drawn}<g class="${few ? "few" : ""}">${lines.join("")}</g>`, 440 + legend.below];
  });
}

/** One cell's line: its band, its curve with the method's marker, its name; the pointer on any of these lifts all. */
function lineOf(cell, dots, band, stroke, [left, height], rank) {
  const look = data.methods[cell.method],
    path = (points) => `M${points.map(([x, y]) => `${round(x)},${round(y)}`).join("L")}`;
  const every = Math.ceil(dots.length / 6),
    marks = dots.slice(0, -1).filter((_, at) => (at + rank) % every === 0);
  const title = `${named(cell)}: validation AUC ${shown(METRICS.auc, cell.curve.auc.at(-1))} at the end`;
  const small = ([x, y]) => mark(look, ` transform="translate(${round(x)},${round(y)}) scale(0.7)"`);
  return `<g class="line"><path class="band" clip-path="url(#plot)" fill="${look[0]}" d="${path(band)}Z"/><path class="curve" ${stroke} d="${path(dots)}"/><path class="grip" d="${path(dots)}"/>${marks.map(small).join("")}${point(...dots.at(-1), place(cell), look, { title, stop: rank === 0 })}<g transform="translate(${round(left)},${round(height)})"><rect class="grip" x="-4" y="-7" width="${round(46 + 6.8 * cell.label.length)}" height="14"/><path class="curve" ${stroke} d="M0,0H26"/>${mark(look, ' transform="translate(13,0)"')}<text class="named" x="32" y="4">${escape(cell.label)}</text></g></g>`;
}

// --- method × ratio ---

function map() {
  const cells = visible(),
    metric = METRICS[state.metric];
  const ratios = [...new Set(cells.map((cell) => cell.ratio))].sort((a, b) => a - b);
  const rows = [...new Set(cells.map((cell) => cell.label))].sort(
    (a, b) => b.startsWith("full") - a.startsWith("full") || natural(a, b),
  );
  const values = cells.map((cell) => number(cell, state.metric)).filter((value) => value != null);
  const low = Math.min(...values),
    high = Math.max(...values);
  const count = (...statuses) => cells.filter((cell) => statuses.includes(cell.status)).length;
  const done = count("done"),
    out = count("infeasible"),
    lost = cells.length - done - out;
  const head = `<thead><tr><td></td>${ratios.map((ratio) => `<th scope="col">${times(ratio)}</th>`).join("")}</tr></thead>`;
  const body = rows.map((label) => {
    const own = cells.filter((cell) => cell.label === label);
    return `<tr><th scope="row">${escape(label)}</th>${ratios
      .map(
        (ratio) =>
          `<td>${mapped(
            own.find((cell) => cell.ratio === ratio),
            metric,
            low,
            high,
          )}</td>`,
      )
      .join("")}</tr>`;
  });
  $("map-picture").closest("figure").querySelector("figcaption").textContent =
    `${state.dataset}: ${done} of ${cells.length} configurations finished${out ? `, ${out} infeasible` : ""}${lost ? `, ${lost} failed` : ""}; a column is the compression requested`;
  $("map-picture").innerHTML = `<table class="cells">${head}<tbody>${body.join("")}</tbody></table>`;
}

function mapped(cell, metric, low, high) {
  if (!cell) return "";
  const open = (kind, style = "") =>
    `<button type="button" class="${kind}" data-cell="${place(cell)}" title="${escape(cell.reason || named(cell))}"${style}>`;
  if (cell.status === "infeasible") return `${open("infeasible")}<span>infeasible</span></button>`;
  if (cell.status !== "done")
    return `${open("lost")}✕ ${escape(cell.status)}<small>${escape(cell.reason)}</small></button>`;
  const [mean, half] = valueOf(cell, state.metric),
    [seeds, failed, infeasible] = cell.seeds;
  const share =
    mean == null ? 0 : high > low ? (metric.better === "lower" ? high - mean : mean - low) / (high - low) : 0.5;
  const style =
    mean == null
      ? ""
      : ` style="background: color-mix(in oklab, var(--heat) ${Math.round(8 + 62 * share)}%, var(--paper))"`;
  const lost = failed + infeasible ? `, ✕ ${failed + infeasible}` : "";
  return `${open(failed ? "part" : "", style)}${withInterval(metric, [mean, null])}<small>${half == null ? "" : `± ${shown(metric, half)}, `}${seeds} seed${seeds === 1 ? "" : "s"}${lost}</small></button>`;
}

// --- the numbers ---

const SORTS = { method: (cell) => cell.label, ratio: (cell) => cell.ratio };
const sortKey = (cell, name) => (SORTS[name] ? SORTS[name](cell) : number(cell, name));

function order(a, b) {
  const [x, y] = [sortKey(a, state.sort), sortKey(b, state.sort)];
  if (x == null || y == null) return (x == null) - (y == null);
  const up = typeof x === "string" ? natural(x, y) : x - y;
  return (state.down ? -up : up) || a.ratio - b.ratio || natural(a.label, b.label);
}

const rowText = (cell) =>
  [cell.label, times(cell.ratio), `${cell.ratio}×`, cell.status, cell.reason].join(" ").toLowerCase();

function numbers() {
  const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
  const all = visible(),
    rows = all.filter((cell) => words.every((word) => rowText(cell).includes(word))).sort(order);
  const columns = COLUMNS.filter(known);
  const heads = [
    ["method", "Method", ""],
    ["ratio", "Compression requested", "×"],
    ...columns.map((name) => [name, METRICS[name].label, METRICS[name].unit]),
  ];
  $("numbers").tHead.innerHTML =
    `<tr>${heads.map(([name, label, unit]) => `<th scope="col"${state.sort === name ? ` aria-sort="${state.down ? "descending" : "ascending"}"` : ""}><button type="button" data-sort="${name}">${label}${unit ? `<small>${unit}</small>` : ""}</button></th>`).join("")}</tr>`;
  $("numbers").tBodies[0].innerHTML = rows
    .map(
      (cell) =>
        `<tr><td><button type="button" data-cell="${place(cell)}">${swatch(data.methods[cell.method])}${escape(cell.label)}</button></td><td>${times(cell.ratio)}</td>${rowCells(cell, columns)}</tr>`,
    )
    .join("");
  $("count").textContent =
    `${rows.length} of ${all.length} configurations${state.batch ? `; latency at batch ${plain.format(state.batch)}` : ""}`;
}

function rowCells(cell, columns) {
  if (cell.status !== "done")
    return `<td class="reason" colspan="${columns.length}"><span class="status ${cell.status}">${cell.status}</span> ${escape(cell.reason)}</td>`;
  return columns
    .map((name) => {
      const first = name === "auc" && cell.best;
      const rival = name === "auc" && !first && cell.method !== "full";
      const tie = !rival ? "" : cell.tied == null ? " ?" : cell.tied ? " ≈" : "";
      return `<td${first ? ' class="best"' : ""}>${withInterval(METRICS[name], valueOf(cell, name))}${tie}${name === "auc" ? survivors(cell) : ""}</td>`;
    })
    .join("");
}

// --- a cell, and all runs ---

function runTable(runs) {
  const rows = runs.map(
    (run) =>
      `<tr><td><code>${escape(run.run)}</code></td><td><span class="status ${run.status}">${run.status}</span></td><td class="number">${shown(METRICS.auc, run.auc)}</td><td class="number">${shown(METRICS.seconds, run.seconds)}</td><td>${Object.entries(
        run.links,
      )
        .map(([name, link]) => `<a href="${escape(link)}">${name}</a>`)
        .join("")}</td><td class="reason">${escape(run.reason)}</td></tr>`,
  );
  return `<div class="scroll" role="group" aria-label="Runs" tabindex="0"><table class="runs"><thead><tr><th>Run</th><th>Status</th><th class="number">AUC</th><th class="number">Seconds</th><th>Files</th><th>Reason</th></tr></thead><tbody>${rows.join("")}</tbody></table></div>`;
}

function openCell(at) {
  const cell = data.cells[at];
  const facts = Object.keys(METRICS)
    .filter((name) => number(cell, name) != null)
    .map(
      (name) =>
        `<div><dt>${axis(METRICS[name])}</dt><dd>${withInterval(METRICS[name], valueOf(cell, name))}</dd></div>`,
    );
  $("cell").innerHTML =
    `<form method="dialog"><button class="link" autofocus>Close</button></form><h3 id="cell-title">${swatch(data.methods[cell.method])} ${escape(named(cell))} on ${escape(cell.dataset)}</h3><p class="muted">${escape(cell.reason)}</p><dl>${facts.join("")}</dl>${runTable(data.runs.filter((run) => run.cell === at))}`;
  $("cell").showModal();
}

/** How runs ended, by kind: `9 of 15 runs done, 6 infeasible; 12 of 20 searches done, 8 infeasible`. */
function counted(runs) {
  const kinds = { quality: "run", search: "search", timed: "timing" };
  return Object.entries(kinds)
    .map(([kind, name]) => [name, runs.filter((run) => run.kind === kind)])
    .filter(([, own]) => own.length)
    .map(([name, own]) => {
      const ended = {};
      for (const { status } of own) ended[status] = (ended[status] ?? 0) + 1;
      const { done = 0, ...others } = ended;
      const names = own.length === 1 ? name : name === "search" ? "searches" : `${name}s`;
      const rest = Object.entries(others).map(([how, n]) => `${n} ${how}`);
      return [`${done} of ${own.length} ${names} done`, ...rest].join(", ");
    })
    .join("; ");
}

function groups() {
  const found = {};
  for (const run of data.runs) (found[`${run.dataset} · ${run.method}`] ??= []).push(run);
  $("groups").innerHTML = Object.keys(found)
    .sort()
    .map((name) => {
      const runs = found[name];
      return `<details data-group="${escape(name)}"><summary>${swatch(data.methods[runs[0].method])}${escape(name)}<span>${counted(runs)}</span></summary></details>`;
    })
    .join("");
  $("groups").addEventListener(
    "toggle",
    ({ target }) => {
      if (target.open && !target.querySelector("table"))
        target.insertAdjacentHTML("beforeend", runTable(found[target.dataset.group]));
    },
    true,
  );
}

// --- controls ---

const option = (value, text, chosen) =>
  `<option value="${escape(value)}"${String(value) === chosen ? " selected" : ""}>${escape(text)}</option>`;

function controls() {
  const out = hidden(),
    used = new Set(ofDataset().map((cell) => cell.method));
  $("datasets").innerHTML = `<legend>Dataset</legend>${Object.keys(data.datasets)
    .map(
      (name) =>
        `<label><input type="radio" name="dataset" value="${escape(name)}"${name === state.dataset ? " checked" : ""}>${escape(name)}</label>`,
    )
    .join("")}`;
  $("methods").innerHTML = `<legend>Methods</legend>${NAMES.filter((name) => used.has(name))
    .map(
      (name) =>
        `<label><input type="checkbox" name="method" value="${escape(name)}"${out.has(name) ? "" : " checked"}>${swatch(data.methods[name])}${escape(name)}</label>`,
    )
    .join(
      "",
    )}<button type="button" class="link" data-methods="all">all</button><button type="button" class="link" data-methods="none">none</button>`;
  const ratios = [
    ...new Set(
      ofDataset()
        .filter((cell) => !cell.full && cell.curve)
        .map((cell) => cell.ratio),
    ),
  ].sort((a, b) => a - b);
  if (!ratios.includes(Number(state.ratio))) state.ratio = String(ratios[0] ?? "");
  $("ratio").innerHTML =
    ratios.map((ratio) => option(ratio, times(ratio), state.ratio)).join("") || option("", "–", "");
  $("batch").innerHTML =
    batches.map((batch) => option(batch, plain.format(batch), state.batch)).join("") || option("", "–", "");
  $("machine").innerHTML = data.machines.map((name) => option(name, name, state.machine)).join("");
  $("timed-on").hidden = data.machines.length < 2;
  $("metric").innerHTML = Object.keys(METRICS)
    .filter((name) => METRICS[name].better && known(name))
    .map((name) => option(name, axis(METRICS[name]), state.metric))
    .join("");
  for (const name of ["megabytes", "milliseconds", "search", "over"])
    if ($(name).value !== state[name]) $(name).value = state[name];
}

function show() {
  const focus = document.activeElement,
    again =
      focus?.name && focus.closest("#view")
        ? `#view [name="${focus.name}"][value="${CSS.escape(focus.value)}"]`
        : focus?.dataset?.sort
          ? `[data-sort="${focus.dataset.sort}"]`
          : "";
  controls();
  $("answer").innerHTML = answer();
  pareto("bytes-picture", "inference_bytes", Number(state.megabytes));
  if (timed.length) pareto("latency-picture", "p99", Number(state.milliseconds));
  learning();
  map();
  numbers();
  if (again) document.querySelector(again)?.focus();
}

for (const name of ["megabytes", "milliseconds", "search"])
  $(name).addEventListener("input", () => choose({ [name]: $(name).value }));
for (const name of ["batch", "machine", "ratio", "over", "metric"])
  $(name).addEventListener("change", () => choose({ [name]: $(name).value }));
document.addEventListener("submit", (event) => event.target.method !== "dialog" && event.preventDefault());
$("view").addEventListener("change", ({ target }) => {
  if (target.name === "dataset") return choose({ dataset: target.value });
  const out = hidden();
  out[target.checked ? "delete" : "add"](target.value);
  choose({ without: [...out].join(",") });
});
document.addEventListener("click", (event) => {
  const target = event.target.closest("[data-cell], [data-sort], [data-methods]");
  if (!target) return;
  if (target.dataset.cell) openCell(Number(target.dataset.cell));
  if (target.dataset.methods) choose({ without: target.dataset.methods === "all" ? "" : NAMES.join(",") });
  if (target.dataset.sort)
    choose({ sort: target.dataset.sort, down: state.sort === target.dataset.sort && !state.down ? "1" : "" });
});
document.addEventListener("keydown", (event) => {
  const here = event.target.closest("svg .point");
  if (!here) return;
  const points = [...here.closest("svg").querySelectorAll(".point")];
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (step) points.at((points.indexOf(here) + step) % points.length).focus();
  else if (event.key === "Enter" || event.key === " ") openCell(Number(here.dataset.cell));
  else return;
  event.preventDefault();
});
window.addEventListener("hashchange", () => {
  if (location.hash.includes("=")) {
    read();
    show();
  }
});
for (const id of ["time-limit", "latency"]) $(id).hidden = !timed.length;
$("untimed").hidden = timed.length > 0;
if (data.cells.length) window.addEventListener("resize", show);
groups();
if (data.cells.length) {
  read();
  show();
} else for (const id of ["view", "choose", "learning", "map", "table"]) $(id).hidden = true; // a search that still runs
