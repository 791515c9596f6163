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
const formats = {};
function shown(metric, value) {
  if (value == null) return "–";
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
const named = (cell) => (cell.method === "full" ? cell.label : `${cell.label} ${times(cell.ratio)}`);
const place = (cell) => data.cells.indexOf(cell);
const survivors = ({ seeds: [done, failed] }) => (failed ? ` (${done} of ${done + failed} seeds)` : "");

// --- which method fits ---

/** Tell whether one cell beats another: better on one axis, at least as good on both, within 1 % of size or time. */
function beats(a, b, x) {
  const [gain, closer] = [number(b, "auc_loss") - number(a, "auc_loss"), number(a, x) <= 1.01 * number(b, x)];
  return closer && (gain > 0 || (gain === 0 && number(a, x) < number(b, x)));
}

const front = (cells, x) =>
  cells.filter((cell) => !cells.some((other) => beats(other, cell, x))).sort((a, b) => number(a, x) - number(b, x));

/** The full table, the best reachable and published scores, where they are known, each `at` its place on an axis of AUC. */
function linesAcross(place, metric) {
  const { against, reference, ceiling, published } = data.datasets[state.dataset];
  const line = (auc, text, kind) => ({ at: place(auc), text, kind, note: shown(metric, place(auc)) });
  const known = reference == null ? [] : [line(reference, against, "")];
  if (ceiling != null) known.push(line(ceiling, "best reachable", "dashed"));
  return [...known, ...published.map((figure) => line(figure.auc, figure.label, "dotted"))];
}

function pareto(id, x, limit) {
  const lines = data.datasets[state.dataset];
  const cells = visible().filter((cell) => number(cell, "auc_loss") != null && number(cell, x) > 0);
  const ahead = front(cells, x),
    unit = METRICS[x].scale;
  if (!cells.length)
    return draw(id, `Nothing to show: no ${METRICS[x].label.toLowerCase()} of a finished run`, 20, () => "");
  const names = ahead.slice(0, ahead.length > 5 ? 4 : 5).map(named),
    more = ahead.length - names.length;
  const caption = `${state.dataset}: the best AUC for ${x === "p99" ? "its time" : "its size"} is that of ${names.join(", ")}${more ? ` and ${more} more` : ""}`;
  const title = x === "p99" ? `${METRICS[x].label} at batch ${plain.format(state.batch)} (ms)` : axis(METRICS[x]);
  draw(id, caption, 400, (width) => {
    const area = { left: 52, right: width - 8, top: 28, bottom: 350 };
    const ends = cells.flatMap((cell) => {
      const [mean, half] = valueOf(cell, "auc_loss");
      return [mean - (half ?? 0), mean + (half ?? 0)];
    });
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
    let drawn = axes(area, sx, sy, title, `AUC loss against the ${lines.against}`);
    if (limit > 0) {
      const edge = Math.max(area.left, Math.min(area.right, sx(limit)));
      drawn += `<rect class="budget" x="${round(edge)}" y="${area.top}" width="${round(area.right - edge)}" height="${area.bottom - area.top}"/><path class="limit" d="M${round(edge)},${area.top}V${area.bottom}"/>`;
    }
    const [crossing, boxes] = across(area, sy, limits);
    drawn += crossing;
    drawn += `<path class="front" d="${ahead
      .map((cell, rank) => {
        const [px, py] = at(cell);
        return rank ? `H${round(px)}V${round(py)}` : `M${round(px)},${round(py)}`;
      })
      .join("")}"/>`;
    const faded = [...cells].sort((a, b) => ahead.includes(a) - ahead.includes(b));
    for (const cell of faded) {
      const [px, py] = at(cell),
        [mean, half] = valueOf(cell, "auc_loss");
      const whisker =
        half == null
          ? ""
          : `<path d="M${round(px)},${round(sy(mean - half))}V${round(sy(mean + half))}" stroke="${data.methods[cell.method][0]}" stroke-width="1.6" opacity="0.55"/>`;
      drawn += point(px, py, place(cell), data.methods[cell.method], {
        title: described(cell, x),
        faded: !ahead.includes(cell),
        whisker,
        stop: cell === ahead[0],
      });
    }
    const taken = cells.map((cell) => {
      const [px, py] = at(cell);
      return [px - 6, py - 6, px + 6, py + 6];
    });
    const wanted = ahead.filter((cell) => cell.method !== "full"); // its line is named
    return (
      drawn +
      labels(
        wanted.map((cell) => ({ x: at(cell)[0], y: at(cell)[1], text: named(cell) })),
        [...taken, ...boxes],
        area,
      )
    );
  });
}

const described = (cell, x) =>
  `${named(cell)}: AUC ${withInterval(METRICS.auc, valueOf(cell, "auc"))}${survivors(cell)}, loss ${shown(METRICS.auc_loss, number(cell, "auc_loss"))}, ${shown(METRICS[x], number(cell, x))} ${METRICS[x].unit}`;

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
  const best = fits.reduce((a, b) => (number(b, "auc") > number(a, "auc") ? b : a));
  const half = (cell) => valueOf(cell, "auc")[1] ?? 0;
  const near = fits.filter(
    (cell) => cell !== best && number(cell, "auc") + half(cell) >= number(best, "auc") - half(best),
  );
  const rivals = near.length
    ? ` Its 95 % interval overlaps that of ${near.map((cell) => escape(named(cell))).join(", ")}.`
    : "";
  const untimed = milliseconds > 0 ? all.filter((cell) => number(cell, "p99") == null).length : 0;
  const left = untimed ? ` ${untimed} without a time at this batch are left out.` : "";
  return `Best within ${within}: <b><button type="button" class="link" data-cell="${place(best)}">${escape(named(best))}</button></b> with AUC ${withInterval(METRICS.auc, valueOf(best, "auc"))}${survivors(best)}, ${shown(METRICS.inference_bytes, number(best, "inference_bytes"))} MB${number(best, "p99") == null ? "" : `, ${shown(METRICS.p99, number(best, "p99"))} ms`}.${rivals}${left}`;
}

