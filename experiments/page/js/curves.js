// Accuracy by eps, as a band of steps: nothing is drawn between two measurements that does not
// follow from them. What an attack broke in a ball is broken in every larger one; what is proven in
// a ball is proven in every smaller one.

const PANEL = { width: 300, height: 190, left: 30, right: 16, top: 8, bottom: 34 };

// Accuracy under attack is an upper bound from its eps up to the next one.
const upperAt = (curve, eps) => curve.eps.findLastIndex((measured) => measured <= eps);
// Certified accuracy is a lower bound from its eps down to the one before; -1 beyond the last.
const lowerAt = (curve, eps) => curve.proven_at.findIndex((proven) => proven >= eps);

function scaleOf(curve, logarithmic) {
  const { width, left, right } = PANEL;
  const last = curve.eps[curve.eps.length - 1];
  const inner = width - left - right;
  if (!logarithmic) return { to: (eps) => left + (inner * eps) / last, from: (x) => ((x - left) / inner) * last };
  const least = curve.eps[1];
  const near = inner * (last > least ? 0.2 : 1); // from 0 to the least eps, evenly
  const decades = Math.log(last / least) || 1;
  return {
    to: (eps) => left + (eps <= least ? (near * eps) / least : near + ((inner - near) * Math.log(eps / least)) / decades),
    from: (x) => (x - left <= near ? ((x - left) / near) * least : least * Math.exp(((x - left - near) / (inner - near)) * decades)),
  };
}

const heightOf = (fraction) => PANEL.top + (PANEL.height - PANEL.top - PANEL.bottom) * (1 - fraction);

// Flat from each eps down to the one before: a lower bound.
const steps = (eps, values, to) =>
  eps.map((e, i) => (i ? `V${heightOf(values[i])}H${to(e)}` : `M${to(e)},${heightOf(values[i])}`)).join("");

function bandOf(curve, to) {
  const last = curve.eps[curve.eps.length - 1];
  const edges = unique([...curve.eps, ...(curve.certified ? curve.proven_at : [])]).sort((a, b) => a - b).filter((e) => e <= last);
  return edges.slice(1).map((right, i) => {
    const left = edges[i];
    const high = curve.attacked[upperAt(curve, left)];
    const low = curve.certified ? curve.certified[lowerAt(curve, right)] : 0;
    return `M${to(left)},${heightOf(high)}H${to(right)}V${heightOf(low)}H${to(left)}Z`;
  }).join("");
}

function ticks(curve, to) {
  let free = -Infinity;
  return curve.eps.filter((eps) => {
    const room = to(eps) - free > 26;
    if (room) free = to(eps);
    return room;
  });
}

// A measured eps as the papers write it.
const named = (curve, eps) => (curve.eps.includes(eps) ? curve.texts[curve.eps.indexOf(eps)] : number(eps));

function says(curve, eps) {
  const i = upperAt(curve, eps);
  const j = curve.certified ? lowerAt(curve, eps) : -1;
  const upper = `at most ${percent(curve.attacked[i])} %${curve.eps[i] < eps ? ` (attacked at ${named(curve, curve.eps[i])})` : ""}`;
  const lower = !curve.certified ? "no certificate" : j < 0 ? "nothing certified" : `at least ${percent(curve.certified[j])} %${curve.proven_at[j] > eps ? ` (certified at ${named(curve, curve.proven_at[j])})` : ""}`;
  return `eps ${named(curve, eps)}: ${lower}, ${upper}`;
}

// An attack by itself: a mark of its own shape at each eps at which it was run.
const MARKS = ["M-3,0H3M0,-3V3", "M-2.6,-2.6L2.6,2.6M-2.6,2.6L2.6,-2.6", "M0,-3.2L3,2.4H-3Z", "M-2.5,-2.5H2.5V2.5H-2.5Z", "M0,-3.4L3,0L0,3.4L-3,0Z", "M0,3.2L3,-2.4H-3Z"];
const mark = (i, x, y) => svg("path", { class: "single", d: MARKS[i % MARKS.length], transform: `translate(${x} ${y})` });

