-- Reads one board at one sequence: a page from a rank on, around one player, scores at some ranks,
-- the rows of some players, or whether one stays out.
--
-- Keys: board, ranks, rows, names; and out, where that is asked.
-- Arguments: revision of the terms that the caller has; what ('page', 'around', 'scores', 'rows',
-- 'out'); then
--   page: ranks to skip, how many; around: player, radius; scores: ranks; rows: players;
--   out: tombstone.
local BOARD, RANKS, ROWS, NAMES = unpack(KEYS)
local meta = redis.call('HMGET', BOARD, 'sequence', 'revision', 'order', 'has_sub')
if not meta[1] then
  return false
end
if ARGV[2] == 'out' then
  return {meta[1], redis.call('HGET', KEYS[5], ARGV[3])}
end
local ascending, has_sub = meta[3] == 'ascending', meta[4] == '1'
local RANGE = ascending and 'ZRANGE' or 'ZREVRANGE'
if ARGV[2] == 'scores' then
  local scores = {}
  for i = 3, #ARGV do
    local at = tonumber(ARGV[i]) - 1
    local found = redis.call(RANGE, RANKS, at, at, 'WITHSCORES')
    scores[i - 2] = found[2] or ''
  end
  return {meta[1], scores}
end
if ARGV[2] == 'rows' then
  local rows = {}
  for from = 3, #ARGV, CHUNK do
    local found = redis.call('HMGET', ROWS, unpack(ARGV, from, math.min(from + CHUNK - 1, #ARGV)))
    for i = 1, #found do
      local player, row = ARGV[from + i - 1], found[i] and unpacked_row(found[i], has_sub)
      if row then
        -- What everybody sees is the order: a row that is not in it is no row. One that has another
        -- score than stands there gets a score that nobody can have, so whoever compares sees it.
        local member = member_of(row, player, ascending, has_sub)
        local score = redis.call('ZSCORE', RANKS, member)
        if score and tonumber(score) ~= row[1] then
          score = '9007199254740992'
        end
        row[1] = score and tonumber(score)
      end
      rows[from + i - 3] = row and row[1] and row
    end
  end
  return {meta[1], rows}
end
local terms = meta[2] ~= ARGV[1] and redis.call('HGET', BOARD, 'terms')
local from, count, rank = tonumber(ARGV[3]), tonumber(ARGV[4]), false
if ARGV[2] == 'around' then
  local row = redis.call('HGET', ROWS, ARGV[3])
  from, count = 0, 0
  if row then
    local member = member_of(unpacked_row(row, has_sub), ARGV[3], ascending, has_sub)
    rank = redis.call(ascending and 'ZRANK' or 'ZREVRANK', RANKS, member)
    -- One rank more above: its score tells the distance.
    from = math.max(rank - tonumber(ARGV[4]) - 1, 0)
    count = rank + tonumber(ARGV[4]) - from + 1
  end
end
local found = {}
if count > 0 then
  found = redis.call(RANGE, RANKS, from, from + count - 1, 'WITHSCORES')
end
local players, scores, subs = {}, {}, {}
for i = 1, #found / 2 do
  players[i], subs[i] = player_of(found[2 * i - 1], has_sub)
  scores[i] = found[2 * i]
end
local names = #players > 0 and redis.call('HMGET', NAMES, unpack(players)) or {}
return {meta[1], terms, redis.call('ZCARD', RANKS), rank, from, players, scores, subs, names}
