// The browser of trajectory trees: picture with call boxes, rollouts and branches, tokens by credit.
// Text of a model only ever becomes a text node. Offsets are path offsets, as in the saved trees.

const state = { group: null, chosen: null };
const letters = "abcdefghijklmnopqrstuvwxyz";

/** What the views need of a group: short names, parents, and the order in which the list shows. */
function index(group) {
  if (group.order) return group;
  group.order = [];
  group.byName = new Map();
  const add = (t, name, branch, depth) => {
    Object.assign(t, { name, branch, depth, branches: group.branches.filter((b) => b.source === t.id) });
    group.order.push(t);
    group.byName.set(t.id, t);
    let letter = 0;
    for (const b of t.branches) {
      for (const c of b.continuations) add(c, name + (letters[letter++] ?? "+" + letter), b, depth + 1);
    }
  };
  group.rollouts.forEach((t, i) => add(t, String(i + 1), null, 0));
  return group;
}

/** A path's pieces after the prompt: the source's up to the cut, then the trajectory's own. */
function pathOf(group, t) {
  const own = t.pieces.map((p) => ({ ...p, owner: t }));
  if (!t.branch) return own;
  const source = group.byName.get(t.branch.source);
  return [...clip(pathOf(group, source), 0, t.branch.cut), ...own];
}

function clip(pieces, from, to) {
  const out = [];
  for (const p of pieces) {
    const length = p.picture ? p.n : p.ids.length, a = Math.max(0, from - p.at), b = Math.min(length, to - p.at);
    if (a >= b) continue;
    if (p.picture || (a === 0 && b === length)) out.push(p);
    else out.push({ ...p, at: p.at + a, ids: p.ids.slice(a, b), s: p.s.slice(a, b), p: p.p?.slice(a, b) });
  }
  return out;
}

const stepName = (step) => (step === DATA.heldOut ? "held out" : String(step));
const outcome = (t) => (t.solved === null ? "unscored" : t.solved ? "right" : "wrong");
const sign = { right: "✓", wrong: "✗", unscored: "?" };
const signed = (v) => (v === null ? "–" : (v < 0 ? "−" : "+") + Math.abs(v).toFixed(2));
const creditAt = (t, at) => t.credit.find(([start, end]) => start <= at && at < end);
const promptPictures = (group) => group.prompt.filter((p) => p.picture).map((p) => p.picture);

/** Invisible characters made visible, so that every token can be seen and pointed at. */
function visible(text) {
  if (text === "") return "\u2009"; // a part of the character before it
  const shown = text.replace(/[\u0000-\u0008\u000b-\u001f\u007f]/g, (c) => (c === "\u007f" ? "␡" : String.fromCharCode(0x2400 + c.charCodeAt(0))));
  return /^\s+$/.test(text) ? shown.replaceAll("\n", "↵\n") : shown;
}

/** A token, shaded by the credit that `t` gives it; `frozen` tokens belong to a source's prefix. */
function token(piece, i, t, frozen) {
  const at = piece.at + i, credit = piece.o === "policy" && piece.owner === t && !frozen ? creditAt(t, at) : null;
  const node = el("span", { class: "token" });
  node.textContent = visible(DATA.strings[piece.s[i]]);
  if (credit) {
    const a = credit[2] ?? 0;
    node.classList.add(a > 0 ? "up" : a < 0 ? "down" : "even");
    node.style.setProperty("--strength", Math.min(1, 0.25 + Math.abs(a) / 3).toFixed(2));
  } else node.classList.add("idle");
  node.tip = () => [
    ["token", JSON.stringify(DATA.strings[piece.s[i]]).slice(0, 200)], ["id", piece.ids[i]], ["offset", at],
    piece.p ? ["logprob", piece.p[i] === null ? "–" : `${piece.p[i].toFixed(3)}  (p ${Math.exp(piece.p[i]).toFixed(3)})`] : null,
    ["advantage", credit ? signed(credit[2]) : "not trained here"],
    ["stream", credit ? credit[3] : frozen ? "frozen prefix" : piece.o],
    piece.v ? ["weights", "version " + piece.v] : null,
  ].filter(Boolean);
  return node;
}

