// Every number of the papers, and what was measured of it.

const measurement = (claim) => claim.instead || claim;
const isAccuracy = (claim) => claim.attack === "clean" || claim.norm !== undefined;
const claimed = (claim, value) => (isAccuracy(claim) ? value.toFixed(Number.isInteger(value * 10) ? 1 : 2) : number(value));
const own = (claim) => measurement(claim).papers_attack ?? measurement(claim).value;
const points = (value) => (value === undefined ? "" : value.toFixed(1));
const ownText = (claim) => (own(claim) === undefined ? "" : isAccuracy(claim) ? points(own(claim)) : number(own(claim)));
const ballText = (claim) => (claim.eps ? `${claim.norm === "l2" ? "l2" : "L-infinity"} ${claim.eps}` : "");
const attackText = (claim) => [claim.attack, ballText(claim)].filter(Boolean).join(", ");

function claimBar(claim) {
  const measured = measurement(claim);
  if (measured.worst_attack === undefined) return null;
  return intervalBar({
    certified: measured.certified / 100, attacked: measured.worst_attack / 100, proven: measured.certified > 0, hatched: false,
    claimed: claim.claimed / 100, faint: claim.verdict === "not measured",
    label: `claimed ${points(claim.claimed)} %; certified ${points(measured.certified)} %, under all attacks ${points(measured.worst_attack)} %`,
  });
}

const ledger = sortableTable({
  view: "ledger",
  one: "claim",
  caption: "Accuracies in %. The diamond is the claim, the band reaches from certified to all attacks. Faint: not as in the paper, so it says nothing about the claim.",
  example: "TRADES, PGD-40, …",
  rows: DATA.claims,
  start: {},
  order: ["verdict", false],
  second: () => 0,
  filters: [
    { key: "paper", label: "Paper", all: "all papers", of: (claim) => claim.paper, resets: ["table"] },
    { key: "table", label: "Table", all: "all tables", of: (claim) => claim.table },
    { key: "verdict", label: "Verdict", all: "all verdicts", of: (claim) => claim.verdict },
    { key: "how", label: "How measured", all: "in any way", of: (claim) => claim.how },
    { key: "dataset", label: "Data set", all: "all data sets", of: (claim) => claim.dataset, name: datasetName },
  ],
  texts: (claim) => [claim.paper, claim.table, claim.model, claim.attack, claim.norm, claim.eps, datasetName(claim.dataset),
    claim.quoted, claim.how, claim.verdict, claim.not_measured].join(" ").toLowerCase(),
  columns: [
    { key: "model", label: "Network", value: (claim) => claim.model, cell: (claim) => claim.model },
    { key: "paper", label: "Paper, table", value: (claim) => `${claim.paper} ${claim.table}`, cell: (claim) => [el("i", { class: "dot", style: { background: DATA.colors.papers[claim.paper] } }), ` ${claim.paper} `, el("span", { class: "nowrap" }, claim.table)] },
    { key: "what", label: "Data set, attack", value: (claim) => `${claim.dataset} ${attackText(claim)}`, cell: (claim) => [el("span", { class: "dataset" }, datasetName(claim.dataset)), " ", `${claim.attack}${claim.eps ? "," : ""} `, el("span", { class: "nowrap" }, ballText(claim))] },
    { key: "claimed", label: "Claimed", kind: "number", first: "descending", value: (claim) => claim.claimed, cell: (claim) => claimed(claim, claim.claimed) },
    { key: "own", label: "Measured", kind: "number", first: "descending", explained: "Under the paper's attack alone", value: (claim) => own(claim) ?? -1, cell: (claim) => el("span", { class: claim.instead ? "faint" : "" }, ownText(claim)) },
    { key: "all", label: "All attacks", kind: "number", first: "descending", explained: "Under all attacks together: an upper bound", value: (claim) => measurement(claim).worst_attack ?? -1, cell: (claim) => el("span", { class: claim.instead ? "faint" : "" }, points(measurement(claim).worst_attack)) },
    { key: "proven", label: "Certified", kind: "number", first: "descending", explained: "A lower bound", value: (claim) => measurement(claim).certified ?? -1, cell: (claim) => el("span", { class: claim.instead ? "faint" : "" }, points(measurement(claim).certified)) },
    { key: "bar", label: "0 to 100 %", cell: claimBar },
    { key: "verdict", label: "Verdict", value: (claim) => Object.keys(DATA.verdicts).indexOf(claim.verdict), cell: (claim) => [el("span", { class: `pill ${claim.verdict.replace(" ", "-")}` }, claim.verdict), claim.verdict === "not measured" && el("span", { class: "why" }, ` ${claim.instead ? claim.how : ""}`)] },
  ],
  details: claimDetails,
});

function claimDetails(claim) {
  const measured = measurement(claim);
  const has = measured.papers_attack !== undefined || measured.value !== undefined;
  const result = measured.result && measured.result.replace(/\.json$/, "");
  return el("div", { class: "panel" },
    el("p", null, el("span", { class: `pill ${claim.verdict.replace(" ", "-")}` }, claim.verdict), " ", DATA.verdicts[claim.verdict]),
    el("div", { class: "columns" },
      el("section", null, el("h3", null, "What the paper prints"), terms([
        ["number", claimed(claim, claim.claimed) + (claim.claimed_deviation ? ` ± ${claim.claimed_deviation}` : "")],
        ["where", `${claim.paper}, ${claim.table}`], ["data set", datasetName(claim.dataset)], ["network", claim.model],
        ["attack", attackText(claim)], ["quoted from", claim.quoted], ["epochs", claim.epochs],
        ["network's size", claim.size_given ? "given" : "not given"]])),
      el("section", null, el("h3", null, has ? "What was measured here" : "Not measured"), has ? terms([
        ["network", measured.network], ["as in the paper", claim.instead ? `no: ${claim.how}` : "yes"],
        ["the paper's size", measured.papers_size], ["the paper's epochs", measured.papers_epochs], ["trained epochs", measured.trained_epochs],
        [claim.attack === "clean" || !isAccuracy(claim) ? "measured" : `under ${claim.attack} alone`, ownText(claim) + (measured.deviation ? ` ± ${points(measured.deviation)}` : "")],
        ["under all attacks", points(measured.worst_attack)], ["certified", points(measured.certified)],
        ["attacked images", measured.n], ["seeds", measured.seeds], ["flags", (measured.flags || []).join(", ")], ["device", measured.device],
      ]) : el("p", null, claim.not_measured, "."))),
    terms([["measures it as the paper does", claim.command && code(claim.command)],
      ["numbers shown", result && el("a", { href: address("experiments", { open: result }) }, `${measured.result}: its command, commit and versions`)]]));
}

// How many claims have each verdict; a click shows them.
function verdictTiles() {
  const counts = Object.keys(DATA.verdicts).map((verdict) => [verdict, DATA.claims.filter((claim) => claim.verdict === verdict).length]);
  return el("div", { class: "tiles" }, counts.filter(([, n]) => n).map(([verdict, n]) =>
    el("a", { class: `tile ${verdict.replace(" ", "-")}`, href: address("ledger", { verdict }), title: DATA.verdicts[verdict] },
      el("b", null, String(n)), el("span", null, verdict), el("small", null, DATA.verdicts[verdict]))));
}
