// The page: who plays, which tournament, and what to say when it can't be shown.

import { Api, Tokens, readConfiguration } from "./api.js";
import { setText } from "./own.js";
import { Session } from "./session.js";

const PLAYER_KEY = "leaderboard.player";
const ID = /^[A-Za-z0-9_-]{1,64}$/;
const STATE_ORDER = ["running", "scheduled", "ended", "cancelled"];
const UNKNOWN_LAST = STATE_ORDER.length + 1;
const CONNECTION_TEXTS = {
  connecting: "Connecting",
  live: "Live",
  reconnecting: "Reconnecting",
  offline: "Offline",
  replaced: "Open elsewhere",
  refused: "Not connected",
};
const element = (id) => document.getElementById(id);

let session = null;
let api = null;
let playerId = null;
let tokens = null;

/** Show one part: `loading`, `sign-in`, `notice` or `board`. */
function phase(name) {
  document.body.dataset.phase = name;
  element("sign-in").hidden = name !== "sign-in";
  element("main").hidden = name !== "board";
  if (name !== "notice") element("notice").hidden = true;
}

/** Say something that stands in the way, with at most one thing to do about it. */
function notice(title, text, action = null) {
  setText("notice-title", title);
  setText("notice-text", text);
  const button = element("notice-action");
  button.hidden = action === null;
  if (action) {
    button.textContent = action.label;
    button.onclick = () => {
      element("notice").hidden = true;
      action.run();
    };
  }
  element("notice").hidden = false;
}

function connectionChanged(state, why) {
  element("connection-state").dataset.state = state;
  setText("connection-text", CONNECTION_TEXTS[state]);
  if (state === "replaced") {
    notice("Open in another window", "This board is live in the window that you opened last.", {
      label: "Use this window",
      run: () => session.resume(),
    });
  } else if (state === "refused") {
    notice("The board can't be followed", why.message, {
      label: "Try again",
      run: () => session.resume(),
    });
  } else {
    element("notice").hidden = true;
  }
}

function wanted(name) {
  const value = new URLSearchParams(window.location.search).get(name);
  return value !== null && ID.test(value) ? value : null;
}

function follow(tournamentId) {
  session?.stop();
  session = new Session(api, tournamentId, playerId, connectionChanged);
  const select = element("tournament");
  select.value = tournamentId;
  if (select.value !== tournamentId) {
    select.add(new Option(tournamentId, tournamentId, false, true));
  }
  phase("board");
  session.start();
}

function offer(tournaments) {
  const options = tournaments.map((one) => {
    const suffix = one.state === "running" ? "" : ` (${one.state})`;
    return new Option(`${one.name ?? one.tournament_id}${suffix}`, one.tournament_id);
  });
  element("tournament").replaceChildren(...options);
  element("choice").hidden = options.length < 2;
  document.body.dataset.choice = options.length < 2 ? "one" : "many";
}

/** Running first, then those to come, then the past; each in the order of the list. */
function sorted(tournaments) {
  const place = ({ state }) => (STATE_ORDER.indexOf(state) + UNKNOWN_LAST) % UNKNOWN_LAST;
  return [...tournaments].sort((one, other) => place(one) - place(other));
}

async function chooseTournament() {
  let tournaments;
  try {
    tournaments = sorted(await api.tournaments());
  } catch (error) {
    phase("notice");
    notice("The tournaments can't be read", error.message, {
      label: "Try again",
      run: chooseTournament,
    });
    return;
  }
  offer(tournaments);
  const chosen = wanted("tournament") ?? tournaments[0]?.tournament_id;
  if (chosen) {
    follow(chosen);
  } else {
    phase("notice");
    notice("No tournament yet", "As soon as one is scheduled, its board shows here.", {
      label: "Look again",
      run: chooseTournament,
    });
  }
}

async function begin(configuration) {
  tokens = new Tokens(configuration.token_url, playerId);
  api = new Api(tokens, configuration.connect_url);
  if (configuration.token_url === null) {
    phase("notice");
    notice(
      "Waiting for your session",
      "Open this board from your account. The page that opens it passes the session on: " +
        'postMessage({type: "leaderboard:token", token}) from the same origin.',
    );
  }
  try {
    // The token says who plays: an operator's session outranks the address bar.
    playerId = (await tokens.current()).subject;
  } catch (error) {
    phase("notice");
    notice("You could not be signed in", error.message, {
      label: "Try again",
      run: () => begin(configuration),
    });
    return;
  }
  setText("signed-in-as", playerId);
  element("sign-out").hidden = configuration.token_url === null;
  await chooseTournament();
}

function signIn() {
  phase("sign-in");
  element("connection-state").hidden = true;
  element("player").focus();
}

/** Put one parameter in the address bar, so that the page can be shared and reloaded. */
function remember(name, value) {
  const url = new URL(window.location.href);
  if (value === null) url.searchParams.delete(name);
  else url.searchParams.set(name, value);
  window.history.replaceState(null, "", url);
}

function passToken(event) {
  if (event.origin !== window.location.origin || event.data?.type !== "leaderboard:token") return;
  try {
    tokens?.pass(event.data.token);
  } catch (error) {
    notice("That session can't be used", error.message);
  }
}

function wire(configuration) {
  if (configuration.token_url === null) window.addEventListener("message", passToken);
  element("sign-in-form").addEventListener("submit", (event) => {
    event.preventDefault();
    playerId = element("player").value;
    window.sessionStorage.setItem(PLAYER_KEY, playerId);
    remember("player", playerId);
    element("connection-state").hidden = false;
    phase("loading");
    begin(configuration);
  });
  element("sign-out").addEventListener("click", () => {
    session?.stop();
    window.sessionStorage.removeItem(PLAYER_KEY);
    remember("player", null);
    signIn();
  });
  element("choice").addEventListener("submit", (event) => event.preventDefault());
  element("tournament").addEventListener("change", (event) => {
    remember("tournament", event.target.value);
    follow(event.target.value);
  });
  for (const button of document.querySelectorAll("[data-show]")) {
    button.addEventListener("click", () => {
      document.body.dataset.view = button.dataset.show;
      for (const one of document.querySelectorAll("[data-show]")) {
        one.setAttribute("aria-pressed", String(one === button));
      }
    });
  }
}

async function main() {
  let configuration;
  try {
    configuration = await readConfiguration();
  } catch (error) {
    phase("notice");
    notice("The board can't be reached", error.message, { label: "Try again", run: main });
    return;
  }
  wire(configuration);
  playerId = wanted("player") ?? window.sessionStorage.getItem(PLAYER_KEY);
  if (playerId) window.sessionStorage.setItem(PLAYER_KEY, playerId);
  if (playerId || configuration.token_url === null) await begin(configuration);
  else signIn();
}

await main();