/** A picture with the boxes of calls on it; `marks` are {t, call, level}. */
function picture(digest, caption, marks = []) {
  const data = DATA.pictures[digest];
  if (!data) return el("p", { class: "small" }, caption + ": not embedded");
  const frame = el("div", { class: "frame" }, el("img", { src: data.src, alt: caption, width: data.width, height: data.height }));
  const percent = (a, b, side) => [a, b].map((v) => Math.min(100, Math.max(0, (100 * v) / side))).sort((u, v) => u - v);
  for (const { t, call, level } of marks) {
    const [across, down] = state.group.sides[digest];
    const [x1, x2] = percent(call.box[0], call.box[2], across), [y1, y2] = percent(call.box[1], call.box[3], down);
    const box = el("button", {
      type: "button", class: `box ${outcome(t)} ${level}${t.branch ? " grown" : ""}`, tabindex: -1,
      title: `${t.name}: ${outcome(t)}, call ${call.status}`, "data-trajectory": t.id, onclick: () => choose(t),
    }, el("span", { class: y1 < 8 ? "tag below" : "tag" }, t.name + " " + sign[outcome(t)]));
    Object.assign(box.style, { left: x1 + "%", top: y1 + "%", width: x2 - x1 + "%", height: y2 - y1 + "%" });
    frame.append(box);
  }
  return el("figure", { class: "picture" }, frame, el("figcaption", {}, `${caption} · ${data.width}×${data.height}`));
}

/** Calls of `ts` that look at the path's picture number `number`, the chosen one's last (on top). */
function marksOn(ts, number) {
  const family = state.chosen.branches.flatMap((b) => b.continuations);
  const level = (t) => (t === state.chosen ? "chosen" : family.includes(t) ? "related" : "other");
  const rank = { other: 0, related: 1, chosen: 2 };
  return ts.flatMap((t) => t.calls.filter((c) => c.box && c.picture === number).map((call) => ({ t, call, level: level(t) })))
    .sort((a, b) => rank[a.level] - rank[b.level]);
}

/** Path offsets [from, to) of `t` as blocks: thinking, calls, observations, the environment's replies, answer. */
function blocks(group, t, from, to, frozen = false) {
  const whole = pathOf(group, t), out = [], first = promptPictures(group).length;
  const callAt = (at) => t.calls.find((c) => c.start <= at && at < c.end);
  const endOfTurn = (piece, at) => /^<\|im_end\|>\s*$/.test(DATA.strings[piece.s?.[at - piece.at]] ?? "");
  const kindAt = (piece, at) => {
    if (piece.o !== "policy") return piece.o;
    if (callAt(at)) return "call";
    if (block && endOfTurn(piece, at)) return block.kind;
    return t.answerStart !== null && at >= t.answerStart ? "answer" : "thinking";
  };
  let block = null, seen = first;
  const open = (kind, call) => {
    if (block?.kind === kind && block.call === call) return block;
    const title = kind === "call" ? `${call.name ?? "call"} · ${call.status.replaceAll("_", " ")}` : kind;
    block = { kind, call, body: el("div", { class: "tokens" }) };
    out.push(el("div", { class: `block ${kind}${frozen ? " frozen" : ""}` },
      el("div", { class: `kind ${call && call.status !== "ok" ? "bad" : ""}` }, title),
      block.body, call?.error && !frozen ? el("p", { class: "error" }, call.error) : null));
    return block;
  };
  for (const piece of whole) {
    if (piece.picture) {
      const number = seen++;
      if (piece.at < from || piece.at >= to) continue;
      open(kindAt(piece, piece.at)).body.append(picture(piece.picture, `picture ${number}`, marksOn([t], number)));
      continue;
    }
    for (let i = 0; i < piece.ids.length; i++) {
      const at = piece.at + i;
      if (at < from || at >= to) continue;
      const kind = kindAt(piece, at);
      open(kind, callAt(at) ?? (kind === "call" ? block.call : undefined)).body.append(token(piece, i, t, frozen));
    }
  }
  return out;
}

const ending = (t) => [
  t.answer === null ? "no answer" : "answer " + JSON.stringify(t.answer).slice(0, 80),
  t.stop === "answer" ? null : t.stop?.replaceAll("_", " "), t.fault,
].filter((x) => x).join(" · ");

function badge(t) {
  return el("span", { class: "badge " + outcome(t) }, sign[outcome(t)] + (t.reward === null ? " unscored" : " " + t.reward));
}

function column(group, t, from, title) {
  const masked = !creditAt(t, from) && t.credit.length > 0;
  return el("div", { class: "column" + (masked ? " masked" : ""), "data-trajectory": t.id },
    el("button", { type: "button", class: "column-head", onclick: () => choose(t) }, el("b", {}, title), badge(t)),
    el("p", { class: "small" }, ending(t) + (masked ? " · not trained" : "")),
    blocks(group, t, from, Infinity));
}

const cutMark = (text) => el("div", { class: "cut" }, el("span", {}, "✂ " + text));

function branchNote(b) {
  const scored = b.continuations.filter((c) => c.reward !== null), right = scored.filter((c) => c.solved);
  return `cut at token ${b.cut}, call confidence ${b.confidence?.toFixed(2) ?? "–"}: ${right.length} of ${scored.length} continuations right`;
}

