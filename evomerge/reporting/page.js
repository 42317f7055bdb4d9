"use strict";
// Draws the report. Text of the run reaches the page only through textContent or escaped().

const report = JSON.parse(document.getElementById("report").textContent);
const element = (id) => document.getElementById(id);
const trials = new Map(report.trials.map((trial) => [trial.name, trial]));
const MEAN = report.objectives.length; // position of the mean behind the objectives
const config = {
  responsive: true,
  displaylogo: false,
  // plotly.js offers to upload charts to its makers by default
  showSendToCloud: false,
  plotlyServerURL: "",
  displayModeBar: "hover",
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
};
const state = { x: "0", y: "1", colour: String(MEAN), split: "search", selected: null };

const escaped = (text) =>
  String(text).replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]);

const colours = () => {
  const style = getComputedStyle(document.documentElement);
  return new Proxy({}, { get: (_, name) => style.getPropertyValue(`--${name}`).trim() });
};

// readable on white and on black alike
const SCALE = [[0, "#6741d9"], [0.35, "#2b8ac6"], [0.65, "#20a67a"], [1, "#f0b400"]];

function scoreText(triple) {
  if (!triple) return "–";
  const size = Math.abs(triple[0]);
  const decimals = size < 10 ? 3 : size < 100 ? 2 : 1;
  return `${triple[0].toFixed(decimals)} ±${triple[1].toFixed(decimals)}`;
}

// What an axis shows: a position among the objectives, the mean, or the generation.
function axisTitle(axis) {
  if (axis === "generation") return "generation";
  if (axis === "evaluation") return "order of evaluation";
  if (Number(axis) === MEAN) return "mean of objectives";
  const objective = report.objectives[axis];
  return `${objective.name} (${objective.minimized ? "less" : "more"} is better)`;
}

function axisValue(trial, axis) {
  if (axis === "generation") return trial.generation;
  const scores = trial[state.split];
  return scores ? scores[axis][0] : null;
}

function axisError(trial, axis) {
  return axis === "generation" ? 0 : trial[state.split][axis][1];
}

function layout(c, more) {
  const axis = { gridcolor: c.grid, linecolor: c.line, zeroline: false, automargin: true };
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: c.ink, size: 12, family: getComputedStyle(document.body).fontFamily },
    margin: { l: 56, r: 12, t: 30, b: 48 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: c.dominated, activecolor: c.ink },
    hovermode: "closest",
    hoverlabel: { bgcolor: c.card, bordercolor: c.line, font: { color: c.ink }, align: "left" },
    showlegend: false,
    ...more,
    xaxis: { ...axis, ...more.xaxis },
    yaxis: { ...axis, ...more.yaxis },
  };
}

function knobsOf(trial) {
  return Object.entries(trial.knobs).map(([knob, value]) => `${knob} ${value}`);
}

function hoverText(trial) {
  const lines = [`<b>${escaped(trial.title)}</b> · ${escaped(trial.operator)}`];
  if (knobsOf(trial).length) lines.push(escaped(knobsOf(trial).join(" · ")));
  [...report.objectives.map((o) => o.name), "mean"].forEach((name, i) => {
    const again = trial.held_out ? ` · held-out ${scoreText(trial.held_out[i])}` : "";
    lines.push(`${escaped(name)} <b>${scoreText(trial.search && trial.search[i])}</b>${again}`);
  });
  if (trial.search) {
    const counts = report.objectives.map((_, i) => trial.search[i][2]);
    lines.push(`${trial.partial ? "a part of the search items" : "search items"}: ${counts.join(", ")}`);
  }
  lines.push("mean coefficients");
  trial.experts.forEach((expert, k) => lines.push(`   ${escaped(expert)} ${trial.means[k].toFixed(3)}`));
  return lines.join("<br>");
}

function points(list, more) {
  const bars = (axis, c) => ({
    type: "data",
    array: list.map((t) => axisError(t, axis)),
    visible: element("errors").checked && axis !== "generation",
    thickness: 1,
    width: 0,
    color: c,
  });
  const c = colours();
  return {
    type: "scatter",
    mode: "markers",
    x: list.map((t) => axisValue(t, state.x)),
    y: list.map((t) => axisValue(t, state.y)),
    customdata: list.map((t) => t.name),
    text: list.map(hoverText),
    hovertemplate: "%{text}<extra></extra>",
    ...(more.bars ? { error_x: bars(state.x, c.dominated), error_y: bars(state.y, c.dominated) } : {}),
    ...more,
  };
}

