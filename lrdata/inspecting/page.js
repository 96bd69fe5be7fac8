"use strict";
// A page of `lrdata inspect --html`: rows, segments, and the token under the pointer.

const articles = [...document.querySelectorAll("article")];
const tip = document.getElementById("tip");
const status_ = document.getElementById("status");
const help = document.getElementById("help");
const number = new Intl.NumberFormat("en");
const opened = new Map();
let article = articles[0];
let here = -1; // the segment that the keyboard is at
let turned = null; // the control that has the focus while a row is turned

// ---- what is where ----

// The numbers of a row, read when it is first needed.
function facts(of) {
  if (!opened.has(of)) {
    const data = JSON.parse(of.querySelector("script.tokens").textContent);
    data.ends = new Uint32Array(data.chars.length); // characters up to and with each token
    data.chars.reduce((sum, length, at) => (data.ends[at] = sum + length), 0);
    data.firsts = new Uint32Array(data.lengths.length); // first token of each segment, in the row
    data.lengths.reduce((sum, length, at) => ((data.firsts[at] = sum), sum + length), 0);
    data.gaps = data.jumps.filter((token, run) => { // tokens before which positions are skipped
      const before = run ? data.positions[run - 1] + token - data.jumps[run - 1] : 0;
      return data.positions[run] > before;
    });
    opened.set(of, data);
  }
  return opened.get(of);
}