function drawDetail(group, t) {
  const advantages = t.credit.map(([start, end, a, stream]) => `${stream} ${start}–${end}: advantage ${signed(a)}`);
  const heldOut = group.step === DATA.heldOut;
  const parts = [
    el("div", { class: "detail-head" }, el("h3", {}, t.branch ? `Continuation ${t.name}` : `Rollout ${t.name}`), badge(t),
      el("span", { class: "small" }, [ending(t), `${t.end - t.start} tokens`, t.id].join(" · "))),
    t.rule ? el("p", { class: "small verdict" }, `Verdict by ${t.rule}` + (t.detail ? ": " + t.detail : "")) : null,
    el("p", { class: "small credit" }, advantages.join("; ") || (heldOut ? "Held out: evaluated, not trained on." : "No credit: nothing of it is trained.")),
    heldOut ? null : el("p", { class: "scale small" }, el("span", { class: "token up" }, "advantage > 0"), el("span", { class: "token even" }, "0"),
      el("span", { class: "token down" }, "< 0"), el("span", { class: "token idle" }, "not trained"), " · point at a token for its numbers"),
  ];
  if (t.branches.length) {
    const shared = [...t.branches].sort((a, b) => a.cut - b.cut);
    let from = 0;
    for (const b of shared) {
      if (b.cut > from) parts.push(...blocks(group, t, from, b.cut));
      from = b.cut;
      parts.push(cutMark(branchNote(b)), el("div", { class: "columns", tabindex: 0 },
        column(group, t, b.cut, `${t.name} as it went on`), b.continuations.map((c) => column(group, c, b.cut, c.name))));
    }
  } else if (t.branch) {
    parts.push(...blocks(group, t, 0, t.branch.cut, true), cutMark(`frozen prefix of ${group.byName.get(t.branch.source).name}; ${branchNote(t.branch)}`),
      ...blocks(group, t, t.branch.cut, Infinity));
  } else parts.push(...blocks(group, t, 0, Infinity));
  byId("detail").replaceChildren(...parts.filter(Boolean));
}

function drawScene(group) {
  const prompt = el("div", { class: "tokens" });
  for (const p of group.prompt) {
    if (p.picture) prompt.append(el("span", { class: "token idle" }, `[picture, ${p.n} tokens]`));
    else p.ids.forEach((_, i) => prompt.append(token(p, i, null, false)));
  }
  byId("scene").replaceChildren(
    el("p", { class: "question" }, group.question), el("p", { class: "small" }, "Truth: ", el("b", {}, group.truth), ` · ${DATA.categories[group.category]}`),
    ...promptPictures(group).map((digest, i) => picture(digest, `picture ${i}`, marksOn(group.order, i))),
    el("p", { class: "small boxes-key" }, el("span", { class: "sample right" }), " right ", el("span", { class: "sample wrong" }), " wrong ",
      group.branches.length ? [el("span", { class: "sample grown wrong" }), " thick: continuation"] : null),
    el("details", {}, el("summary", {}, `Prompt, ${group.promptTokens} tokens`), prompt));
}

function drawList(group) {
  byId("rollouts").replaceChildren(...group.order.map((t) => {
    const head = t.credit.map((c) => signed(c[2])).join(" ");
    const failed = t.calls.some((c) => c.status !== "ok");
    const used = failed ? "call failed" : t.branch ? "" : t.calls.length ? "tool" : "no tool";
    const row = el("div", {
      role: "option", class: `option ${t === state.chosen ? "on" : ""}`, "aria-selected": String(t === state.chosen),
      "data-trajectory": t.id, onclick: () => choose(t),
    }, el("span", { class: "name" }, (t.branch ? "└ " : "") + t.name), badge(t),
      el("span", { class: "answer" }, t.answer ?? "–"), el("span", { class: "small" }, used),
      el("span", { class: "advantage", title: "advantage" }, head),
      t.branches.map((b) => el("span", { class: "branch-note" }, "✂ " + (b.recovered ? "recovered" : "not recovered") + `, ${b.continuations.filter((c) => c.solved).length}/${b.continuations.length}`)));
    row.style.setProperty("--depth", t.depth);
    return row;
  }));
  // Not scrollIntoView, which scrolls the page as well.
  const list = byId("rollouts"), on = list.querySelector(".on");
  if (on) {
    const above = on.offsetTop - list.scrollTop, below = above + on.offsetHeight - list.clientHeight;
    list.scrollTop += Math.min(above, 0) + Math.max(below, 0);
  }
}

function choose(t) {
  state.chosen = t;
  const group = state.group;
  drawScene(group);
  drawList(group);
  drawDetail(group, t);
  const place = new URLSearchParams({ run: DATA.runs[group.run].name, step: stepName(group.step), question: group.id, rollout: t.name });
  if (state.moved) history.replaceState(null, "", "#" + place);
}
