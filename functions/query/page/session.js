// One player following one tournament: what is read, what arrives, and what the page shows of it.

import { Board } from "./board.js";
import { OwnCard, OwnStanding, Toast, setText } from "./own.js";
import { Connection } from "./socket.js";
import { Newest, distanceIn, rowOf, scoreFormat, spanTold } from "./standing.js";

const OWN_EVERY_MS = 10_000;
/** Whoever missed a frame is level again within 5 s. */
const AROUND_EVERY_MS = 4_500;
const AROUND_APART_MS = 3_000;
const QUIET_EVERY_MS = 20_000;
const AROUND_RADIUS = 5;
const STATES = {
  scheduled: "Starts soon",
  running: "Running",
  ended: "Ended",
  cancelled: "Cancelled",
};

/** Follows until `stop`. `onConnection(state, why)` as Connection tells it. */
export class Session {
  #api;
  #tournamentId;
  #playerId;
  #connection;
  #onConnection;
  #tournament = {};
  #format = scoreFormat(null);
  #rows = [];
  #players = null;
  #newestTop = new Newest();
  #newestTerms = new Newest();
  #own;
  #toast = new Toast(document.getElementById("toast"));
  #board;
  #around;
  #card;
  #aroundRead = { sequence: -1, atMs: 0, rows: [] };
  #ownRead = { atMs: 0, busy: false };
  #quietReadMs = 0;
  #tick = 0;
  #stopped = false;