// Scores from a part of the items are hollow and smaller.
const isPartial = (trial) => trial.partial && state.split === "search";
const symbols = (list, symbol) => list.map((t) => (isPartial(t) ? `${symbol}-open` : symbol));
const sizes = (list, size) => list.map((t) => (isPartial(t) ? 0.7 * size : size));

function frontTraces() {
  const c = colours();
  const shown = report.trials.filter(
    (t) => axisValue(t, state.x) !== null && axisValue(t, state.y) !== null && t[state.split],
  );
  const candidates = shown.filter((t) => t.front && !t.baseline);
  const baselines = shown.filter((t) => t.baseline);
  const dominated = element("dominated").checked ? shown.filter((t) => !t.front && !t.baseline) : [];
  const values = [...candidates, ...dominated].map((t) => axisValue(t, state.colour));
  const low = Math.min(...values);
  const high = Math.max(...values);
  const colour = {
    colorscale: SCALE,
    cmin: values.length ? low : 0,
    cmax: values.length ? (high > low ? high : low + 1) : 1,
  };
  const of = (list) => list.map((t) => axisValue(t, state.colour));
  const selected = shown.filter((t) => t.name === state.selected);
  return [
    points(dominated, {
      name: "dominated",
      marker: {
        ...colour,
        color: of(dominated),
        size: sizes(dominated, 5.5),
        symbol: symbols(dominated, "circle"),
        opacity: 0.4,
      },
    }),
    edge(shown.filter((t) => t.front), c),
    points(baselines, {
      name: "baselines",
      bars: true,
      marker: {
        color: c.baseline,
        symbol: symbols(baselines, "diamond"),
        size: sizes(baselines, 10),
        // the outline is all that there is of a hollow one
        line: { color: baselines.map((t) => (isPartial(t) ? c.baseline : c.card)), width: baselines.map((t) => (isPartial(t) ? 1.5 : 1)) },
      },
    }),
    points(candidates, {
      name: "front",
      bars: true,
      marker: {
        ...colour,
        color: of(candidates),
        size: sizes(candidates, 12),
        symbol: symbols(candidates, "circle"),
        line: candidates.some(isPartial) ? { width: 2 } : { color: c.card, width: 1 },
        colorbar: {
          title: { text: escaped(axisTitle(state.colour)), side: "right" },
          thickness: 10,
          outlinewidth: 0,
        },
      },
    }),
    {
      ...points(selected, {
        name: "selected",
        marker: { symbol: "circle-open", size: 20, color: c.ink, line: { width: 2 } },
      }),
      hoverinfo: "skip",
      hovertemplate: null,
    },
  ];
}

// The border of what the front dominates in the plane that is shown.
function edge(front, c) {
  const sign = (axis) => (report.objectives[axis] && report.objectives[axis].minimized ? -1 : 1);
  const scores = ["generation"].every((axis) => state.x !== axis && state.y !== axis);
  const corners = [];
  if (scores && state.x !== state.y) {
    const sorted = front
      .map((t) => [axisValue(t, state.x), axisValue(t, state.y)])
      .sort((a, b) => sign(state.x) * (b[0] - a[0]) || sign(state.y) * (b[1] - a[1]));
    for (const point of sorted) {
      const last = corners[corners.length - 1];
      if (!last || sign(state.y) * (point[1] - last[1]) > 0) corners.push(point);
    }
  }
  return {
    type: "scatter",
    mode: "lines",
    name: "edge",
    x: corners.map((p) => p[0]),
    y: corners.map((p) => p[1]),
    line: { color: c.accent, width: 1.5, shape: "hv" },
    opacity: 0.6,
    hoverinfo: "skip",
  };
}

function drawFront() {
  const c = colours();
  const plot = element("front-plot");
  const traces = frontTraces();
  const drawn = layout(c, {
    xaxis: { title: { text: escaped(axisTitle(state.x)) } },
    yaxis: { title: { text: escaped(axisTitle(state.y)) } },
    uirevision: `${state.x} ${state.y} ${state.split}`,
  });
  return Plotly.react(plot, traces, drawn, config).then(() => {
    labelBaselines(plot);
    const shown = traces[0].x.length + traces[2].x.length + traces[3].x.length;
    const remarks = ["Bars are ± one standard error. Click a point for its recipe."];
    const n_minimized = report.objectives.filter((o) => o.minimized).length;
    if (n_minimized > 0 && n_minimized < MEAN)
      remarks.push("In the mean, objectives of which less is better count negative.");
    if (state.split === "search" && report.trials.some((t) => t.partial))
      remarks.push("Small and hollow: scored on a part of the search items.");
    if (state.split === "held_out") remarks.push(`${shown} trials have held-out scores.`);
    if (report.n_left_out) remarks.push(`${report.n_left_out} dominated trials are not drawn.`);
    if (!shown) remarks.push("No evaluation has finished yet.");
    element("front-remark").textContent = remarks.join(" ");
  });
}

