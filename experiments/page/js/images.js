// Adversarial examples: image, perturbation and sum.

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
        el("p", null, `${datasetName(results[one.result].dataset)}, L-infinity ${one.eps_text}, `, el("a", { href: address("experiments", { open: one.result }) }, one.result)),
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
