// A table that sorts, filters and opens rows. Filters, order and the open row are in the address.

// options: view, rows, columns, filters, details(row), texts(row), order: [column, descending],
// start: parameters when the address has none, caption.
// column: key, label, value(row) to sort by, cell(row), kind, first: "descending" for numbers.
// filter: key, label, of(row), all: label of no choice, name(value), within: keys it depends on.
function sortableTable(options) {
  const { view, rows, columns, filters, start } = options;
  let state = {};
  const byKey = Object.fromEntries(columns.map((column) => [column.key, column]));
  const selects = {};
  const search = el("input", { type: "search", id: `${view}-q`, placeholder: options.example, oninput: () => change({ q: search.value }) });
  const count = el("p", { class: "count", "aria-live": "polite" });
  const body = el("tbody", { role: "rowgroup" });
  const heads = {};

  const passes = (row, except) => filters.every(({ key, of }) => key === except || !state[key] || state[key] === "all" || of(row) === state[key]);
  const matches = (row) => (state.q || "").toLowerCase().split(/\s+/).every((word) => options.texts(row).includes(word));

  function change(parameters) {
    state = { ...state, ...parameters };
    keepAddress(view, state);
    draw();
  }

  function sortBy(key) {
    const [column, descending] = order();
    const falls = column === key ? !descending : byKey[key].first === "descending";
    change({ sort: key, order: falls ? "falling" : "rising" });
  }

  function order() {
    if (!(state.sort in byKey)) return options.order;
    return [state.sort, state.order === "falling"];
  }

  function drawFilters() {
    for (const filter of filters) {
      const { key, of } = filter;
      const there = rows.filter((row) => passes(row, key));
      const values = unique((there.length ? there : rows).map(of)).filter((value) => value !== "").sort(compare);
      if (state[key] && state[key] !== "all" && !values.includes(state[key])) values.push(state[key]);
      const named = (value) => `${filter.name ? filter.name(value) : value} (${there.filter((row) => of(row) === value).length})`;
      selects[key].replaceChildren(
        el("option", { value: "all" }, filter.all),
        ...values.map((value) => el("option", { value }, named(value))));
      selects[key].value = state[key] || "all";
    }
    if (search.value !== (state.q || "")) search.value = state.q || "";
  }

  function drawRows() {
    const [key, descending] = order();
    const value = byKey[key].value;
    const sign = descending ? -1 : 1;
    const shown = rows.filter((row) => passes(row) && matches(row))
      .map((row, i) => ({ row, i }))
      .sort((a, b) => sign * compare(value(a.row), value(b.row)) || options.second(a.row, b.row) || a.i - b.i)
      .map(({ row }) => row);
    for (const [name, head] of Object.entries(heads)) {
      if (name === key) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    sorts.value = key;
    count.textContent = `${plural(shown.length, options.one)} of ${rows.length}`;
    body.replaceChildren(...shown.flatMap(drawRow));
    if (!shown.length) {
      body.append(el("tr", { role: "row" }, el("td", { role: "cell", colspan: columns.length, class: "none" }, "Nothing matches these filters.")));
    }
  }

  function drawRow(row) {
    const open = state.open === row.id;
    const line = el("tr", { role: "row", class: open ? "row open" : "row", "data-id": row.id },
      columns.map((column, i) => el("td", { role: "cell", class: `c-${column.key} ${column.kind || ""}` },
        i ? column.cell(row) : opener(row, column, open))));
    return open ? [line, drawDetails(row)] : [line];
  }

  function opener(row, column, open) {
    return [el("button", { type: "button", class: "opener", "aria-expanded": String(open), onclick: () => toggle(row) }, column.cell(row)), column.below && column.below(row)];
  }

  function drawDetails(row) {
    const link = el("a", { class: "permalink", href: address(view, { ...Object.fromEntries(filters.map(({ key, of }) => [key, of(row)])), open: row.id }) }, "Link to this row");
    return el("tr", { role: "row", class: "details" },
      el("td", { role: "cell", colspan: columns.length }, options.details(row), el("p", null, link)));
  }

  function toggle(row) {
    change({ open: state.open === row.id ? "" : row.id });
    opened(row.id)?.querySelector("button").focus({ preventScroll: true });
  }

  const opened = (id) => [...body.children].find((line) => line.dataset.id === id);

  function draw() {
    drawFilters();
    drawRows();
  }

  const sorts = el("select", { id: `${view}-sort`, onchange: () => sortBy(sorts.value) },
    columns.filter((c) => c.value).map((c) => el("option", { value: c.key }, c.label)));
  const controls = filters.map((filter) => {
    const { key } = filter;
    selects[key] = el("select", {
      id: `${view}-${key}`,
      onchange: () => change({ [key]: selects[key].value, ...Object.fromEntries((filter.resets || []).map((other) => [other, "all"])) }),
    });
    return el("div", { class: "field" }, el("label", { for: `${view}-${key}` }, filter.label), selects[key]);
  });
  const form = el("form", { class: "filters", role: "search", "aria-label": `Filter the ${options.one}s`, onsubmit: (event) => event.preventDefault() },
    controls.slice(0, 2),
    el("div", { class: "field" }, el("label", { for: `${view}-q` }, "Search"), search),
    el("div", { class: "field narrow-only" }, el("label", { for: `${view}-sort` }, "Sort by"), sorts),
    controls.slice(2).map((control) => (control.classList.add("further"), control)),
    el("button", { type: "button", class: "quiet narrow-only", "aria-expanded": "false", onclick: (event) => {
      event.target.setAttribute("aria-expanded", String(form.classList.toggle("all")));
    } }, "More filters"),
    el("button", { type: "button", class: "quiet", onclick: () => { state = {}; change(Object.fromEntries(filters.map(({ key }) => [key, "all"]))); } }, "Show all"));
  const table = el("table", { role: "table", class: `sortable ${view}` },
    el("caption", null, options.caption),
    el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, columns.map((column) => {
      const label = column.value ? el("button", { type: "button", class: "sort", onclick: () => sortBy(column.key) }, column.label) : column.label;
      return (heads[column.key] = el("th", { role: "columnheader", scope: "col", class: `c-${column.key} ${column.kind || ""}`, title: column.explained }, label));
    }))),
    body);

  return {
    node: el("div", null, form, count, table),
    show(parameters) {
      state = Object.keys(parameters).length ? { ...parameters } : { ...start };
      draw();
      if (state.open) opened(state.open)?.scrollIntoView({ block: "center" });
    },
    change,
  };
}
