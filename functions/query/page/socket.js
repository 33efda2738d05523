// The player's one live connection: a ticket, a WebSocket, and what to do when it ends.

const FIRST_WAIT_MS = 250;
const LONGEST_WAIT_MS = 5_000;
const OPEN_WITHIN_MS = 10_000;
const SETTLED_AFTER_MS = 3_000;
/** A frame is due every 5 s; so long without one, and what it would have told is read instead. */
const QUIET_AFTER_MS = 6_000;
const READ_AGAIN_MS = 5_000;
/** A reconnection costs the server more than reads: who is away for a moment gets them first. */
const SILENT_AFTER_MS = 15_000;
const OFFLINE_AFTER_FAILURES = 5;
const CLOCKS_DIFFER_MS = 3_000;
/** Refusals that time or a fresh token may heal; every other 4xx is final. */
const WORTH_ANOTHER_TRY = new Set([401, 408, 425, 429]);

/**
 * Keeps one socket open and tells what arrives.
 *
 * `onState(state, why)`: `connecting`, `live`, `reconnecting`, `offline` (still trying),
 * `replaced` (another window of this player connected; waits for `start`), `refused` (the server
 * said no for good, `why` is its ApiError; waits for `start`). `onOpen()`: a socket has opened:
 * read everything again. `onFrame(frame)`: one parsed message. `onSilent()`: frames are missing on
 * an open socket: read what they would have told. `isDue()`: whether a live server sends a frame
 * every 5 s now.
 */
export class Connection {
  #api;
  #tournamentId;
  #listener;
  #socket = null;
  #way = null;
  /** Whether the socket was told that it will be closed for good, as "410 Gone" says it. */
  #isGone = false;
  #connecting = false;
  #openedOnce = false;
  #failures = 0;
  #lastHeardMs = 0;
  #silentReadMs = 0;
  /** Grows with every attempt, so that an answer to an abandoned one is known as such. */
  #attempt = 0;
  #retry = 0;
  #settle = 0;
  #watch = 0;

