-- Reads one board at one sequence: a page from a rank on, or around one player.
--
-- Keys: board, ranks, rows, names (see board_apply.lua).
-- Arguments: revision of the terms that the caller has; what ('page', 'around' or 'scores'); then
--   page: ranks to skip, how many; around: player, radius; scores: ranks.
local BOARD, RANKS, ROWS, NAMES = unpack(KEYS)
local meta = redis.call('HMGET', BOARD, 'sequence', 'revision', 'order', 'has_sub')
if not meta[1] then
  return false
end
local ascending, has_sub = meta[3] == 'ascending', meta[4] == '1'
if ARGV[2] == 'scores' then
  local scores = {}
  for i = 3, #ARGV do
    local at = tonumber(ARGV[i]) - 1
    local found = redis.call(ascending and 'ZRANGE' or 'ZREVRANGE', RANKS, at, at, 'WITHSCORES')
    scores[i - 2] = found[2] or ''
  end
  return {meta[1], scores}
end
local terms = meta[2] ~= ARGV[1] and redis.call('HGET', BOARD, 'terms')
local function call_rank(member)
  return redis.call(ascending and 'ZRANK' or 'ZREVRANK', RANKS, member)
end
local from, count, rank = tonumber(ARGV[3]), tonumber(ARGV[4]), false
if ARGV[2] == 'around' then
  local row = redis.call('HGET', ROWS, ARGV[3])
  from, count = 0, 0
  if row then
    local member
    if has_sub then
      local score, sub, at = struct.unpack('<ddd', row)
      at = ascending and at or 2 ^ 53 - 1 - at
      local sign, size = sub >= 0 and 1 or 0, sub >= 0 and sub or 2 ^ 53 + sub
      member = struct.pack('>BI7I7', sign, size, at) .. ARGV[3]
    else
      local score, at = struct.unpack('<dd', row)
      member = struct.pack('>I7', ascending and at or 2 ^ 53 - 1 - at) .. ARGV[3]
    end
    rank = call_rank(member)
    -- One rank more above: its score tells the distance.
    from = math.max(rank - tonumber(ARGV[4]) - 1, 0)
    count = rank + tonumber(ARGV[4]) - from + 1
  end
end
local found = {}
if count > 0 then
  found = redis.call(ascending and 'ZRANGE' or 'ZREVRANGE', RANKS, from, from + count - 1,
    'WITHSCORES')
end
local prefix = has_sub and 15 or 7
local players = {}
for i = 1, #found, 2 do
  players[#players + 1] = string.sub(found[i], prefix + 1)
end
local names = #players > 0 and redis.call('HMGET', NAMES, unpack(players)) or {}
return {meta[1], meta[2], terms, redis.call('ZCARD', RANKS), rank, from, found, names}