function panel(curve, { logarithmic, single, chosen }) {
  const { to, from } = scaleOf(curve, logarithmic);
  const { width, height, left, right, bottom } = PANEL;
  const readout = el("p", { class: "readout", "aria-live": "polite" }, says(curve, curve.eps[1]));
  const guide = svg("line", { class: "guide", y1: heightOf(1), y2: heightOf(0), x1: to(curve.eps[1]), x2: to(curve.eps[1]) });
  let place = 1;
  const show = (eps) => {
    guide.setAttribute("x1", to(eps));
    guide.setAttribute("x2", to(eps));
    readout.textContent = says(curve, eps);
  };
  const last = curve.eps[curve.eps.length - 1];
  const point = (event) => {
    const box = picture.getBoundingClientRect();
    const eps = from(((event.clientX - box.left) / box.width) * width);
    show(Math.min(last, Math.max(0, Number(eps.toPrecision(3)))));
  };
  const step = (event) => {
    const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
    if (!(event.key in moves)) return;
    event.preventDefault();
    place = Math.min(curve.eps.length - 1, Math.max(0, place + moves[event.key]));
    show(curve.eps[place]);
  };
  const attacks = single ? Object.entries(curve.attacks) : [];
  const picture = svg("svg", {
    viewBox: `0 0 ${width} ${height}`, class: "curve", tabindex: 0, role: "img", onpointermove: point, onpointerdown: point, onkeydown: step,
    "aria-label": `${curve.network}, ${curve.training}: ${curve.eps.map((eps) => says(curve, eps)).join("; ")}. The arrow keys step over the measured eps.`,
  },
    [0, 0.25, 0.5, 0.75, 1].map((y) => svg("g", { class: "grid" },
      svg("line", { x1: left, x2: width - right, y1: heightOf(y), y2: heightOf(y) }),
      y % 0.5 === 0 && svg("text", { x: left - 5, y: heightOf(y) + 3.5, "text-anchor": "end" }, String(100 * y)))),
    ticks(curve, to).map((eps) => svg("text", { class: "tick", x: to(eps), y: height - bottom + 14, "text-anchor": "middle" }, named(curve, eps))),
    svg("text", { class: "tick", x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, `eps (${curve.norm === "linf" ? "L-infinity" : curve.norm})`),
    svg("path", { class: "band", d: bandOf(curve, to) }),
    attacks.map(([name, values], i) => svg("g", { class: `single a${i}` }, svg("title", null, name), curve.eps.map((eps, j) => mark(i, to(eps), heightOf(values[j]))))),
    curve.certified && svg("path", { class: "certified", d: steps(curve.proven_at, curve.certified, to) }),
    curve.eps.map((eps, i) => svg("circle", { class: "attacked", cx: to(eps), cy: heightOf(curve.attacked[i]), r: 2.4 })),
    guide);
  return el("figure", { class: `plot${chosen ? " chosen" : ""}`, "data-id": curve.id },
    el("figcaption", null, el("b", null, curve.network), el("span", null, ` ${curve.training}${curve.seeds > 1 ? `, mean of ${curve.seeds} seeds` : ""}`)),
    picture, readout,
    attacks.length > 0 && el("p", { class: "keys" }, attacks.map(([name], i) => el("span", null, svg("svg", { viewBox: "0 0 10 10", width: 10, height: 10, "aria-hidden": "true" }, mark(i, 5, 5)), ` ${name} alone`))));
}

const groupOf = (curve) => `${curve.result}: ${curve.norm}`;
const groupName = (group) => {
  const curve = DATA.curves.find((one) => groupOf(one) === group);
  return `${datasetName(results[curve.result].dataset)}, ${curve.norm === "linf" ? "L-infinity" : curve.norm}: ${curve.result}`;
};

function curvesView() {
  let state = {};
  const groups = unique(DATA.curves.map(groupOf)).sort((a, b) => compare(groupName(a), groupName(b)));
  const which = el("select", { id: "curves-group", onchange: () => change({ group: which.value, of: "" }) }, groups.map((group) => el("option", { value: group }, groupName(group))));
  const toggle = (key) => el("input", { type: "checkbox", id: `curves-${key}`, onchange: (event) => change({ [key]: event.target.checked ? "yes" : "" }) });
  const [logarithmic, single] = [toggle("log"), toggle("single")];
  const place = el("div", { class: "plots" });
  function change(parameters) {
    state = { ...state, ...parameters };
    keepAddress("curves", state);
    draw();
  }
  const proven = (group) => DATA.curves.filter((curve) => groupOf(curve) === group && curve.certified).length;
  const fullest = groups.reduce((best, group) => (proven(group) > proven(best) ? group : best), groups[0]);
  function draw() {
    const linked = DATA.curves.find((curve) => curve.id === state.of);
    const group = linked ? groupOf(linked) : groups.includes(state.group) ? state.group : fullest;
    which.value = group;
    logarithmic.checked = state.log === "yes";
    single.checked = state.single === "yes";
    place.replaceChildren(...DATA.curves.filter((curve) => groupOf(curve) === group)
      .map((curve) => panel(curve, { logarithmic: logarithmic.checked, single: single.checked, chosen: curve.id === state.of })));
  }
  return {
    node: el("div", null,
      el("form", { class: "filters", "aria-label": "Choose the curves", onsubmit: (event) => event.preventDefault() },
        el("div", { class: "field" }, el("label", { for: "curves-group" }, "Experiment and norm"), which),
        el("div", { class: "check" }, logarithmic, el("label", { for: "curves-log" }, "logarithmic eps")),
        el("div", { class: "check" }, single, el("label", { for: "curves-single" }, "each attack alone"))),
      el("p", { class: "note" }, "The band holds the true robust accuracy of the attacked images. Attacks were run at the red dots alone (at 0: clean accuracy); each dot is an upper bound up to the next one. Certified accuracy (blue) is a lower bound from its eps down to the one before. Point at a panel, or use the arrow keys in it, to read values."),
      place),
    show(parameters) {
      state = { ...parameters };
      draw();
      place.querySelector(".chosen")?.scrollIntoView({ block: "center" });
    },
  };
}