// Names of baselines go where they cover nothing, or away: hovering shows them anyway.
function labelBaselines(plot) {
  const c = colours();
  const { xaxis, yaxis } = plot._fullLayout;
  const pixel = (x, y) => [xaxis.l2p(x), yaxis.l2p(y)];
  const [, , baselines, front] = plot.data;
  const marks = [baselines, front].flatMap((t) => t.x.map((x, i) => pixel(x, t.y[i])));
  const taken = [];
  const annotations = [];
  baselines.x.forEach((x, i) => {
    const title = trials.get(baselines.customdata[i]).title;
    const [px, py] = pixel(x, baselines.y[i]);
    const width = 6.4 * title.length + 6;
    const places = [
      [10, 0, 0, -0.5], [-10, 0, -1, -0.5], [0, -10, -0.5, -1], [0, 10, -0.5, 0],
      [8, -8, 0, -1], [-8, -8, -1, -1], [8, 8, 0, 0], [-8, 8, -1, 0],
    ].map(([dx, dy, ax, ay]) => {
      const left = px + dx + ax * width;
      const top = py + dy + ay * 14;
      const box = [left, top, left + width, top + 14];
      const hits =
        marks.filter(([mx, my]) => mx > left - 4 && mx < box[2] + 4 && my > top - 3 && my < top + 17).length +
        10 * taken.filter((o) => o[0] < box[2] && o[2] > left && o[1] < box[3] && o[3] > top).length +
        (left < 0 || box[2] > xaxis._length || top < 0 || box[3] > yaxis._length ? 10 : 0);
      return { box, hits, dx: dx + (ax + 0.5) * width, dy: dy + (ay + 0.5) * 14 };
    });
    const best = places.reduce((a, b) => (b.hits < a.hits ? b : a));
    if (best.hits >= 3) return;
    taken.push(best.box);
    annotations.push({
      x, y: baselines.y[i], text: escaped(title), showarrow: false, xshift: best.dx, yshift: -best.dy,
      font: { size: 11, color: c.baseline }, bgcolor: `${c.card}b0`, captureevents: false,
    });
  });
  return Plotly.relayout(plot, { annotations });
}

// Volumes of provisional fronts rest on a part of the items and may fall: dotted, and apart.
function drawGrowth() {
  const c = colours();
  const last = report.growth[report.growth.length - 1];
  const provisional = report.growth.slice(0, report.n_provisional);
  const final = report.growth.slice(report.n_provisional);
  if (final.length) final.push([report.n_evaluations, last[1]]);
  else if (last) provisional.push([report.n_evaluations, last[1]]);
  const isPoint = provisional.length > 0 && final.every((p) => p[0] === final[0][0]);
  const trace = (name, list, more) => ({
    type: "scatter",
    mode: "lines",
    name,
    x: list.map((p) => p[0]),
    y: list.map((p) => p[1]),
    line: { color: c.accent, width: 2, shape: "hv" },
    hovertemplate: `${name} %{y:.5g} after %{x} evaluations<extra></extra>`,
    ...more,
  });
  const traces = [
    trace("provisional", provisional, { line: { color: c.muted, width: 1.5, shape: "hv", dash: "dot" } }),
    trace("hypervolume", final, isPoint ? { mode: "markers", marker: { color: c.accent, size: 10 } } : {}),
  ];
  element("growth-remark").textContent = !provisional.length
    ? ""
    : "Dotted: provisional fronts, scored on a part of the items; their volume may fall when more are answered. " +
      (final.length ? `Final, on all items: ${last[1].toPrecision(4)}.` : "There is no final front yet.");
  Plotly.react(
    element("growth-plot"),
    traces,
    layout(c, {
      hovermode: "x",
      xaxis: { title: { text: "evaluations" } },
      yaxis: { title: { text: "hypervolume" } },
    }),
    config,
  );
}