// --- learning curves ---

function learning() {
  const cells = visible().filter(
    (cell) => cell.curve && (cell.method === "full" || cell.ratio === Number(state.ratio)),
  );
  if (!cells.length)
    return draw("learning-picture", "Nothing to show: no run here recorded a validation score", 20, () => "");
  const peak = (cell) => Math.max(...cell.curve.auc);
  const small = cells.filter((cell) => cell.method !== "full");
  const best = (small.length ? small : cells).reduce((a, b) => (peak(b) > peak(a) ? b : a));
  const over = { step: "Training steps", seconds: "Time in training (s)", samples: "Training samples" }[state.over];
  draw(
    "learning-picture",
    `${state.dataset}: ${named(best)} climbs to ${shown(METRICS.auc, peak(best))}`,
    440,
    (width) => {
      const room = width > 640 && cells.length * 14 < 340;
      const longest = Math.max(...cells.map((cell) => cell.label.length));
      const area = { left: 52, right: width - (room ? 32 + 6.8 * longest : 12), top: 28, bottom: 390 };
      const xs = cells.flatMap((cell) => cell.curve[state.over]);
      const edge = (cell, sign) => cell.curve.auc.map((mean, at) => mean + sign * (cell.curve.half[at] ?? 0));
      const sx = scale([0, ...xs], [area.left, area.right], { room: 0.02 });
      const edges = cells.flatMap((cell) => [...edge(cell, 1), ...edge(cell, -1)]);
      const limits = linesAcross((auc) => auc, METRICS.auc).filter((line) => line.kind);
      const sy = scale([...edges, ...near(limits, edges).map((line) => line.at)], [area.bottom, area.top]);
      let drawn = axes(area, sx, sy, over, "Validation AUC, mean and 95 % band");
      drawn += across(area, sy, limits)[0];
      const seen = {};
      const heights = spread(
        cells.map((cell) => sy(cell.curve.auc.at(-1))),
        14,
        area.top,
        area.bottom,
      );
      cells.forEach((cell, rank) => {
        const [colour] = data.methods[cell.method],
          xs = cell.curve[state.over].map(sx);
        const trace = (values) => values.map((value, at) => `${round(xs[at])},${round(sy(value))}`);
        const dash = ["", "7 4", "2 3", "9 3 2 3"][(seen[cell.method] = (seen[cell.method] ?? -1) + 1) % 4];
        drawn += `<path class="band" fill="${colour}" d="M${[...trace(edge(cell, 1)), ...trace(edge(cell, -1)).reverse()].join("L")}Z"/>`;
        drawn += `<path class="curve" stroke="${colour}" stroke-dasharray="${dash}" d="M${trace(cell.curve.auc).join("L")}"/>`;
        const title = `${named(cell)}: validation AUC ${shown(METRICS.auc, cell.curve.auc.at(-1))} at the end`;
        drawn += point(xs.at(-1), sy(cell.curve.auc.at(-1)), place(cell), data.methods[cell.method], {
          title,
          stop: rank === 0,
        });
        if (room)
          drawn += `<g transform="translate(${round(area.right + 16)},${round(heights[rank])})">${mark(data.methods[cell.method])}<text class="named" x="9" y="4">${escape(cell.label)}</text></g>`;
      });
      return drawn;
    },
  );
}

