// Every network in every ball.

const results = Object.fromEntries(DATA.results.map((result) => [result.name, result]));
const curveIds = new Set(DATA.curves.map((curve) => curve.id));
const pictured = new Set(DATA.pictures.map((picture) => picture.result));
const isProven = (row) => Object.keys(row.certificates).length > 0;
const datasetName = (name) => DATA.datasets[name] || name;

// What the first figure of the README shows.
const START = { dataset: "mnist", ball: "L-infinity 0.1" };

// What tells apart networks whose names are alike.
const NAMES = [
  ["by bounds, 0.1", "trained by interval bounds within L-infinity 0.1 (CertifiedTraining)"],
  ["PGD 0.1, PGD-10 at 8/255", "trained against PGD (here 10 steps) within that radius; TRADES likewise"],
  ["nmODE t=0.05", "an nmODE whose equation is integrated up to time t"],
  ["lambda, width", "of its equation, and how many neurons it has; where not given, lambda is 3"],
  ["times 9.06", "its activation is multiplied by this factor"],
  ["nmODE+", "an nmODE trained for small weights; the training says by what: weight decay of a certain strength, clipped weights, or a penalty"],
  ["ResNet8 for ResNet20", "a smaller network than the paper's, in its place"],
  ["ark, published", "the method as the paper, or its authors' code, has it, where that differs"],
];
const namesExplained = () => el("details", { class: "names" }, el("summary", null, "What the names mean"), terms(NAMES));

const leaderboard = sortableTable({
  view: "leaderboard",
  one: "interval",
  caption: "Robust accuracy in %. The data set and the ball must be the same for a comparison.",
  example: "nmODE, AutoAttack, …",
  rows: DATA.rows,
  start: START,
  order: ["certified", true],
  second: (a, b) => b.attacked - a.attacked,
  filters: [
    { key: "dataset", label: "Data set", all: "all data sets", of: (row) => row.dataset, name: datasetName, resets: ["ball"] },
    { key: "ball", label: "Ball", all: "all balls", of: (row) => row.ball },
    { key: "training", label: "Training", all: "all trainings", of: (row) => row.training },
    { key: "result", label: "Experiment", all: "all experiments", of: (row) => row.result },
    { key: "proof", label: "Certificate", all: "any", of: (row) => (isProven(row) ? "with" : "without") },
    { key: "flagged", label: "Flags", all: "any", of: (row) => (row.flags.length ? "raised" : "none") },
  ],
  texts: (row) => [row.network, row.training, datasetName(row.dataset), row.ball, row.result, ...Object.keys(row.attacks),
    ...row.last, ...Object.keys(row.certificates), ...row.flags.map((flag) => flag.name)].join(" ").toLowerCase(),
  columns: [
    { key: "network", label: "Network", value: (row) => row.network, cell: (row) => row.network },
    { key: "training", label: "Training", value: (row) => row.training, cell: (row) => row.training },
    { key: "ball", label: "Data set, ball", value: (row) => `${row.dataset} ${row.norm} ${row.eps.toFixed(6)}`, cell: (row) => [el("span", { class: "dataset" }, datasetName(row.dataset)), " ", el("span", { class: "nowrap" }, row.ball)] },
    { key: "certified", label: "Certified", kind: "number", first: "descending", explained: "Correct, and proven so: a lower bound", value: (row) => (isProven(row) ? row.certified : -1), cell: (row) => (isProven(row) ? percent(row.certified) : el("span", { class: "missing" }, "no proof")) },
    { key: "bar", label: "0 ≤ true robust accuracy ≤ 100", cell: intervalOf },
    { key: "attacked", label: "Attacked", kind: "number", first: "descending", explained: "Correct under every attack: an upper bound", value: (row) => row.attacked, cell: (row) => percent(row.attacked) },
    { key: "width", label: "Width", kind: "number", explained: "Attacked minus certified, in points", value: (row) => row.attacked - row.certified, cell: (row) => percent(row.attacked - row.certified) },
    { key: "clean", label: "Clean", kind: "number", first: "descending", explained: "Accuracy on the attacked images, without an attack", value: (row) => row.clean, cell: (row) => percent(row.clean) },
    { key: "n", label: "Images", kind: "number", first: "descending", explained: "Attacked images, times seeds", value: (row) => row.n * row.seeds.length, cell: (row) => row.n.toLocaleString("en") + (row.seeds.length > 1 ? ` × ${row.seeds.length}` : "") },
    { key: "flags", label: "Flags", kind: "number", first: "descending", explained: "Signs that the attacked end is still too high", value: (row) => row.flags.length, cell: (row) => row.flags.length ? el("span", { class: "flag", title: row.flags.map((flag) => flag.name).join(", ") }, String(row.flags.length)) : el("span", { class: "zero" }, "0") },
  ],
  details: rowDetails,
});

