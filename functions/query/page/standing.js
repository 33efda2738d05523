// What is newer, and what follows from it: pure, no document, no network.

const BELIEVE_LOWER_AFTER_MS = 30_000;

/**
 * Lets through what is newer than anything before.
 *
 * Sequences only grow, with one exception: a log that was made anew starts again from 0. So when
 * nothing but lower ones came for half a minute, the lower ones are the truth.
 */
export class Newest {
  sequence = -1;
  #lowerSinceMs = null;

  accepts(sequence, nowMs = Date.now()) {
    if (!Number.isFinite(sequence) || sequence === this.sequence) {
      this.#lowerSinceMs = null;
      return false;
    }
    if (sequence < this.sequence) {
      this.#lowerSinceMs ??= nowMs;
      if (nowMs - this.#lowerSinceMs < BELIEVE_LOWER_AFTER_MS) return false;
    }
    this.#lowerSinceMs = null;
    this.sequence = sequence;
    return true;
  }
}

/** `{rank, playerId, name, score}` of a row, as a frame or as HTTP says it. */
export function rowOf(standing) {
  const [rank, playerId, name, score] = Array.isArray(standing)
    ? standing
    : [standing.rank, standing.player_id, standing.display_name, standing.score];
  return { rank, playerId, name: name || "Player", score };
}

/** Points to the next rank up in a list that starts at its first row; null at its top. */
export function distanceIn(rows, index) {
  return index > 0 ? Math.abs(rows[index - 1].score - rows[index].score) : null;
}

/** The share of the other players that a rank is ahead of, in percent (two decimals). */
export function percentileOf(rank, players) {
  if (players <= 1) return 100;
  return Math.round((10_000 * (players - rank)) / (players - 1)) / 100;
}

/** The better of the milestones that a move passes: `top_10`, `top_100` or null. */
export function milestoneOf(oldRank, newRank) {
  const from = oldRank ?? Infinity;
  if (newRank !== null && newRank <= 10 && from > 10) return "top_10";
  if (newRank !== null && newRank <= 100 && from > 100) return "top_100";
  return null;
}

/** What to tell of a move: `{text, direction, milestone}`. A null rank is no place on the board. */
export function moveTold(oldRank, newRank) {
  if (newRank === null) {
    return { text: "You are no longer on this board", direction: "down", milestone: null };
  }
  const milestone = milestoneOf(oldRank, newRank);
  const cheer = { top_10: " – top\u00a010!", top_100: " – top\u00a0100!" };
  const text =
    oldRank === null ? `You entered at rank ${newRank}` : `You moved from ${oldRank} to ${newRank}`;
  const direction = oldRank === null || newRank < oldRank ? "up" : "down";
  return { text: text + (cheer[milestone] ?? ""), direction, milestone };
}

/** How a score reads under these rules: hundredths where points are ratios, else whole. */
export function scoreFormat(rules) {
  const hundredths =
    ["ratio", "multiplier"].includes(rules?.scoring?.kind) && rules.operator !== "count";
  const digits = hundredths ? 2 : 0;
  const format = new Intl.NumberFormat(undefined, {
    minimumFractionDigits: digits,
    maximumFractionDigits: digits,
  });
  return (score) => format.format(hundredths ? score / 100 : score);
}

/** A span of time in words that fit a header: `2 d 3 h`, `1 h 05 min`, `4:09`. */
export function spanTold(ms) {
  const seconds = Math.max(0, Math.ceil(ms / 1_000));
  const [d, h] = [Math.floor(seconds / 86_400), Math.floor((seconds % 86_400) / 3_600)];
  const [m, s] = [Math.floor((seconds % 3_600) / 60), seconds % 60];
  const two = (number) => String(number).padStart(2, "0");
  if (d > 0) return `${d} d ${h} h`;
  if (h > 0) return `${h} h ${two(m)} min`;
  return `${m}:${two(s)}`;
}
