// The parts of the page, the way from one to another, and the theme.

const networks = unique(DATA.rows.map((row) => `${row.result} ${row.training} ${row.network}`)).length;
const refuted = DATA.claims.filter((claim) => claim.verdict === "refuted").length;
byId("counts").append(
  el("a", { href: address("leaderboard", { dataset: "all", ball: "all" }) }, plural(DATA.rows.length, "interval")), ` of ${plural(networks, "network")} · `,
  el("a", { href: address("ledger", { verdict: "all" }) }, plural(DATA.claims.length, "claim")), " of the papers, ",
  el("a", { href: address("ledger", { verdict: "refuted" }) }, `${refuted} refuted`), " · ",
  el("a", { href: address("experiments") }, plural(DATA.results.length, "result")));

byId("legend").append(
  el("p", { class: "legend-title" }, "How to read a bar"),
  intervalBar({ certified: 0.42, attacked: 0.7, clean: 0.93, proven: true, whiskers: { certified: [0.37, 0.47], attacked: [0.65, 0.75] }, label: "Example of a bar" }),
  el("ul", null,
    el("li", null, el("i", { class: "key certified" }), "certified: proven for this share of the images"),
    el("li", null, el("i", { class: "key band" }), "the truth for these images is in the band; hatched: no certificate"),
    el("li", null, el("i", { class: "key attacked" }), "attacked: correct under every attack that was run"),
    el("li", null, el("i", { class: "key whisker" }), "thin lines: sampling error of each end, 95 %"),
    el("li", null, el("i", { class: "key clean" }), "clean accuracy")));

const HEADINGS = {
  leaderboard: ["Leaderboard", "A row is one network in one ball. Open it for every attack and certificate behind its ends, flags, settings, command and commit."],
  ledger: ["Ledger", "Every number that the papers print, and what was measured of it."],
  curves: ["Curves", "Robust accuracy by the radius of the ball."],
  images: ["Images", "What an adversarial example looks like."],
  experiments: ["Experiments", "Every result, with its figure, command, commit and data."],
};

const views = { leaderboard, ledger, curves: curvesView(), images: imagesView(), experiments: experimentsView() };
const links = {};
for (const [name, label] of Object.entries(VIEWS)) {
  const [title, about] = HEADINGS[name];
  byId(`view-${name}`).append(
    el("h2", { id: `title-${name}` }, title), el("p", { class: "about" }, about), name === "ledger" ? verdictTiles() : name === "leaderboard" ? namesExplained() : "", views[name].node);
  document.querySelector("nav").append((links[name] = el("a", { href: address(name) }, label)));
}

function route() {
  const { view, parameters } = readAddress();
  for (const name of Object.keys(VIEWS)) {
    byId(`view-${name}`).hidden = name !== view;
    if (name === view) links[name].setAttribute("aria-current", "page");
    else links[name].removeAttribute("aria-current");
  }
  byId("lead").hidden = view !== "leaderboard";
  document.title = `odejax: ${HEADINGS[view][0]}`;
  views[view].show(parameters);
}
addEventListener("hashchange", () => {
  if (location.hash === "#content") return;
  scrollTo(0, 0);
  route();
});

// Dark or light: what the system prefers, until the button says otherwise.
const THEME = "odejax-theme";
const stored = () => { try { return localStorage.getItem(THEME); } catch { return null; } }; // not of every file
const preferred = () => (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").setAttribute("aria-pressed", String(theme === "dark"));
}
setTheme(stored() || preferred());
byId("theme").addEventListener("click", () => {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  setTheme(theme);
  try { localStorage.setItem(THEME, theme); } catch { /* kept for this visit alone */ }
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => stored() || setTheme(preferred()));

route();
