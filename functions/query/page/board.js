// A table of standings whose rows glide to their new places.

const GLIDE_MS = 450;
const ARROW_MS = 6_000;
const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
const MEDALS = { 1: "gold", 2: "silver", 3: "bronze" };

/**
 * Shows rows in a `<table>`, keyed by player: a player keeps their `<tr>` wherever they move, so
 * nothing but what changed is touched. Every text is set as text, never as markup.
 */
export class Board {
  #body;
  #ownId;
  #rows = new Map();

  constructor(table, ownId) {
    this.#body = table.tBodies[0];
    this.#ownId = ownId;
  }

  clear() {
    this.#rows.clear();
    this.#body.replaceChildren();
  }

  /** Show exactly these rows; `format` turns a score into text. */
  show(standings, format) {
    const visible = this.#body.getClientRects().length > 0;
    const before = visible && !calm.matches ? this.#places() : new Map();
    const isFirst = this.#rows.size === 0;
    this.#removeAllBut(new Set(standings.map((standing) => standing.playerId)));
    let next = this.#body.firstElementChild;
    for (const standing of standings) {
      const row = this.#rows.get(standing.playerId) ?? this.#added(standing.playerId);
      row.update(standing, format, isFirst);
      // Only rows that are out of order move in the document: the others are left alone.
      if (row.element === next) next = next.nextElementSibling;
      else this.#body.insertBefore(row.element, next);
    }
    this.#glide(before, isFirst);
  }

  #removeAllBut(staying) {
    for (const [playerId, row] of this.#rows) {
      if (staying.has(playerId)) continue;
      row.element.remove();
      this.#rows.delete(playerId);
    }
  }

  #added(playerId) {
    const row = new Row(playerId, playerId === this.#ownId);
    this.#rows.set(playerId, row);
    return row;
  }

  #places() {
    const places = new Map();
    for (const { element } of this.#rows.values()) {
      places.set(element, element.getBoundingClientRect().top);
    }
    // The page itself must not look like movement: measure against the table.
    const origin = this.#body.getBoundingClientRect().top;
    for (const [element, top] of places) places.set(element, top - origin);
    return places;
  }

  /** FLIP: from where each row was seen, also in mid-air, to where it is now. */
  #glide(before, isFirst) {
    if (before.size === 0 || isFirst) return;
    for (const { element } of this.#rows.values()) {
      for (const animation of element.getAnimations()) animation.cancel();
    }
    const after = this.#places();
    const height = window.innerHeight;
    const origin = this.#body.getBoundingClientRect().top;
    for (const [element, top] of after) {
      const from = before.get(element);
      if (from === undefined) {
        element.animate([{ opacity: 0 }, { opacity: 1 }], { duration: GLIDE_MS });
        continue;
      }
      const seen = Math.max(from, top) + origin > -80 && Math.min(from, top) + origin < height + 80;
      if (Math.abs(from - top) < 1 || !seen) continue;
      // Who rises passes in front of who falls.
      const zIndex = from > top ? 2 : 0;
      element.animate(
        [
          { transform: `translateY(${from - top}px)`, zIndex },
          { transform: "translateY(0)", zIndex },
        ],
        { duration: GLIDE_MS, easing: "cubic-bezier(0.2, 0.7, 0.2, 1)" },
      );
    }
  }
}

/** One player's row. */
class Row {
  #rank = null;
  #score = null;
  #name = null;
  #rankText = document.createElement("span");
  #arrow = document.createElement("span");
  #nameText = document.createElement("bdi");
  #scoreCell = document.createElement("td");
  #fade = 0;

  constructor(playerId, isOwn) {
    this.element = document.createElement("tr");
    this.element.dataset.player = playerId;
    const rank = document.createElement("td");
    rank.className = "rank";
    this.#rankText.className = "rank-number";
    this.#arrow.className = "arrow";
    this.#arrow.setAttribute("aria-hidden", "true");
    rank.append(this.#rankText, this.#arrow);
    const player = document.createElement("th");
    player.scope = "row";
    player.className = "player";
    const who = document.createElement("span");
    who.className = "who";
    who.append(this.#nameText);
    player.append(who);
    if (isOwn) {
      this.element.dataset.own = "";
      const you = document.createElement("span");
      you.className = "you";
      you.textContent = "You";
      who.append(you);
    }
    this.#scoreCell.className = "score";
    this.element.append(rank, player, this.#scoreCell);
  }

  update({ rank, name, score }, format, isFirst) {
    if (rank !== this.#rank) {
      if (!isFirst && this.#rank !== null) this.#point(rank < this.#rank ? "up" : "down", rank);
      this.#rank = rank;
      this.#rankText.textContent = String(rank);
      this.element.dataset.rank = String(rank);
      if (rank in MEDALS) this.element.dataset.medal = MEDALS[rank];
      else delete this.element.dataset.medal;
    }
    if (name !== this.#name) {
      this.#name = name;
      this.#nameText.textContent = name;
      this.#nameText.title = name;
    }
    const scoreText = format(score);
    if (score !== this.#score || this.#scoreCell.textContent !== scoreText) {
      this.#score = score;
      this.#scoreCell.textContent = scoreText;
      this.element.dataset.score = String(score);
    }
  }

  #point(direction, rank) {
    this.element.dataset.move = direction;
    this.#arrow.textContent = `${direction === "up" ? "▲" : "▼"}${Math.abs(rank - this.#rank)}`;
    clearTimeout(this.#fade);
    this.#fade = setTimeout(() => {
      delete this.element.dataset.move;
      this.#arrow.textContent = "";
    }, ARROW_MS);
  }
}