// The last place of an increasing list whose value is at most `value`; -1 if there is none.
function last(list, value) {
  let low = 0, high = list.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (list[middle] <= value) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

// Where a shown token stands: in the row (-1: dropped), in the window, in which segment.
function place(data, shown) {
  if (!data.whole) {
    const segment = last(data.firsts, shown);
    return { token: shown, segment, offset: data.starts[segment] + shown - data.firsts[segment] };
  }
  const segment = last(data.starts, shown);
  const inside = segment >= 0 ? shown - data.starts[segment] : 0;
  const kept = segment >= 0 && inside < data.lengths[segment];
  return { token: kept ? data.firsts[segment] + inside : -1, segment, offset: shown };
}

function position(data, token) {
  const run = last(data.jumps, token);
  return data.positions[run] + token - data.jumps[run];
}

// ---- the token under the pointer ----

function caret(x, y) {
  if (document.caretPositionFromPoint) {
    const found = document.caretPositionFromPoint(x, y);
    return found && [found.offsetNode, found.offset];
  }
  const range = document.caretRangeFromPoint && document.caretRangeFromPoint(x, y);
  return range && [range.startContainer, range.startOffset];
}

// The shown token at a point of the screen, and the element it is in.
function tokenAt(x, y) {
  const found = caret(x, y);
  if (!found || found[0].nodeType !== Node.TEXT_NODE) return null;
  let [node, offset] = found;
  const span = node.parentElement.closest("[data-t]");
  if (!span) return null;
  if (offset > 0) { // the caret may be behind the character that the pointer is on
    const range = document.createRange();
    range.setStart(node, offset - 1);
    range.setEnd(node, offset);
    const box = range.getBoundingClientRect();
    if (x >= box.left && x < box.right && y >= box.top && y <= box.bottom) offset -= 1;
  }
  const texts = document.createTreeWalker(span, NodeFilter.SHOW_TEXT);
  while (texts.nextNode() && texts.currentNode !== node) offset += texts.currentNode.data.length;
  const { ends } = facts(article);
  const first = Number(span.dataset.t), before = first > 0 ? ends[first - 1] : 0;
  const shown = Math.min(last(ends, before + offset) + 1, ends.length - 1);
  const start = (shown > 0 ? ends[shown - 1] : 0) - before;
  return { shown, node, text: span.textContent.slice(start, ends[shown] - before) };
}

function tell(event) {
  const over = event.target.closest && event.target.closest(".text");
  const found = over ? tokenAt(event.clientX, event.clientY) : null;
  tip.hidden = !found;
  if (!found) return;
  const data = facts(article);
  const at = place(data, found.shown);
  const lines = [JSON.stringify(found.text)];
  if (at.token < 0) {
    lines.push("dropped", `place in the window ${number.format(at.offset)}`);
  } else {
    lines.push(`position ${number.format(position(data, at.token))}`);
    lines.push(`place in the window ${number.format(at.offset)}`);
    lines.push(`token ${number.format(at.token)} of the row, segment ${number.format(at.segment)}`);
    if (found.node.parentElement.localName === "b") lines.push(data.marked);
    const gain = data.lsd ? data.lsd[at.token] : null;
    if (gain !== null) lines.push(`gain from long context ${gain} nats`);
  }
  tip.textContent = lines.join("\n");
  const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
  const above = event.clientY + 22 + tip.offsetHeight > innerHeight;
  tip.style.left = `${Math.max(left, 4)}px`;
  tip.style.top = `${above ? event.clientY - tip.offsetHeight - 12 : event.clientY + 18}px`;
}

let moved = null;
document.addEventListener("mousemove", (event) => {
  if (!moved) requestAnimationFrame(() => { const event_ = moved; moved = null; tell(event_); });
  moved = event;
});
document.addEventListener("mouseleave", () => { tip.hidden = true; });

// ---- the part on the screen ----

function top_() {
  return article.querySelector("header.top").getBoundingClientRect().bottom;
}

// The first shown token below a height of the screen.
function shownFrom(y, step) {
  const text = article.querySelector(".text").getBoundingClientRect();
  for (let tries = 0; tries < 40 && y > 0 && y < innerHeight; tries += 1, y += step) {
    for (const share of [0.02, 0.3, 0.6]) {
      const hit = document.elementFromPoint(text.left + text.width * share, y);
      const span = hit && hit.closest("[data-t]");
      if (!span) continue;
      const found = tokenAt(text.left + text.width * share, y);
      return found ? found.shown : Number(span.dataset.t);
    }
  }
  return null;
}

function markSeen() {
  const data = facts(article);
  const first = shownFrom(top_() + 4, 12), end = shownFrom(innerHeight - 40, -12);
  const bars = article.querySelectorAll(".seen");
  if (first === null || end === null) {
    for (const bar of bars) bar.setAttribute("width", 0);
    return;
  }
  const [from, to] = [place(data, first), place(data, end)];
  const tokens = [from, to].map((at) => (at.token < 0 ? data.firsts[Math.max(at.segment, 0)] : at.token));
  const spans = [
    [from.offset, to.offset, data.window],
    [position(data, tokens[0]), position(data, tokens[1]), data.target],
  ];
  bars.forEach((bar, at) => {
    const [a, b, length] = spans[at];
    bar.setAttribute("x", (a / length) * 10000);
    bar.setAttribute("width", Math.max(((b - a) / length) * 10000, 40));
  });
}

let waiting = false;
function soon() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; markSeen(); });
}
document.addEventListener("scroll", soon, { passive: true });
addEventListener("resize", soon);

// ---- moving ----

function range(first, length) {
  return length === 1 ? number.format(first) : `${number.format(first)}–${number.format(first + length - 1)}`;
}

function go(segment) {
  const data = facts(article);
  here = Math.min(Math.max(segment, 0), data.starts.length - 1);
  for (const old of article.querySelectorAll(".here")) old.classList.remove("here");
  const span = document.getElementById(`r${data.row}-s${here}`);
  span.classList.add("here");
  const target = () => scrollTo(0, scrollY + span.getBoundingClientRect().top - top_() - innerHeight * 0.2);
  target();
  requestAnimationFrame(target); // blocks on the way have their true heights now
  const first = data.firsts[here], length = data.lengths[here];
  const [from, to] = [position(data, first), position(data, first + length - 1)];
  status_.textContent = `segment ${number.format(here)} of ${number.format(data.starts.length)}: ` +
    `${number.format(length)} tokens, in the window ${range(data.starts[here], length)}, ` +
    `positions ${number.format(from)}–${number.format(to)}`;
  soon();
}

