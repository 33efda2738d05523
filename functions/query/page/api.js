// Everything the page asks over HTTP: its configuration, the player's token, the reads of `query`
// and the way in of `on-connect`.

const ROOT = new URL("../", import.meta.url);
const ANSWER_WITHIN_MS = 8_000;
const LOOPBACK = new Set(["127.0.0.1", "localhost", "[::1]"]);

/** An answer other than 2xx. `status` 0: no answer at all. `retryAfterMs` may be null. */
export class ApiError extends Error {
  constructor(status, detail, retryAfterMs = null) {
    super(detail);
    this.status = status;
    this.retryAfterMs = retryAfterMs;
  }
}

/** Ask for JSON. Raises ApiError: on a problem answer, no answer in time, or no JSON. */
async function ask(url, options = {}) {
  let response;
  try {
    response = await fetch(url, {
      cache: "no-store",
      ...options,
      signal: AbortSignal.timeout(ANSWER_WITHIN_MS),
    });
    const told = Date.parse(response.headers.get("Date") ?? "");
    const body = await response.json();
    if (response.ok) return { body, serverTimeMs: Number.isNaN(told) ? null : told };
    throw new ApiError(
      response.status,
      String(body.detail ?? body.title ?? response.statusText),
      secondsToMs(response.headers.get("Retry-After")),
    );
  } catch (error) {
    if (error instanceof ApiError) throw error;
    throw new ApiError(response?.ok === false ? response.status : 0, String(error));
  }
}

function secondsToMs(header) {
  const seconds = Number.parseInt(header ?? "", 10);
  return Number.isNaN(seconds) ? null : seconds * 1_000;
}

/** `{connect_url, token_url}`: where the way in and the token are asked for. */
export async function readConfiguration() {
  return (await ask(new URL("page/config.json", ROOT))).body;
}

/**
 * The player's token, kept in memory alone and renewed before it ends.
 *
 * With a `token_url` the page asks it: `POST {"subject", "roles": ["player"]}` →
 * `{"token", "expires_in"}`. On a loopback address that is the development issuer. Anywhere else
 * it is the operator's own session endpoint: it is asked with the browser's cookies (so across
 * origins it must answer with Access-Control-Allow-Credentials), and it, not the page, decides
 * whose token comes back.
 *
 * Without a `token_url` a page of the same origin that opened this one passes the token:
 * `w.postMessage({type: "leaderboard:token", token}, location.origin)`. It is told
 * `{type: "leaderboard:token-wanted"}` when one is needed, the first and every later time.
 */
export class Tokens {
  #url;
  #subject;
  #held = null;
  #asking = null;
  #passed = null;

  constructor(url, subject) {
    this.#url = url;
    this.#subject = subject;
  }

  /** `{token, subject, endsAtMs}`, good for some seconds at least. */
  async current() {
    if (this.#held && Date.now() < this.#held.renewAtMs) return this.#held;
    this.#asking ??= this.#fresh().finally(() => {
      this.#asking = null;
    });
    return this.#asking;
  }

  /** The token was refused: ask for another one next time. */
  drop() {
    this.#held = null;
  }

  /** A token that a host page passed. Raises ApiError if it is none. */
  pass(token) {
    this.#held = held(token, null);
    this.#passed?.(this.#held);
  }

  async #fresh() {
    if (this.#url) {
      const url = new URL(this.#url, ROOT);
      const { body } = await ask(url, {
        method: "POST",
        credentials: LOOPBACK.has(url.hostname) ? "same-origin" : "include",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ subject: this.#subject, roles: ["player"] }),
      });
      this.#held = held(body.token, body.expires_in);
      return this.#held;
    }
    const arrival = new Promise((resolve) => {
      this.#passed = resolve;
    });
    const host = window.opener ?? (window.parent === window ? null : window.parent);
    host?.postMessage({ type: "leaderboard:token-wanted" }, window.location.origin);
    return arrival;
  }
}

/** Read what a token says of itself. Not checked here: that is the servers' part. */
function held(token, expiresIn) {
  let claims;
  try {
    const part = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
    const bytes = Uint8Array.from(atob(part), (character) => character.charCodeAt(0));
    claims = JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    throw new ApiError(401, "the token is no JSON Web Token");
  }
  // What is left of its life by our own clock, if the issuer told: clocks may differ.
  const endsAtMs =
    typeof expiresIn === "number" ? Date.now() + expiresIn * 1_000 : claims.exp * 1_000;
  const lifeMs = Math.max(0, endsAtMs - Date.now());
  return {
    token,
    subject: String(claims.sub),
    endsAtMs,
    renewAtMs: endsAtMs - Math.min(30_000, lifeMs * 0.2),
  };
}

/** The reads and the way in, with the player's token. */
export class Api {
  #tokens;
  #connectUrl;
  /** Server's clock minus ours, as far as whole seconds can tell. */
  clockOffsetMs = 0;

  constructor(tokens, connectUrl) {
    this.#tokens = tokens;
    this.#connectUrl = connectUrl ? new URL(connectUrl, ROOT).href.replace(/\/$/, "") : "";
  }

  async tournaments() {
    const listed = await this.#get("v1/tournaments");
    return Array.isArray(listed) ? listed : listed.tournaments;
  }

  tournament(tournamentId) {
    return this.#get(`v1/tournaments/${encodeURIComponent(tournamentId)}`);
  }

  standings(tournamentId) {
    return this.#get(`v1/tournaments/${encodeURIComponent(tournamentId)}/standings?limit=100`);
  }

  player(tournamentId, playerId) {
    return this.#get(this.#ownPath(tournamentId, playerId));
  }

  around(tournamentId, playerId) {
    return this.#get(`${this.#ownPath(tournamentId, playerId)}/around?radius=5`);
  }

  /** A fresh way in: `{url, endsAtMs, renewAtMs}`, the times being those of its token. */
  async wayIn(tournamentId) {
    const id = encodeURIComponent(tournamentId);
    const url = `${this.#connectUrl}/v1/tournaments/${id}/connections`;
    const { body, held } = await this.#authorised(url, { method: "POST" });
    return { url: body.url, endsAtMs: held.endsAtMs, renewAtMs: held.renewAtMs };
  }

  #ownPath(tournamentId, playerId) {
    const [tournament, player] = [tournamentId, playerId].map(encodeURIComponent);
    return `v1/tournaments/${tournament}/players/${player}`;
  }

  async #get(path) {
    const { body, serverTimeMs } = await this.#authorised(new URL(path, ROOT), {});
    if (serverTimeMs !== null) {
      const offset = serverTimeMs - Date.now();
      this.clockOffsetMs = Math.abs(offset) > 2_000 ? offset : 0;
    }
    return body;
  }

  async #authorised(url, options) {
    const held = await this.#tokens.current();
    try {
      const headers = { Authorization: `Bearer ${held.token}` };
      return { ...(await ask(url, { ...options, headers })), held };
    } catch (error) {
      if (error.status === 401) this.#tokens.drop();
      throw error;
    }
  }
}