function accuracies(title, entries, end) {
  return el("table", { class: "small" },
    el("caption", null, title),
    el("tbody", null, entries.map(([name, value]) => el("tr", null,
      el("th", { scope: "row" }, name),
      el("td", { class: "number" }, percent(value)),
      el("td", { class: "gauge" }, el("i", { class: end, style: { width: at(value) } }))))));
}

function rowDetails(row) {
  const attacks = [...Object.entries(row.attacks), ...Object.entries(row.transfers).map(([name, value]) => [`transfer from ${name}`, value])];
  const certificates = Object.entries(row.certificates);
  const last = row.last.map((name) => `${name}, on the images that no other attack broke and nothing proved: ${row.seeds.map((seed) => seed.n_last).join(", ")} of ${row.n}`);
  const several = row.seeds.length > 1;
  return el("div", { class: "panel" },
    el("div", { class: "columns" },
      el("section", null, el("h3", null, "Upper end: attacks"),
        attacks.length ? accuracies("robust accuracy in %, under each attack alone", attacks, "attacked") : el("p", null, "No attack of its own accuracy."),
        last.length > 0 && el("p", null, "Then ", last.join("; "), "."),
        el("p", null, el("b", { class: "attacked" }, `${percent(row.attacked)} %`), " under all of them together: an image counts only if every attack fails on it.")),
      el("section", null, el("h3", null, "Lower end: certificates"),
        certificates.length ? accuracies(`certified accuracy in %${row.in_turn ? ", each with those before it" : ""}`, certificates, "certified") : el("p", null, "No certificate was computed, so the lower end is 0 %."),
        row.uncertified.map((reason) => el("p", null, reason, ".")),
        Object.entries(row.alpha).map(([name, alpha]) => el("p", null, `${name} holds for each image with confidence ${number(100 * (1 - alpha))} %.`)),
        row.certified_of_all !== undefined && el("p", null, `Of all test images, certified: ${percent(row.certified_of_all)} %.`))),
    flagList(row),
    seedTable(row),
    el("p", { class: "links" },
      curveIds.has(row.curve) && el("a", { href: address("curves", { of: row.curve }) }, "Curve"),
      pictured.has(row.result) && el("a", { href: address("images", { result: row.result }) }, "Adversarial examples"),
      el("a", { href: address("experiments", { open: row.result }) }, `Experiment, settings and data: ${row.result}`)),
    several && el("p", { class: "note" }, "Accuracies are means over the seeds. Whiskers reach from the lowest to the highest limit of all seeds."));
}

function flagList(row) {
  if (!row.flags.length) return el("p", null, el("b", null, "Flags: "), "none was raised by the checks that were run.");
  return el("section", { class: "flags" }, el("h3", null, "Flags: why the upper end may still be too high"),
    row.flags.map(({ name, evidence }) => {
      const kind = DATA.flags[name];
      return el("div", null, el("h4", null, el("span", { class: "flag" }, "!"), " ", name),
        terms([["seen", unique(evidence).join("; ")], ["raised if", kind?.raised_if], ["why it matters", kind?.why], ["what to do", kind?.what_to_do]]));
    }));
}

function seedTable(row) {
  const limits = (seed, end) => `${percent(seed[end])} (${seed[`${end}_interval`].map(percent).join(" to ")})`;
  const command = (seed) => seed.command || `${results[row.result].command} (options not recorded)`;
  return el("section", null, el("h3", null, "Where each number is from"),
    el("div", { class: "seeds" }, row.seeds.map((seed) => terms([
      ["seed", String(seed.seed)],
      ["certified, 95 % limits", isProven(row) && limits(seed, "certified")],
      ["attacked, 95 % limits", limits(seed, "attacked")],
      ["clean, 95 % limits", limits(seed, "clean")],
      ["training", [seed.parameters && `${seed.parameters.toLocaleString("en")} weights`, seed.epochs && plural(seed.epochs, "epoch"), seed.training_seconds && duration(seed.training_seconds)].filter(Boolean).join(", ")],
      ["command", code(command(seed))],
      ["commit", commit(seed.commit)],
      ["device", `${seed.device}; ${seed.processor}`],
      ["time", seed.time.replace("T", " ").replace("+00:00", " UTC")],
      ["versions", seed.versions]].map(([k, v]) => [k, v || null])))),
    el("p", { class: "note" }, `Clean accuracy on the test set, or on as much of it as the experiment evaluates: ${percent(row.all_images)} %. Attacks and certificates took ${duration(row.seconds)}${row.seeds.length > 1 ? " a seed" : ""}.`));
}
