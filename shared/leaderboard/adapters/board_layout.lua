-- How a board lies in its keys. This text stands before each script of a board (redis_scripts.py):
-- nothing else, also in Python, knows the bytes of a row or of a member.
--
-- Keys, all with the tournament's hash tag:
--   board   hash: log, offset, sequence, revision, terms, order, has_sub, [expires_at, restored]
--   ranks   sorted set: primary score; member = place among equals (binary) .. player id
--   rows    hash: player id -> packed score, [subscore,] sequence at which the pair was reached
--   names   hash: who joined -> display name, empty where none was given
--   newer, older   sets: two generations of applied event ids
--   numbers hash: producer -> its last applied number
--   out     hash: keyed tombstone -> why the player stays out
--   outbox  list: what each call brought forth, until confirmed
--
-- A row in Lua is {score, subscore, reached}.
local LIMIT = 2 ^ 53
local CHUNK = 1000 -- Lua's stack bounds an unpack

local function packed_row(row, has_sub)
  if has_sub then
    return struct.pack('<ddd', row[1], row[2], row[3])
  end
  return struct.pack('<dd', row[1], row[3])
end

local function unpacked_row(bytes, has_sub)
  if has_sub then
    local score, sub, reached = struct.unpack('<ddd', bytes)
    return {score, sub, reached}
  end
  local score, reached = struct.unpack('<dd', bytes)
  return {score, 0, reached}
end

-- The order: score in the sorted set, the rest in the member's bytes, so that its own order of
-- equal scores is ours: [subscore,] then who reached the pair first.
local function member_of(row, player, ascending, has_sub)
  local at = ascending and row[3] or LIMIT - 1 - row[3]
  if not has_sub then
    return struct.pack('>I7c0', at, player)
  end
  if row[2] >= 0 then
    return struct.pack('>BI7I7c0', 1, row[2], at, player)
  end
  return struct.pack('>BI7I7c0', 0, LIMIT + row[2], at, player)
end

-- The player of a member, and the subscore.
local function player_of(member, has_sub)
  if not has_sub then
    return string.sub(member, 8), 0
  end
  local sign, sub = struct.unpack('>BI7', member)
  return string.sub(member, 16), sign == 1 and sub or sub - LIMIT
end

-- Whole numbers as Redis keeps them: 17 digits would turn into an exponent.
local function whole(number)
  return string.format('%.0f', number)
end

local function put_terms(board, log, terms, revision, ascending, has_sub)
  redis.call('HSET', board, 'terms', terms, 'revision', whole(revision), 'log', log,
    'order', ascending and 'ascending' or 'descending', 'has_sub', has_sub and '1' or '0')
end

local function put_place(board, offset, sequence)
  redis.call('HSET', board, 'offset', whole(offset), 'sequence', whole(sequence))
end

-- What is written to a board that is to go gets its end too: a key made anew has none.
local function let_go(keys, expires_at)
  for _, key in ipairs(keys) do
    redis.call('PEXPIREAT', key, expires_at)
  end
end

