-- Puts one chunk of a snapshot into a key aside. All keys of the try get their time to live anew
-- with each chunk, in the same step: a try that breaks off leaves nothing for long.
--
-- Keys: ranks, rows, names, newer, older, numbers, out, all aside.
-- Arguments: which key ('ranks' also fills rows), the chunk as msgpack, time to live in ms, whether
-- small scores lead, whether there are subscores. A chunk is rows as [player, [score, subscore],
-- reached], or pairs, or ids; the caller bounds it.
local RANKS, ROWS = KEYS[1], KEYS[2]
local PLACES = {names = KEYS[3], newer = KEYS[4], older = KEYS[5], numbers = KEYS[6], out = KEYS[7]}
local chunk, ascending, has_sub = cmsgpack.unpack(ARGV[2]), ARGV[4] == '1', ARGV[5] == '1'

local function in_steps(command, key, values)
  for from = 1, #values, 2 * CHUNK do
    redis.call(command, key, unpack(values, from, math.min(from + 2 * CHUNK - 1, #values)))
  end
end

if ARGV[1] == 'ranks' then
  local members, rows = {}, {}
  for i = 1, #chunk do
    local player, pair, reached = chunk[i][1], chunk[i][2], chunk[i][3]
    local row = {pair[1], pair[2], reached}
    members[2 * i - 1], members[2 * i] = row[1], member_of(row, player, ascending, has_sub)
    rows[2 * i - 1], rows[2 * i] = player, packed_row(row, has_sub)
  end
  in_steps('ZADD', RANKS, members)
  in_steps('HSET', ROWS, rows)
elseif ARGV[1] == 'newer' or ARGV[1] == 'older' then
  in_steps('SADD', PLACES[ARGV[1]], chunk)
else
  local pairs_of = {}
  for i = 1, #chunk do
    pairs_of[2 * i - 1], pairs_of[2 * i] = chunk[i][1], chunk[i][2] or ''
  end
  in_steps('HSET', PLACES[ARGV[1]], pairs_of)
end
for _, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, ARGV[3])
end
return redis.status_reply('OK')
