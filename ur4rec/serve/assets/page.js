"use strict";
// Whatever comes from the data is set as text, never as markup; the server's policy allows no script but this file.

const SCORERS = { fused: "Both fused", sasrec: "SASRec", retriever: "Retriever" };
const TOP = 10;
const find = (id) => document.getElementById(id);
const state = { history: [], user: null, answer: null, chosen: null };
let newest = 0;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 2 : 1)}%`;

async function ask(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(path, options);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function complain(error) {
  find("alert").textContent = error ? error.message : "";
  find("alert").hidden = !error;
}

// A text field with a list of completions: arrow keys move, Enter chooses, Escape closes.
function combobox(field, path, choose) {
  const input = find(field), list = find(`${field}-choices`);
  let choices = [], current = 0, asked = 0;

  function show() {
    list.replaceChildren(...choices.map((choice, index) => {
      const option = element("li", { id: `${field}-${index}`, role: "option", textContent: choice.label });
      option.setAttribute("aria-selected", index === current);
      option.addEventListener("mousedown", (event) => { event.preventDefault(); take(index); });
      return option;
    }));
    list.hidden = !choices.length;
    input.setAttribute("aria-expanded", !list.hidden);
    if (list.hidden) input.removeAttribute("aria-activedescendant");
    else input.setAttribute("aria-activedescendant", `${field}-${current}`);
    list.children[current]?.scrollIntoView({ block: "nearest" });
  }

  function close() { choices = []; asked += 1; show(); }

  function take(index) {
    const choice = choices[index];
    input.value = "";
    close();
    choose(choice);
  }

  input.addEventListener("input", async () => {
    const mine = ++asked;
    try {
      const found = input.value.trim() ? await ask(`${path}?q=${encodeURIComponent(input.value.trim())}`) : [];
      if (mine !== asked) return;
      [choices, current] = [found, 0];
      show();
      complain(null);
    } catch (error) { complain(error); }
  });
  input.addEventListener("keydown", (event) => {
    if (!choices.length) return;
    if (event.key === "ArrowDown") current = (current + 1) % choices.length;
    else if (event.key === "ArrowUp") current = (current + choices.length - 1) % choices.length;
    else if (event.key === "Enter") { event.preventDefault(); take(current); return; }
    else if (event.key === "Escape") { close(); return; }
    else return;
    event.preventDefault();
    show();
  });
  input.addEventListener("blur", close);
}

function remember() {
  const parts = new URLSearchParams();
  if (state.history.length) parts.set("items", state.history.map((item) => item.index).join(","));
  if (state.user !== null) parts.set("user", state.user);
  history.replaceState(null, "", `#${parts}`);
}

async function update() {
  remember();
  const mine = ++newest;
  try {
    const body = { items: state.history.map((item) => item.index), user: state.user, top: TOP };
    const answer = state.history.length ? await ask("api/recommend", body) : null;
    if (mine !== newest) return;
    state.answer = answer;
    state.chosen = answer && { scorer: "fused", place: 0 };
    complain(null);
  } catch (error) {
    if (mine !== newest) return;
    state.answer = state.chosen = null;
    complain(error);
  }
  showHistory();
  showLists();
}

function chosenItem() {
  return state.chosen && state.answer.lists[state.chosen.scorer][state.chosen.place];
}

function showHistory() {
  const item = chosenItem();
  const read = state.answer ? state.answer.read : 0;
  const first = state.history.length - read;
  const longest = item ? Math.max(...item.weights) : 1;
  const bar = (weight, name) => element("meter", { min: 0, max: longest, value: weight, ariaLabel: `Weight of ${name}` });
  const rows = state.history.map((each, index) => {
    const row = element("li", {}, element("span", { className: "title", textContent: each.title }));
    const weight = item && index >= first ? item.weights[index - first] : null;
    row.append(element("span", { className: "share", textContent: weight === null ? "" : percent(weight) }));
    const remove = element("button", { type: "button", textContent: "×", title: "Remove" });
    remove.setAttribute("aria-label", `Remove ${each.title}`);
    remove.addEventListener("click", () => { state.user = null; state.history.splice(index, 1); update(); });
    row.append(remove);
    if (weight === null) row.classList.toggle("unread", Boolean(state.answer));
    else row.append(bar(weight, each.title));
    return row;
  });
  if (item && item.weights.length > read) {
    const weight = item.weights[read];
    rows.push(element("li", {}, element("span", { className: "title", textContent: "the user's own text" }),
      element("span", { className: "share", textContent: percent(weight) }), element("span"),
      bar(weight, "the user's own text")));
  }
  find("history").replaceChildren(...rows.reverse());
  find("clear").hidden = !state.history.length;
  const unread = first > 0 && state.answer ? ` The model reads the newest ${read} of ${state.history.length} items.` : "";
  find("why").textContent = item ? `The retriever found “${item.title}” by the weights below; newest first.${unread}`
    : state.history.length ? "Newest first." : "Nothing yet: add what somebody used, oldest first.";
}

function showLists() {
  const lists = state.answer ? state.answer.lists : {};
  find("lists").replaceChildren(...Object.entries(lists).map(([scorer, items]) => {
    const rows = items.map((item, place) => {
      const button = element("button", { type: "button" },
        element("span", { className: "share", textContent: `${place + 1}` }),
        element("span", { className: "title", textContent: item.title }),
        element("span", { className: "share", textContent: percent(item.probability) }));
      const pressed = state.chosen.scorer === scorer && state.chosen.place === place;
      button.setAttribute("aria-pressed", pressed);
      button.addEventListener("click", () => { state.chosen = { scorer, place }; showHistory(); showLists(); });
      return element("li", {}, button);
    });
    const box = element("div", { className: "list" }, element("h3", { textContent: SCORERS[scorer] }), element("ol", {}, ...rows));
    box.dataset.scorer = scorer;
    return box;
  }));
}

function showRun(run) {
  document.title = `${run.name} · UR4Rec`;
  find("name").textContent = run.name;
  find("facts").textContent = run.facts;
  find("decided").textContent = run.decided;
  const heads = Object.keys(run.results[0]?.test ?? {});
  const row = (tag, cells) => element("tr", {}, ...cells.map((text) => element(tag, { textContent: text })));
  find("metrics").replaceChildren(
    element("caption", { textContent: "On the test targets", className: "quiet" }),
    element("thead", {}, row("th", ["scorer", "epoch", ...heads])),
    element("tbody", {}, ...run.results.map((each) => row("td", [
      each.name, each.epoch < 0 ? "–" : each.epoch + 1, ...heads.map((head) => each.test[head].toFixed(4))]))));
  find("plot").hidden = !run.has_plot;
  if (run.has_plot) find("plot").src = "schedule.png";
}

async function begin() {
  combobox("item", "api/items", (item) => { state.user = null; state.history.push(item); update(); });
  combobox("user", "api/users", async (user) => {
    try {
      [state.history, state.user] = [await ask(`api/history?user=${encodeURIComponent(user.label)}`), user.label];
      await update();
    } catch (error) { complain(error); }
  });
  find("clear").addEventListener("click", () => { [state.history, state.user] = [[], null]; update(); });
  const parts = new URLSearchParams(location.hash.slice(1));
  try {
    showRun(await ask("api/run"));
    if (parts.get("user") !== null) {
      state.user = parts.get("user");
      state.history = await ask(`api/history?user=${encodeURIComponent(state.user)}`);
    } else if (parts.get("items")) {
      state.history = await ask(`api/items?indices=${encodeURIComponent(parts.get("items"))}`);
    }
    await update();
  } catch (error) { complain(error); }
  document.body.dataset.ready = "";
}

begin();