function drawOptimism() {
  const c = colours();
  const place = element("optimism-plots");
  if (!place) return;
  const both = report.trials.filter((t) => t.search && t.held_out);
  // all places before the first drawing: a plot keeps the width that it is drawn with
  report.objectives.forEach((objective, i) => {
    if (!element(`optimism-${i}`)) {
      const plot = document.createElement("div");
      plot.id = `optimism-${i}`;
      plot.className = "plot";
      plot.setAttribute("role", "img");
      plot.setAttribute("aria-label", `Held-out against search scores of ${objective.name}`);
      place.append(plot);
      plot.dataset.fresh = "yes";
    }
  });
  report.objectives.forEach((objective, i) => {
    const plot = element(`optimism-${i}`);
    const bars = (list, split) => ({
      type: "data", array: list.map((t) => t[split][i][1]), thickness: 1, width: 0, color: c.dominated,
    });
    const trace = (list, marker) => ({
      type: "scatter",
      mode: "markers",
      x: list.map((t) => t.search[i][0]),
      y: list.map((t) => t.held_out[i][0]),
      error_x: bars(list, "search"),
      error_y: bars(list, "held_out"),
      customdata: list.map((t) => t.name),
      text: list.map(
        (t) => `<b>${escaped(t.title)}</b><br>search ${scoreText(t.search[i])}<br>held-out ${scoreText(t.held_out[i])}`,
      ),
      hovertemplate: "%{text}<extra></extra>",
      marker: { line: { color: c.card, width: 1 }, ...marker },
    });
    const every = both.flatMap((t) => [t.search[i][0], t.held_out[i][0]]);
    const low = Math.min(...every);
    const high = Math.max(...every);
    const room = (high - low || 1) * 0.08;
    const range = [low - room, high + room];
    Plotly.react(
      plot,
      [
        { type: "scatter", mode: "lines", x: range, y: range, line: { color: c.muted, width: 1, dash: "dot" }, hoverinfo: "skip" },
        trace(both.filter((t) => t.baseline), { color: c.baseline, symbol: "diamond", size: 8 }),
        trace(both.filter((t) => !t.baseline), { color: c.accent, size: 9 }),
      ],
      layout(c, {
        title: { text: escaped(objective.name), font: { size: 13 }, x: 0.02, xanchor: "left" },
        margin: { l: 52, r: 8, t: 34, b: 44 },
        xaxis: { title: { text: "search" }, range: [...range] },
        yaxis: { title: { text: "held-out" }, range: [...range] },
      }),
      { ...config, displayModeBar: false },
    );
    if (plot.dataset.fresh) {
      delete plot.dataset.fresh;
      plot.on("plotly_click", (event) => select(event.points[0].customdata));
    }
  });
}

// Columns of the heat map: what lies before the layers, the layers, what lies after them.
function heatmap(trial, kind) {
  const chosen = report.groups
    .map((group, index) => ({ ...group, index }))
    .filter((group) => kind === "" || group.kind === kind);
  const columns = new Map();
  for (const group of chosen) {
    const label = group.layer === null ? group.kind : String(group.layer);
    if (!columns.has(label)) columns.set(label, []);
    columns.get(label).push(group);
  }
  const rank = (label) => (label === "embed" ? -1 : /^\d+$/.test(label) ? Number(label) : Infinity);
  const labels = [...columns.keys()].sort((a, b) => rank(a) - rank(b) || 0);
  const z = trial.coefficients.map((row) =>
    labels.map((label) => {
      const present = columns.get(label).filter((group) => row[group.index] !== null);
      if (!present.length) return null;
      const weight = present.reduce((sum, group) => sum + Math.max(group.n_parameters, 1), 0);
      return present.reduce((sum, g) => sum + row[g.index] * Math.max(g.n_parameters, 1), 0) / weight;
    }),
  );
  return { labels, z };
}

const largest = report.trials.reduce(
  (most, t) => (t.coefficients || []).reduce((m, row) => row.reduce((n, c) => Math.max(n, Math.abs(c)), m), most),
  0,
);

