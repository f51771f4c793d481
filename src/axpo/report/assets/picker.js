// Which tree is shown: the pickers, the keyboard, the link of a tree, and the tooltip of tokens.

const picks = { run: byId("pick-run"), step: byId("pick-step"), category: byId("pick-category"), group: byId("pick-group") };

function options(select, entries, value) {
  select.replaceChildren(...entries.map(([key, text]) => el("option", { value: key }, text)));
  if (entries.some(([key]) => String(key) === String(value))) select.value = value;
}

const distinct = (values) => [...new Set(values)];
const inStep = () => DATA.groups.filter((g) => g.run === Number(picks.run.value) && g.step === Number(picks.step.value));

/** Refill the pickers from the run down, keeping what still exists. */
function refill(wanted = {}) {
  options(picks.run, distinct(DATA.groups.map((g) => g.run)).map((r) => [r, DATA.runs[r].name]), wanted.run ?? picks.run.value);
  const steps = distinct(DATA.groups.filter((g) => g.run === Number(picks.run.value)).map((g) => g.step));
  options(picks.step, steps.map((s) => [s, stepName(s)]), wanted.step ?? picks.step.value);
  const here = inStep();
  const kinds = distinct(here.map((g) => g.category)).map((c) => [c, `${DATA.categories[c]} (${here.filter((g) => g.category === c).length})`]);
  options(picks.category, [["", `all (${here.length})`], ...kinds], wanted.category ?? picks.category.value);
  const listed = here.filter((g) => !picks.category.value || g.category === picks.category.value);
  const same = listed.find((g) => g.id === state.group?.id); // the other run's answers to the same question
  const shown = wanted.group ?? (same ? DATA.groups.indexOf(same) : picks.group.value);
  options(picks.group, listed.map((g) => [DATA.groups.indexOf(g), `${g.id} · ${g.question}`.slice(0, 90)]), shown);
  open(DATA.groups[Number(picks.group.value)], wanted.rollout);
}

/** The rollout that there is most to see of: a recovered one, else one that was resampled, else a failure. */
function telling(group) {
  const failed = (t) => outcome(t) === "wrong";
  return group.order.find((t) => t.branches.some((b) => b.recovered)) ?? group.order.find((t) => t.branches.length)
    ?? group.order.find((t) => failed(t) && t.calls.length) ?? group.order.find(failed) ?? group.order[0];
}

function open(group, rollout) {
  state.group = index(group);
  choose(group.order.find((t) => t.name === rollout) ?? telling(group));
}

function stepQuestion(way) {
  const select = picks.group, count = select.options.length;
  select.selectedIndex = (select.selectedIndex + way + count) % count;
  select.dispatchEvent(new Event("change"));
}

function stepRollout(way) {
  const order = state.group.order, at = order.indexOf(state.chosen) + way;
  if (at >= 0 && at < order.length) choose(order[at]);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
  const inList = event.target.closest("#rollouts");
  const arrows = inList ? { ArrowDown: () => stepRollout(1), ArrowUp: () => stepRollout(-1), ArrowRight: () => stepQuestion(1), ArrowLeft: () => stepQuestion(-1) } : {};
  const action = { n: () => stepQuestion(1), p: () => stepQuestion(-1), j: () => stepRollout(1), k: () => stepRollout(-1), ...arrows }[event.key];
  if (!action) return;
  event.preventDefault();
  state.moved = true;
  action();
}

function showTip(event) {
  const target = event.target.closest?.(".token"), tip = byId("tip");
  tip.hidden = !target?.tip;
  if (tip.hidden) return;
  tip.replaceChildren(...target.tip().map(([name, value]) => el("div", {}, el("span", {}, name), el("b", {}, String(value)))));
  const at = target.getBoundingClientRect(), size = tip.getBoundingClientRect();
  const below = at.bottom + 6 + size.height < innerHeight;
  tip.style.left = Math.max(8, Math.min(event.clientX - 20, innerWidth - size.width - 8)) + "px";
  tip.style.top = (below ? at.bottom + 6 : Math.max(8, at.top - size.height - 6)) + "px";
}

/** The tree that the address names (#run=AXPO&step=60&question=...&rollout=3a), if it is here. */
function linked() {
  const place = new URLSearchParams(location.hash.slice(1));
  const at = DATA.groups.findIndex((g) => DATA.runs[g.run].name === place.get("run") && stepName(g.step) === place.get("step") && g.id === place.get("question"));
  if (at < 0) return null;
  return { run: DATA.groups[at].run, step: DATA.groups[at].step, category: "", group: at, rollout: place.get("rollout") };
}

/** Start where there is most to see: the last saved step of the last run with a recovered group. */
function start() {
  const best = DATA.groups.findLast((g) => g.category === "recovered") ?? DATA.groups.findLast((g) => g.branches.length) ?? DATA.groups.findLast((g) => g.step !== DATA.heldOut) ?? DATA.groups[0];
  const first = DATA.groups.find((g) => g.run === best.run && g.step === best.step && g.category === best.category);
  return { run: first.run, step: first.step, group: DATA.groups.indexOf(first) };
}

if (byId("trees")) {
  for (const select of Object.values(picks)) {
    select.addEventListener("change", () => { state.moved = true; refill(select === picks.group ? { group: select.value } : select === picks.run ? { category: "" } : {}); });
  }
  byId("previous").addEventListener("click", () => stepQuestion(-1));
  byId("next").addEventListener("click", () => stepQuestion(1));
  byId("browser").addEventListener("click", () => { state.moved = true; }, true);
  document.addEventListener("keydown", onKey);
  byId("browser").addEventListener("pointerover", showTip);
  byId("browser").addEventListener("click", showTip);
  addEventListener("scroll", () => { byId("tip").hidden = true; }, { passive: true });
  const link = linked();
  refill(link ?? start());
  if (link) byId("trees").scrollIntoView();
}
