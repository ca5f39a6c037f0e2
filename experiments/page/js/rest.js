// Adversarial examples, and what was run.

function imagesView() {
  let state = {};
  const which = el("select", { id: "images-result", onchange: () => { state = { result: which.value }; keepAddress("images", state); draw(); } },
    el("option", { value: "all" }, "all experiments"),
    unique(DATA.pictures.map((picture) => picture.result)).map((name) => el("option", { value: name }, name)));
  const place = el("div", { class: "gallery" });
  const picture = (uri, alt, text) => el("figure", null, el("img", { src: uri, alt, loading: "lazy", decoding: "async" }), el("figcaption", null, text));
  const triple = (example) => el("div", { class: "triple" },
    picture(example.image, `image of class ${example.label}`, `class ${example.label}`),
    picture(example.change, "perturbation, red where a pixel grew, blue where it fell", `± ${example.largest.toFixed(3)}`),
    picture(example.x_adv, `perturbed image, classified as ${example.prediction}`, `predicted ${example.prediction}`));
  function draw() {
    which.value = state.result || "all";
    if (!which.value) which.value = "all";
    place.replaceChildren(...DATA.pictures.filter((one) => which.value === "all" || one.result === which.value).map((one) =>
      el("article", null,
        el("h3", null, one.network),
        el("p", null, `${datasetName(results[one.result].dataset)}, L-infinity ${number(one.eps)}, `, el("a", { href: address("experiments", { open: one.result }) }, one.result)),
        el("div", { class: "triples" }, one.examples.map(triple)))));
  }
  return {
    node: el("div", null,
      el("form", { class: "filters", "aria-label": "Choose the images", onsubmit: (event) => event.preventDefault() },
        el("div", { class: "field" }, el("label", { for: "images-result" }, "Experiment"), which)),
      el("p", { class: "note" }, "Each triple: the image, the perturbation, their sum. The perturbation is drawn on a scale of its own, whose largest entry is below it, in units of pixels in [0, 1]. Red: the pixel grew. Blue: it fell."),
      place),
    show(parameters) { state = { ...parameters }; draw(); },
  };
}

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