  constructor(api, tournamentId, listener) {
    this.#api = api;
    this.#tournamentId = tournamentId;
    this.#listener = listener;
    this.#watch = setInterval(() => this.#check(), 1_000);
    window.addEventListener("online", this.#onOnline);
    window.addEventListener("offline", this.#onOffline);
  }

  /** Connect now, whatever was before: also how a replaced window takes over. */
  start() {
    this.#failures = 0;
    this.#tell(this.#openedOnce ? "reconnecting" : "connecting");
    this.#connect();
  }

  /** End it for good. */
  stop() {
    this.#attempt += 1;
    clearInterval(this.#watch);
    clearTimeout(this.#retry);
    window.removeEventListener("online", this.#onOnline);
    window.removeEventListener("offline", this.#onOffline);
    this.#leave();
  }

  #onOnline = () => {
    if (this.#waitsForUs()) return;
    if (this.#socket) this.#tell("live");
    else this.#connect();
  };

  #onOffline = () => {
    if (!this.#waitsForUs()) this.#tell("offline");
  };

  #state = "";

  #waitsForUs() {
    return this.#state === "replaced" || this.#state === "refused";
  }

  #tell(state, why = null) {
    this.#state = state;
    this.#listener.onState(state, why);
  }

  async #connect() {
    clearTimeout(this.#retry);
    this.#attempt += 1;
    const attempt = this.#attempt;
    this.#connecting = true;
    try {
      const way = await this.#api.wayIn(this.#tournamentId);
      if (attempt !== this.#attempt) return;
      const socket = await opened(way.url, () => attempt === this.#attempt);
      this.#connecting = false;
      this.#leave();
      this.#adopt(socket, way);
    } catch (error) {
      if (attempt !== this.#attempt) return;
      this.#connecting = false;
      this.#failed(error);
    }
  }

  #adopt(socket, way) {
    this.#socket = socket;
    this.#way = way;
    this.#isGone = false;
    this.#openedOnce = true;
    this.#lastHeardMs = Date.now();
    socket.onmessage = (message) => this.#heard(message.data);
    socket.onclose = (close) => this.#closed(close);
    this.#settle = setTimeout(() => {
      this.#failures = 0;
    }, SETTLED_AFTER_MS);
    this.#tell("live");
    this.#listener.onOpen();
  }

  #leave() {
    clearTimeout(this.#settle);
    if (!this.#socket) return;
    this.#socket.onmessage = null;
    this.#socket.onclose = null;
    this.#socket.close(1000);
    this.#socket = null;
  }

  #heard(text) {
    this.#lastHeardMs = Date.now();
    let frame;
    try {
      frame = JSON.parse(text);
    } catch {
      return;
    }
    // Azure Web PubSub closes with 1000 and no reason: there a frame says it first.
    if (frame?.type === "closed") this.#isGone = frame.reason?.startsWith("410") ?? false;
    else if (frame?.tournament_id === this.#tournamentId) this.#listener.onFrame(frame);
  }

  #closed(close) {
    this.#leave();
    if (this.#connecting) {
      // Our own next connection is on its way, and the server closes the older one for it.
      this.#tell("reconnecting");
      return;
    }
    // The gateway ends a socket whose own channel was deleted with "410 Gone". At the end of the
    // token that is a renewal that came late; before it, a newer connection has taken our place.
    const gone = this.#isGone || (close.code === 1001 && close.reason.startsWith("410"));
    if (gone && Date.now() < this.#way.endsAtMs - CLOCKS_DIFFER_MS) {
      clearTimeout(this.#retry);
      this.#tell("replaced");
    } else if (gone) {
      this.#tell("reconnecting");
      this.#connect();
    } else {
      this.#again();
    }
  }

  #failed(error) {
    const status = error.status ?? 0;
    if (status >= 400 && status < 500 && !WORTH_ANOTHER_TRY.has(status)) {
      this.#leave();
      this.#tell("refused", error);
    } else {
      this.#again(error.retryAfterMs ?? 0);
    }
  }

  /** Try again after a wait that doubles, is spread by chance and ends at five seconds. */
  #again(atLeastMs = 0) {
    const ceiling = Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** this.#failures);
    this.#failures += 1;
    const wait = Math.max(atLeastMs, ceiling * (0.5 + Math.random() / 2));
    clearTimeout(this.#retry);
    this.#retry = setTimeout(() => this.#connect(), wait);
    if (this.#socket) return; // a renewal failed; the old socket still lives
    const away = !navigator.onLine || this.#failures > OFFLINE_AFTER_FAILURES;
    this.#tell(away ? "offline" : this.#openedOnce ? "reconnecting" : "connecting");
  }

  /** Once a second: renew before the token ends, and notice a socket that is dead but open. */
  #check() {
    if (!this.#socket || this.#state !== "live") return;
    const nowMs = Date.now();
    const silentMs = this.#listener.isDue() ? nowMs - this.#lastHeardMs : 0;
    if (silentMs > QUIET_AFTER_MS && nowMs - this.#silentReadMs > READ_AGAIN_MS) {
      this.#silentReadMs = nowMs;
      this.#listener.onSilent();
    }
    if (silentMs > SILENT_AFTER_MS) {
      this.#leave();
      this.#tell("reconnecting");
      this.#connect();
    } else if (nowMs >= this.#way.renewAtMs && !this.#connecting && !this.#failures) {
      // The old socket stays until the new one is open: no gap. If that fails, it is tried again
      // with waits, and at the latest when the server closes the old one.
      this.#connect();
    }
  }
}

/** A socket that is open. Rejects when it closes first, takes too long or is wanted no more. */
function opened(url, isWanted) {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(url);
    const late = setTimeout(() => socket.close(), OPEN_WITHIN_MS);
    socket.onopen = () => {
      clearTimeout(late);
      if (isWanted()) {
        socket.onclose = null;
        resolve(socket);
      } else {
        socket.close(1000);
      }
    };
    socket.onclose = () => {
      clearTimeout(late);
      reject(new Error("the gateway closed the socket"));
    };
  });
}