// --- method × ratio ---

function map() {
  const cells = visible(),
    metric = METRICS[state.metric];
  const ratios = [...new Set(cells.map((cell) => cell.ratio))].sort((a, b) => a - b);
  const rows = [...new Set(cells.map((cell) => cell.label))].sort(
    (a, b) => b.startsWith("full") - a.startsWith("full") || a.localeCompare(b),
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
  const up = typeof x === "string" ? x.localeCompare(y) : x - y;
  return (state.down ? -up : up) || a.ratio - b.ratio || a.label.localeCompare(b.label);
}

const rowText = (cell) =>
  [cell.label, times(cell.ratio), `${cell.ratio}×`, cell.status, cell.reason].join(" ").toLowerCase();

function numbers() {
  const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
  const all = visible(),
    rows = all.filter((cell) => words.every((word) => rowText(cell).includes(word))).sort(order);
  const heads = [
    ["method", "Method", ""],
    ["ratio", "Compression requested", "×"],
    ...COLUMNS.map((name) => [name, METRICS[name].label, METRICS[name].unit]),
  ];
  $("numbers").tHead.innerHTML =
    `<tr>${heads.map(([name, label, unit]) => `<th scope="col"${state.sort === name ? ` aria-sort="${state.down ? "descending" : "ascending"}"` : ""}><button type="button" data-sort="${name}">${label}${unit ? `<small>${unit}</small>` : ""}</button></th>`).join("")}</tr>`;
  const best = {};
  for (const cell of ofDataset())
    // hidden ones too: who is tied was tested against the best of all
    if (cell.method !== "full" && number(cell, "auc") > (best[cell.ratio] ?? -1))
      best[cell.ratio] = number(cell, "auc");
  $("numbers").tBodies[0].innerHTML = rows
    .map(
      (cell) =>
        `<tr><td><button type="button" data-cell="${place(cell)}">${swatch(data.methods[cell.method])}${escape(cell.label)}</button></td><td>${times(cell.ratio)}</td>${rowCells(cell, best)}</tr>`,
    )
    .join("");
  $("count").textContent =
    `${rows.length} of ${all.length} configurations${state.batch ? `; latency at batch ${plain.format(state.batch)}` : ""}`;
}

function rowCells(cell, best) {
  if (cell.status !== "done")
    return `<td class="reason" colspan="${COLUMNS.length}"><span class="status ${cell.status}">${cell.status}</span> ${escape(cell.reason)}</td>`;
  return COLUMNS.map((name) => {
    const first = name === "auc" && cell.method !== "full" && number(cell, name) === best[cell.ratio];
    const tie =
      name === "auc" && cell.method !== "full" && !first ? (cell.tied == null ? " ?" : cell.tied ? " ≈" : "") : "";
    return `<td${first ? ' class="best"' : ""}>${withInterval(METRICS[name], valueOf(cell, name))}${tie}${name === "auc" ? survivors(cell) : ""}</td>`;
  }).join("");
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

function groups() {
  const found = {};
  for (const run of data.runs) (found[`${run.dataset} · ${run.method}`] ??= []).push(run);
  $("groups").innerHTML = Object.keys(found)
    .sort()
    .map((name) => {
      const runs = found[name],
        done = runs.filter((run) => run.status === "done").length,
        look = data.methods[runs[0].method];
      return `<details data-group="${escape(name)}"><summary>${look ? swatch(look) : ""}${escape(name)}<span>${done} of ${runs.length} done</span></summary></details>`;
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
        .filter((cell) => cell.method !== "full" && cell.curve)
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
    .filter((name) => METRICS[name].better)
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
  pareto("latency-picture", "p99", Number(state.milliseconds));
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
if (data.cells.length) window.addEventListener("resize", show);
groups();
if (data.cells.length) {
  read();
  show();
} else for (const id of ["view", "choose", "learning", "map", "table"]) $(id).hidden = true; // a search that still runs