function drawHeatmap() {
  const plot = element("detail-heatmap");
  const trial = trials.get(state.selected);
  const c = colours();
  if (!trial || !trial.coefficients) {
    Plotly.purge(plot);
    plot.style.height = "0";
    plot.removeAttribute("aria-label");
    element("detail-remark").textContent = trial
      ? "A report of a long run carries the coefficients of its front, its baselines and some others; this trial is not among them."
      : "";
    return;
  }
  const kind = element("detail-kind").value;
  const { labels, z } = heatmap(trial, kind);
  const wide = Math.max(...trial.experts.map((name) => name.length), 0) > 18;
  plot.style.height = `${Math.min(110 + 34 * trial.experts.length, 520)}px`;
  plot.setAttribute(
    "aria-label",
    `Heat map of coefficients. Means: ${trial.experts.map((name, k) => `${name} ${trial.means[k].toFixed(2)}`).join(", ")}`,
  );
  Plotly.react(
    plot,
    [
      {
        type: "heatmap",
        x: labels,
        y: trial.experts.map(escaped),
        z,
        zmid: 0,
        zmin: -(largest || 1),
        zmax: largest || 1,
        colorscale: [[0, c.below], [0.5, c.zero], [1, c.above]],
        xgap: 1,
        ygap: 2,
        texttemplate: labels.length <= 10 ? "%{z:.2f}" : undefined,
        textfont: { size: 11 },
        hovertemplate: "%{y}, %{x}: %{z:.4f}<extra></extra>",
        colorbar: { thickness: 8, outlinewidth: 0, tickfont: { size: 10 } },
      },
    ],
    layout(c, {
      margin: { l: wide ? 150 : 40, r: 0, t: 6, b: 40 },
      xaxis: { type: "category", title: { text: "layer" }, showgrid: false },
      yaxis: { type: "category", autorange: "reversed", showgrid: false },
    }),
    { ...config, displayModeBar: false },
  );
  element("detail-remark").textContent =
    kind === ""
      ? "Mean over the kinds of tensors of a layer, by parameters. 0 leaves the base as it is, 1 adds the whole expert."
      : `Only ${kind}. 0 leaves the base as it is, 1 adds the whole expert.`;
}

function select(name) {
  const trial = trials.get(name);
  if (!trial) return;
  state.selected = name;
  element("detail-title").textContent = trial.title;
  const standing = trial.baseline ? "baseline" : `generation ${trial.generation}`;
  element("detail-recipe").textContent = [
    trial.operator, ...knobsOf(trial), standing, trial.front ? "on the front" : "dominated",
    ...(trial.name === report.knee ? ["knee"] : []), ...(trial.failure ? [trial.failure] : []), trial.digest,
  ].join(" · ");
  const body = element("detail-scores").tBodies[0];
  body.replaceChildren(
    ...[...report.objectives.map((o) => o.name), "mean"].map((label, i) => {
      const row = document.createElement("tr");
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = label;
      const cells = ["search", "held_out"].map((split) => {
        const cell = document.createElement("td");
        cell.textContent = scoreText(trial[split] && trial[split][i]);
        return cell;
      });
      row.append(head, ...cells);
      return row;
    }),
  );
  for (const row of document.querySelectorAll("tr[data-trial]")) {
    if (row.dataset.trial === name) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
  }
  drawHeatmap();
  drawFront();
}

function sortBy(table, column, header) {
  const down = header.getAttribute("aria-sort") !== "descending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = (row) => {
    const text = row.cells[column].dataset.value;
    return text === "" ? -Infinity : Number(text);
  };
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => (down ? value(b) - value(a) : value(a) - value(b)) || 0);
  table.tBodies[0].append(...rows);
}

function fill(id, options, chosen) {
  for (const [value, label] of options) element(id).append(new Option(label, value, false, value === chosen));
}

function start() {
  const objectives = report.objectives.map((objective, i) => [String(i), objective.name]);
  const others = [[String(MEAN), "mean"], ["generation", "generation"]];
  if (report.objectives.length === 1) Object.assign(state, { x: "generation", y: "0", colour: "0" });
  fill("axis-x", [...objectives, ...others], state.x);
  fill("axis-y", [...objectives, ...others], state.y);
  fill("axis-colour", [...others, ...objectives], state.colour);
  const kinds = [...new Set(report.groups.map((group) => group.kind))].sort();
  fill("detail-kind", [["", "all (mean)"], ...kinds.map((kind) => [kind, kind])], "");
  for (const [id, key] of [["axis-x", "x"], ["axis-y", "y"], ["axis-colour", "colour"], ["split", "split"]]) {
    element(id).addEventListener("change", (event) => {
      state[key] = event.target.value;
      drawFront();
    });
  }
  for (const id of ["errors", "dominated"]) element(id).addEventListener("change", drawFront);
  element("detail-kind").addEventListener("change", drawHeatmap);
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((header, column) =>
      header.addEventListener("click", () => sortBy(table, column, header)),
    );
    table.tBodies[0].addEventListener("click", (event) => {
      const row = event.target.closest("tr[data-trial]");
      if (row) select(row.dataset.trial);
    });
  }
  drawFront().then(() => {
    const plot = element("front-plot");
    plot.on("plotly_click", (event) => select(event.points[0].customdata));
    plot.on("plotly_relayout", (change) => {
      if (!("annotations" in change)) labelBaselines(plot);
    });
    select(report.knee ?? (report.trials[0] || {}).name);
    document.body.dataset.ready = "true"; // for whoever waits for the page
  });
  drawGrowth();
  drawOptimism();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    drawFront();
    drawGrowth();
    drawOptimism();
    drawHeatmap();
  });
}

start();
