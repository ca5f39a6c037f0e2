// The address's fragment holds the view, its filters and the open row: #leaderboard?data=mnist&ball=...

const VIEWS = { leaderboard: "Leaderboard", ledger: "Ledger", curves: "Curves", images: "Images", experiments: "Experiments" };

function readAddress() {
  const text = location.hash.slice(1);
  const cut = text.indexOf("?");
  const view = cut < 0 ? text : text.slice(0, cut);
  const parameters = Object.fromEntries(new URLSearchParams(cut < 0 ? "" : text.slice(cut + 1)));
  return view in VIEWS ? { view, parameters } : { view: "leaderboard", parameters: {} };
}

function address(view, parameters) {
  const kept = Object.entries(parameters || {}).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const text = new URLSearchParams(kept).toString();
  return `#${view}${text ? `?${text}` : ""}`;
}

// Filters change the address without a step in the history: "back" goes to the view before.
const keepAddress = (view, parameters) => history.replaceState(null, "", address(view, parameters));