  constructor(api, tournamentId, playerId, onConnection) {
    this.#api = api;
    this.#tournamentId = tournamentId;
    this.#playerId = playerId;
    this.#onConnection = onConnection;
    this.#own = new OwnStanding(playerId);
    this.#card = new OwnCard(playerId);
    this.#board = new Board(document.getElementById("standings"), playerId);
    this.#around = new Board(document.getElementById("around-standings"), playerId);
    this.#connection = new Connection(api, tournamentId, {
      onState: (state, why) => {
        document.body.dataset.connection = state;
        onConnection(state, why);
      },
      onOpen: () => this.#readAll(),
      onSilent: () => this.#readAll(),
      onFrame: (frame) => this.#frame(frame),
      isDue: () => this.#tournament.state === "running",
    });
  }

  /** Show what HTTP knows at once; the socket comes beside it. */
  start() {
    this.#board.clear();
    this.#around.clear();
    this.#render();
    this.#readAll();
    this.#connection.start();
    this.#tick = setInterval(() => this.#everySecond(), 1_000);
  }

  /** Connect again on the player's wish: take over from another window, or after a refusal. */
  resume() {
    this.#connection.start();
  }

  stop() {
    this.#stopped = true;
    clearInterval(this.#tick);
    this.#connection.stop();
    this.#toast.clear();
  }

  // reads

  async #readAll() {
    await Promise.all([this.#readTournament(), this.#readStandings(), this.#readOwn()]);
    await this.#readAround();
  }

  /** Read, and carry on without it if that fails: the next read or frame brings the same. */
  async #read(reading, use, missing = () => {}) {
    try {
      const answer = await reading;
      if (!this.#stopped) use(answer);
    } catch (error) {
      if (error.status === undefined) throw error; // no answer of a server: a bug of ours
      if (!this.#stopped && error.status === 404) missing();
    }
    if (!this.#stopped) this.#render();
  }

  #readTournament() {
    return this.#read(this.#api.tournament(this.#tournamentId), (told) => this.#terms(told));
  }

  #readStandings() {
    return this.#read(this.#api.standings(this.#tournamentId), (answer) =>
      this.#top(answer.standings, answer.players, answer.sequence),
    );
  }

  async #readOwn() {
    if (this.#ownRead.busy) return;
    const before = this.#own.sequence;
    this.#ownRead = { atMs: Date.now(), busy: true };
    await this.#read(
      this.#api.player(this.#tournamentId, this.#playerId),
      (answer) => this.#own.read(answer),
      () => this.#own.absent(before),
    );
    this.#ownRead.busy = false;
  }

  /** The neighbours: out of the rows that we have, where those reach, else by a read. */
  async #readAround() {
    const { rank } = this.#own;
    if (typeof rank !== "number" || this.#reaches(rank)) return;
    const asked = Math.max(this.#newestTop.sequence, this.#own.sequence);
    this.#aroundRead = { ...this.#aroundRead, sequence: asked, atMs: Date.now() };
    await this.#read(this.#api.around(this.#tournamentId, this.#playerId), (answer) => {
      const rows = answer.standings.map(rowOf);
      const own = rows.findIndex((row) => row.playerId === this.#playerId);
      if (own < 0) return;
      this.#aroundRead.rows = rows;
      this.#own.read({
        ...answer.standings[own],
        distance: distanceIn(rows, own),
        players: answer.players,
        sequence: answer.sequence,
      });
    });
  }

  /** Whether the neighbours of this rank are all among the rows that we have. */
  #reaches(rank) {
    return rank + AROUND_RADIUS <= this.#rows.length || this.#rows.length === this.#players;
  }

  #everySecond() {
    this.#renderClock();
    const nowMs = Date.now();
    const state = document.body.dataset.connection;
    if (document.hidden || state === "replaced" || state === "refused") return;
    const unknown = this.#own.rank === undefined;
    if (unknown && nowMs - this.#ownRead.atMs > OWN_EVERY_MS) this.#readOwn();
    // Nobody tells a player outside the top 100 that others have passed them: this read does. It
    // comes sooner after a move of their own.
    const sinceMs = nowMs - this.#aroundRead.atMs;
    const hasMoved = this.#own.sequence > this.#aroundRead.sequence;
    const isOld = this.#newestTop.sequence > this.#aroundRead.sequence;
    if (sinceMs > AROUND_APART_MS && hasMoved) this.#readAround();
    else if (sinceMs > AROUND_EVERY_MS && isOld) this.#readAround();
    // Before the start and around the end there may be no frames that tell of the change.
    const over = this.#endsInMs() < 0;
    const quiet = this.#tournament.state !== "running" || over;
    if (quiet && nowMs - this.#quietReadMs > (over ? 5_000 : QUIET_EVERY_MS)) {
      this.#quietReadMs = nowMs;
      if (!["ended", "cancelled"].includes(this.#tournament.state)) this.#readTournament();
    }
  }

  // what arrives

  #frame(frame) {
    if (frame.type === "top") {
      this.#top(frame.standings, frame.players, frame.version ?? frame.sequence);
    } else if (frame.type === "position") {
      this.#own.position(frame);
    } else if (frame.type === "tournament") {
      this.#terms(frame);
      if (frame.state === "ended") this.#readAll();
    }
    this.#render();
  }

  #terms(told) {
    const sequence = told.sequence ?? told.version;
    // The same sequence is told again by another source, perhaps with more fields.
    if (sequence !== undefined && sequence !== this.#newestTerms.sequence) {
      if (!this.#newestTerms.accepts(sequence)) return;
    }
    this.#tournament = { ...this.#tournament, ...told };
    if (this.#players === null && typeof told.players === "number") this.#players = told.players;
    this.#format = scoreFormat(this.#tournament.rules);
  }

  #top(standings, players, sequence) {
    if (!this.#newestTop.accepts(sequence)) return;
    this.#rows = standings.map(rowOf);
    this.#players = players;
    if (this.#own.top(this.#rows, players, sequence)) this.#readOwn();
    this.#board.show(this.#rows, this.#format);
  }

  // what shows

  #render() {
    const { name, state, rules } = this.#tournament;
    setText("tournament-name", name ?? this.#tournamentId);
    const pill = document.getElementById("tournament-state");
    pill.hidden = !state;
    pill.dataset.state = state ?? "";
    setText("tournament-state", STATES[state] ?? state ?? "");
    const players = this.#players;
    setText("player-count", players === null ? "" : playersTold(players));
    document.getElementById("board-empty").hidden = this.#rows.length > 0 || players === null;
    document.getElementById("standings").dataset.sequence = String(this.#newestTop.sequence);
    if (rules && this.#rows.length) this.#formatRows();
    this.#card.show(this.#own, this.#format);
    this.#renderAround();
    this.#toast.rank(this.#own.rank, this.#own.milestone);
    this.#own.milestone = null;
    this.#renderClock();
    const place = typeof this.#own.rank === "number" ? `#${this.#own.rank} · ` : "";
    document.title = `${place}${name ?? this.#tournamentId} – Leaderboard`;
  }

  #formatted = null;

  /** The rules came after the rows: say the scores once more, their way. */
  #formatRows() {
    const kind = JSON.stringify([this.#tournament.rules.scoring, this.#tournament.rules.operator]);
    if (kind === this.#formatted) return;
    this.#formatted = kind;
    this.#board.show(this.#rows, this.#format);
  }

  #renderAround() {
    const { rank } = this.#own;
    const ranked = typeof rank === "number";
    document.getElementById("around-empty").hidden = ranked;
    document.getElementById("around-standings").hidden = !ranked;
    if (!ranked) return;
    if (!this.#reaches(rank)) {
      this.#around.show(this.#aroundRead.rows, this.#format);
      return;
    }
    // A `position` frame can be ahead of the rows by a moment: wait for those, they are coming.
    const own = this.#rows.findIndex((row) => row.playerId === this.#playerId);
    if (own < 0 || this.#newestTop.sequence < this.#own.sequence) return;
    const near = (row, index) => Math.abs(index - own) <= AROUND_RADIUS;
    this.#around.show(this.#rows.filter(near), this.#format);
  }

  #endsInMs() {
    const nowMs = Date.now() + this.#api.clockOffsetMs;
    return Date.parse(this.#tournament.ends_at) - nowMs;
  }

  #renderClock() {
    const { state, starts_at: startsAt, ends_at: endsAt } = this.#tournament;
    const nowMs = Date.now() + this.#api.clockOffsetMs;
    let text = "";
    if (state === "scheduled" && startsAt) {
      const left = Date.parse(startsAt) - nowMs;
      text = left > 0 ? `Starts in ${spanTold(left)}` : "Starting";
    } else if (state === "running" && endsAt) {
      const left = Date.parse(endsAt) - nowMs;
      text = left > 0 ? `Ends in ${spanTold(left)}` : "Time is up, counting the last results";
    } else if (state === "ended") {
      text = "Final standings";
    }
    setText("countdown", text);
  }
}

function playersTold(players) {
  return players === 1 ? "1 player" : `${players.toLocaleString()} players`;
}
