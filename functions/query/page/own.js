// The player's own standing, from whichever source knows it newest, and the toast that tells of it.

import { Newest, distanceIn, milestoneOf, moveTold, percentileOf } from "./standing.js";

const TOAST_APART_MS = 2_000;
const TOAST_SHOWN_MS = 6_000;

/**
 * Where the player stands. `rank` null: not on the board; undefined: not known yet.
 *
 * `position` frames come when the player's own event moved them; when others push them down, the
 * `top` frame shows it inside the top 100, and a read outside.
 */
export class OwnStanding {
  rank;
  score = null;
  distance = null;
  name = null;
  players = null;
  /** A milestone that a `position` frame named since the last toast. */
  milestone = null;
  #newest = new Newest();
  #playerId;

  constructor(playerId) {
    this.#playerId = playerId;
  }

  get percentile() {
    return this.rank && this.players ? percentileOf(this.rank, this.players) : null;
  }

  get sequence() {
    return this.#newest.sequence;
  }

  /** A `position` frame. Whether it told anything new. */
  position(frame) {
    if (!this.#newest.accepts(frame.sequence)) return false;
    this.rank = frame.new_rank;
    this.score = frame.score;
    this.distance = frame.distance;
    this.milestone = frame.milestone ?? this.milestone;
    return true;
  }

  /** The answer of `/players/{p}`. Whether it told anything new. */
  read(answer) {
    this.name = answer.display_name ?? this.name;
    this.players = answer.players ?? this.players;
    if (!this.#newest.accepts(answer.sequence)) return false;
    this.rank = answer.rank ?? null;
    this.score = answer.score ?? null;
    this.distance = answer.distance ?? null;
    return true;
  }

  /** The board does not have the player, as a read says that began at this sequence. */
  absent(sequenceBefore) {
    if (sequenceBefore !== this.sequence) return false;
    this.rank = null;
    return true;
  }

  /** The first rows of the board. Whether the player's place must be asked for now. */
  top(rows, players, sequence) {
    this.players = players;
    const index = rows.findIndex((row) => row.playerId === this.#playerId);
    if (index < 0) {
      const left = typeof this.rank === "number" && this.rank <= rows.length;
      return left && sequence > this.sequence;
    }
    this.name = rows[index].name;
    if (this.#newest.accepts(sequence)) {
      this.rank = rows[index].rank;
      this.score = rows[index].score;
      this.distance = distanceIn(rows, index);
    }
    return false;
  }
}

/**
 * Tells the player's moves, at most one every two seconds: what happens meanwhile is told as one
 * move. The element is a polite live region, the only one of the page.
 */
export class Toast {
  #element;
  #told;
  #lastMs = 0;
  #later = 0;
  #hide = 0;

  constructor(element) {
    this.#element = element;
  }

  /** The player's rank as known now; the first one is taken silently. */
  rank(rank, milestone) {
    if (rank === undefined) return;
    if (this.#told === undefined) this.#told = rank;
    clearTimeout(this.#later);
    if (rank === this.#told) return;
    const wait = this.#lastMs + TOAST_APART_MS - Date.now();
    if (wait > 0) this.#later = setTimeout(() => this.#tell(rank, milestone), wait);
    else this.#tell(rank, milestone);
  }

  clear() {
    clearTimeout(this.#later);
    clearTimeout(this.#hide);
    this.#told = undefined;
    this.#empty();
  }

  #tell(rank, milestone) {
    const move = moveTold(this.#told, rank);
    this.#told = rank;
    this.#lastMs = Date.now();
    this.#element.textContent = move.text;
    this.#element.dataset.direction = move.direction;
    const reached = move.milestone ?? (move.direction === "up" ? milestone : null);
    if (reached) this.#element.dataset.milestone = reached;
    else delete this.#element.dataset.milestone;
    this.#element.dataset.shown = "";
    clearTimeout(this.#hide);
    this.#hide = setTimeout(() => this.#empty(), TOAST_SHOWN_MS);
  }

  #empty() {
    delete this.#element.dataset.shown;
    this.#element.textContent = "";
  }
}

/** The pinned card with the player's own standing. */
export class OwnCard {
  #card = document.getElementById("own-row");
  #playerId;

  constructor(playerId) {
    this.#playerId = playerId;
    this.#card.dataset.player = playerId;
  }

  show(own, format) {
    const ranked = typeof own.rank === "number";
    this.#card.dataset.rank = ranked ? String(own.rank) : "";
    this.#card.dataset.score = ranked ? String(own.score) : "";
    this.#card.dataset.percentile = own.percentile ?? "";
    this.#card.dataset.distance = (ranked ? own.distance : null) ?? "";
    this.#card.dataset.milestone = (ranked && milestoneOf(null, own.rank)) || "";
    setText("own-rank", ranked ? String(own.rank) : "–");
    setText("own-name", own.name ?? this.#playerId);
    setText("own-score", ranked ? format(own.score) : "");
    setText("own-gap", gapTold(own, format));
    setText("own-distance", distanceTold(own, format));
    const share = ranked && own.percentile !== null ? Math.floor(own.percentile * 10) / 10 : null;
    setText("own-percentile", share === null ? "–" : `${share.toLocaleString()} %`);
  }
}

function distanceTold(own, format) {
  if (typeof own.rank !== "number") return "–";
  if (own.rank === 1) return "You lead";
  if (own.distance === null) return "–";
  return own.distance === 0 ? "Level" : format(own.distance);
}

/** The same in one line, for the narrow bar. */
function gapTold(own, format) {
  if (own.rank === undefined) return "";
  if (own.rank === null) return "Not on the board yet";
  if (own.rank === 1) return "You lead";
  if (own.distance === null) return "";
  if (own.distance === 0) return `Level with rank ${own.rank - 1}`;
  return `${format(own.distance)} to rank ${own.rank - 1}`;
}

/** Set an element's text, touching the document only when it changes. */
export function setText(id, text) {
  const element = document.getElementById(id);
  if (element.textContent !== text) element.textContent = text;
}
