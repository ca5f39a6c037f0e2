// What was run: every result with its figure, command, commit, settings and data.

function zoom(figure, title) {
  const dialog = byId("zoom");
  dialog.replaceChildren(
    el("img", { src: figure.uri, alt: title }),
    el("form", { method: "dialog" }, el("button", { class: "quiet" }, "Close")));
  dialog.showModal();
}

const setting = (value) => (value === null ? "none" : typeof value === "object" ? JSON.stringify(value).replace(/"/g, "").replace(/([,:])/g, "$1 ") : String(value));

function dataText(data) {
  if (!data) return "not recorded";
  if (typeof data === "string") return data;
  return data.map((one) => el("span", { class: "line" }, `${one.name}, ${one.split}, ${one.n.toLocaleString("en")} images, ${one.source}, digest ${one.digest.slice(0, 12)}`));
}

function originText(origin, result) {
  return terms([
    ["command", code(origin.command || `${result.command} (options not recorded)`)],
    ["commit", commit(origin.commit)],
    ["device", `${origin.device}; ${origin.processor}`],
    ["measured", `${plural(origin.n, "measurement")}, ${origin.from.slice(0, 10)}${origin.to.slice(0, 10) === origin.from.slice(0, 10) ? "" : ` to ${origin.to.slice(0, 10)}`}, seeds ${origin.seeds.join(", ")}`],
    ["versions", Object.entries(origin.versions).map(([name, version]) => `${name} ${version}`).join(", ")]]);
}

function experimentCard(result) {
  const intervals = result.intervals > 0 && el("a", { href: address("leaderboard", { dataset: "all", ball: "all", result: result.name }) }, plural(result.intervals, "interval"));
  const ledgerLink = result.kind === "claims" && el("a", { href: address("ledger") }, plural(DATA.claims.length, "claim"));
  return el("article", { class: "card", "data-id": result.name, tabindex: -1 },
    el("h3", null, result.title),
    el("p", { class: "meta" }, [result.dataset && datasetName(result.dataset), `${result.name}.json`].filter(Boolean).join(" · "), intervals && [" · ", intervals], ledgerLink && [" · ", ledgerLink]),
    result.figures.map((figure) => el("button", { type: "button", class: "figure", "aria-label": `Enlarge the figure ${figure.name}`, onclick: () => zoom(figure, `${result.title}: ${figure.name}`) },
      el("img", { src: figure.uri, width: figure.width, height: figure.height, alt: `Figure ${figure.name}`, loading: "lazy", decoding: "async" }))),
    result.origins.length ? originText(result.origins[0], result) : terms([["command", code(result.command)], ["commit", "none: it only collects the other results"]]),
    el("details", null, el("summary", null, "How it was measured, settings and data"),
      el("pre", null, result.about),
      terms([...Object.entries(result.settings).map(([name, value]) => [name.replace(/_/g, " "), setting(value)]), ["data", dataText(result.data)]])),
    result.origins.length > 1 && el("details", null, el("summary", null, `${result.origins.length - 1} more: other commits, commands or machines`),
      result.origins.slice(1).map((origin) => originText(origin, result))));
}

function experimentsView() {
  let state = {};
  const search = el("input", { type: "search", id: "experiments-q", placeholder: "nmODE, soundness, …", oninput: () => { state = { q: search.value }; keepAddress("experiments", state); draw(); } });
  const count = el("p", { class: "count", "aria-live": "polite" });
  const cards = DATA.results.map((result) => ({ node: experimentCard(result), name: result.name, text: `${result.name} ${result.title} ${result.about} ${datasetName(result.dataset)}`.toLowerCase() }));
  function draw() {
    if (search.value !== (state.q || "")) search.value = state.q || "";
    const words = search.value.toLowerCase().split(/\s+/);
    for (const card of cards) card.node.hidden = !words.every((word) => card.text.includes(word));
    count.textContent = `${plural(cards.filter((card) => !card.node.hidden).length, "result")} of ${cards.length}`;
  }
  return {
    node: el("div", null,
      el("form", { class: "filters", role: "search", "aria-label": "Filter the experiments", onsubmit: (event) => event.preventDefault() },
        el("div", { class: "field" }, el("label", { for: "experiments-q" }, "Search"), search)),
      count, el("div", { class: "cards" }, cards.map((card) => card.node))),
    show(parameters) {
      state = { ...parameters };
      draw();
      const open = cards.find((card) => card.name === state.open)?.node;
      for (const card of cards) card.node.classList.toggle("chosen", card.node === open);
      open?.scrollIntoView({ block: "start" });
      open?.focus({ preventScroll: true });
    },
  };
}
