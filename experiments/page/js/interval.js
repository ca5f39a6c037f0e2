// An interval as a bar: the truth is in the band. Whiskers: sampling error (95 %) of each end.

const at = (fraction) => `${100 * Math.min(1, Math.max(0, fraction))}%`;

// From the lowest to the highest limit of all seeds, so that no seed's error is hidden.
function whisker(seeds, end) {
  const limits = seeds.map((seed) => seed[`${end}_interval`]).filter(Boolean);
  return limits.length ? [Math.min(...limits.map((l) => l[0])), Math.max(...limits.map((l) => l[1]))] : null;
}

function intervalBar({ certified, attacked, proven, hatched = !proven, clean, claimed, whiskers, faint, label }) {
  const low = proven ? certified : 0;
  const span = (limits, end) =>
    limits && el("i", { class: `whisker ${end}`, style: { left: at(limits[0]), width: at(limits[1] - limits[0]) } });
  return el("span", { class: `interval${faint ? " faint" : ""}`, role: "img", "aria-label": label, title: label },
    el("i", { class: `band${hatched ? " unproven" : ""}`, style: { left: at(low), width: at(attacked - low) } }),
    whiskers && proven && span(whiskers.certified, "certified"),
    whiskers && span(whiskers.attacked, "attacked"),
    proven && el("i", { class: "end certified", style: { left: at(low) } }),
    el("i", { class: "end attacked", style: { left: at(attacked) } }),
    clean !== undefined && el("i", { class: "clean", style: { left: at(clean) } }),
    claimed !== undefined && el("i", { class: "claimed", style: { left: at(claimed) } }));
}

function intervalOf(row) {
  const proven = Object.keys(row.certificates).length > 0;
  const low = proven ? `certified ${percent(row.certified)} %` : "no certificate";
  return intervalBar({
    ...row, proven,
    whiskers: { certified: whisker(row.seeds, "certified"), attacked: whisker(row.seeds, "attacked") },
    label: `${low}, attacked ${percent(row.attacked)} %, clean ${percent(row.clean)} %`,
  });
}