// The segment that a step begins from: the one that is marked, if it is in sight.
function current(forward) {
  const marked = article.querySelector(".here");
  const box = marked && marked.getBoundingClientRect();
  if (box && box.bottom > top_() && box.top < innerHeight) return here;
  const first = shownFrom(top_() + 4, 12);
  if (first === null) return forward ? -1 : 1;
  const at = place(facts(article), first);
  return forward ? at.segment - (at.token >= 0 ? 1 : 0) : at.segment + 1;
}

// To the next segment (step 1) or the one before (-1) with a gap before it or in it.
function gap(step) {
  const { firsts, gaps } = facts(article);
  const segment = current(step > 0);
  const edge = firsts[step > 0 ? segment + 1 : segment] ?? Infinity;
  const token = gaps[last(gaps, edge - 1) + (step > 0 ? 1 : 0)];
  if (token !== undefined) go(last(firsts, token));
  else status_.textContent = step > 0 ? "no further gap in this row" : "no gap before this one";
}

function show(index) {
  if (!articles[index]) {
    const edge = index < 0 ? articles[0] : articles[articles.length - 1];
    status_.textContent = `${index < 0 ? "no row before" : "no row after"} row ${edge.dataset.row} ` +
      "in this file; --row and --rows say which rows are";
    return;
  }
  article = articles[index];
  here = -1;
  for (const other of articles) other.hidden = other !== article;
  if (turned) { // what had the focus is hidden now; at the last row there is no such link
    const same = article.querySelector(`[data-key="${turned}"]`);
    (same || article.querySelector("[data-key]")).focus({ preventScroll: true });
    turned = null;
  }
  document.title = article.dataset.title;
  scrollTo(0, 0);
  tip.hidden = true;
  status_.textContent = article.dataset.hint;
  soon();
}

function turn(step) {
  const index = articles.indexOf(article) + step;
  const focused = document.activeElement && document.activeElement.closest("[data-key]");
  turned = articles[index] && focused ? focused.dataset.key : null;
  if (articles[index]) location.hash = articles[index].id;
  else show(index);
}

// The row that the address names, or the row of a document or segment that it names.
function fromAddress() {
  const named = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
  const owner = named && named.closest("article");
  if (!owner || owner === article) return;
  show(articles.indexOf(owner));
  if (named === owner) return;
  named.scrollIntoView();
  requestAnimationFrame(() => named.scrollIntoView()); // blocks above have their true heights now
}
addEventListener("hashchange", fromAddress);

const keys = {
  n: () => turn(1), ArrowRight: () => turn(1),
  p: () => turn(-1), ArrowLeft: () => turn(-1),
  j: () => go(current(true) + 1),
  k: () => go(current(false) - 1),
  J: () => gap(1),
  K: () => gap(-1),
  d: () => { document.body.classList.toggle("kept-only"); if (here >= 0) go(here); soon(); },
  m: () => { document.body.classList.toggle("mono"); if (here >= 0) go(here); soon(); },
  "?": () => help.showModal(),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || help.open || !keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
});

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-key]");
  if (button) {
    keys[button.dataset.key]();
    if (event.detail > 0) button.blur(); // a mouse: the keys are for the page again
    return;
  }
  const link = event.target.closest("a[data-key]"); // the browser follows it
  if (link) { turned = link.dataset.key; return; }
  const ruler = event.target.closest(".ruler");
  if (!ruler) return;
  const data = facts(article), box = ruler.getBoundingClientRect();
  const share = (event.clientX - box.left) / box.width;
  if (event.clientY < box.top + box.height / 2) {
    go(last(data.starts, share * data.window));
  } else { // positions increase along a row, but in replay
    const starts = Array.from(data.firsts, (token) => position(data, token));
    go(last(starts, share * data.target));
  }
});

document.body.classList.add("scripted");
for (const other of articles) other.hidden = other !== article;
status_.textContent = article.dataset.hint;
fromAddress();
soon();
