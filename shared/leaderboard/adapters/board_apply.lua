-- Applies one batch of one tournament's log to its board: one atomic step.
--
-- No clock and no chance: the outcome depends on the board and the request alone. The caller has
-- folded the terms (rules, schedule, state) and tells which revision of them it started from; this
-- script does what needs the players' rows. It mirrors `Standings.apply` in fold.py; one contract
-- suite and random logs compare the two.
--
-- Keys: the nine of board_layout.lua, in its order.
local BOARD, RANKS, ROWS, NAMES, NEWER, OLDER, NUMBERS, OUT, OUTBOX = unpack(KEYS)
local LOG, AFTER, CONFIRMED, EXPECTED, REVISION, TERMS, ASCENDING, OPERATOR, HAS_SUB, LAST,
  VISIBLE, WINDOW, STEPS, REFUSED, TOLD, UNCOUNTED = unpack(cmsgpack.unpack(ARGV[1]), 1, 16)
local STRIDE = 13
local call = redis.call

-- Compare: is this the board that the caller means, and does it hold what the caller knows?
local meta = call('HMGET', BOARD, 'log', 'offset', 'sequence', 'revision', 'expires_at')
local exists = meta[1] ~= false
local before = exists and tonumber(meta[2]) or -1
if exists and meta[1] ~= LOG then
  return cmsgpack.pack({'foreign', meta[1]})
end
if AFTER and AFTER > before then
  return cmsgpack.pack({'behind', before})
end
if not exists and EXPECTED ~= -1 then
  return cmsgpack.pack({'stale', -1, false})
end
if exists and tonumber(meta[4]) ~= EXPECTED then
  return cmsgpack.pack({'stale', tonumber(meta[4]), call('HGET', BOARD, 'terms')})
end
if not exists and not TERMS then
  return cmsgpack.pack({'missing'})
end
local sequence = exists and tonumber(meta[3]) or 0

-- Forget what was emitted and acknowledged. A chunk starts with its last offset.
if CONFIRMED then
  local oldest = call('LINDEX', OUTBOX, 0)
  while oldest and struct.unpack('<d', oldest) <= CONFIRMED do
    call('LPOP', OUTBOX)
    oldest = call('LINDEX', OUTBOX, 0)
  end
end

local steps = #STEPS / STRIDE
local first = 1 -- index of the first step above the board's offset
while first <= steps and STEPS[(first - 1) * STRIDE + 1] <= before do
  first = first + 1
end

-- What the batch needs of the board, fetched in few calls.
local function fetched(command, key, wanted, into)
  for from = 1, #wanted, CHUNK do
    local to = math.min(from + CHUNK - 1, #wanted)
    local found = call(command, key, unpack(wanted, from, to))
    for i = 1, #found do
      into[wanted[from + i - 1]] = found[i]
    end
  end
end

local rows = {}
local wanted = {}
for i = first, steps do
  local player = STEPS[(i - 1) * STRIDE + 3]
  if rows[player] == nil then
    rows[player] = false
    wanted[#wanted + 1] = player
  end
end
fetched('HMGET', ROWS, wanted, rows)
local function row_of(player)
  local row = rows[player]
  if type(row) == 'string' then
    row = unpacked_row(row, HAS_SUB)
    rows[player] = row
  end
  return row
end

-- Applied ids: looked up for the whole batch, again after a generation was dropped.
local in_newer, in_older, added, newer_size = {}, {}, {}, 0
local function look_up(from)
  local ids = {}
  for i = from, steps do
    ids[#ids + 1] = STEPS[(i - 1) * STRIDE + 4]
  end
  in_newer, in_older, added = {}, {}, {}
  newer_size = call('SCARD', NEWER)
  if #ids > 0 then
    if newer_size > 0 then fetched('SMISMEMBER', NEWER, ids, in_newer) end
    if call('EXISTS', OLDER) == 1 then fetched('SMISMEMBER', OLDER, ids, in_older) end
  end
end
look_up(first)
local new_ids = {}
local function store_ids()
  for from = 1, #new_ids, CHUNK do
    call('SADD', NEWER, unpack(new_ids, from, math.min(from + CHUNK - 1, #new_ids)))
  end
  new_ids = {}
end
-- Producers that number their events cost one number each, up to WINDOW of them.
local numbers, changed_numbers = {}, {}
local producers = call('HLEN', NUMBERS)
local function number_of(source) -- nil where the producer's events go by id
  if numbers[source] == nil then
    numbers[source] = tonumber(call('HGET', NUMBERS, source) or nil) or false
  end
  return numbers[source] or (producers < WINDOW and -1 or nil)
end
local function is_duplicate(id, number, source)
  local last = number and number_of(source)
  if last then
    return number <= last
  end
  return added[id] or in_newer[id] == 1 or in_older[id] == 1
end
local function remember(id, number, source, step)
  if number and number_of(source) then
    if not numbers[source] then producers = producers + 1 end
    numbers[source] = number
    changed_numbers[source] = true
    return
  end
  added[id] = true
  new_ids[#new_ids + 1] = id
  newer_size = newer_size + 1
  if newer_size >= WINDOW then
    store_ids()
    call('UNLINK', OLDER)
    call('RENAME', NEWER, OLDER)
    look_up(step + 1)
  end
end

local RANK = ASCENDING and 'ZRANK' or 'ZREVRANK'
local RANGE = ASCENDING and 'ZRANGE' or 'ZREVRANGE'

local function combined(row, points, second)
  if OPERATOR == 'count' then
    return row and row[1] + 1 or 1, 0
  end
  if not row or OPERATOR == 'last' then
    return points, second
  end
  if OPERATOR == 'sum' then
    return row[1] + points, row[2] + second
  end
  local better -- best: the pair comes from one and the same event
  if points == row[1] then
    better = (ASCENDING and second < row[2]) or (not ASCENDING and second > row[2])
  else
    better = (ASCENDING and points < row[1]) or (not ASCENDING and points > row[1])
  end
  if better then return points, second end
  return row[1], row[2]
end

local changes, refusals = {}, {}
local function tell(base, player, old, new, row)
  local distance = false
  if new and new > 1 then
    local above = tonumber(call(RANGE, RANKS, new - 2, new - 2, 'WITHSCORES')[2])
    distance = ASCENDING and row[1] - above or above - row[1]
  end
  local n = #changes
  changes[n + 1], changes[n + 2], changes[n + 3] = STEPS[base + 1], player, old or false
  changes[n + 4], changes[n + 5], changes[n + 6] = new or false, row[1], row[2]
  changes[n + 7], changes[n + 8], changes[n + 9] = distance, STEPS[base + 9], STEPS[base + 10]
  changes[n + 10], changes[n + 11] = STEPS[base + 11], STEPS[base + 12]
end

local changed_rows = {}
local function score(base, player, adjusts)
  local row = row_of(player)
  local points, second = STEPS[base + 5], STEPS[base + 6]
  if adjusts then
    if row then points, second = row[1] + points, row[2] end
  else
    points, second = combined(row, points, second)
  end
  if math.abs(points) >= LIMIT or math.abs(second) >= LIMIT then
    return 'R'
  end
  if row and points == row[1] and second == row[2] then
    return 'A'
  end
  local old = false
  if row then
    local member = member_of(row, player, ASCENDING, HAS_SUB)
    old = call(RANK, RANKS, member) + 1
    call('ZREM', RANKS, member)
  end
  row = {points, second, STEPS[base + 1]}
  rows[player] = row
  changed_rows[player] = true
  local member = member_of(row, player, ASCENDING, HAS_SUB)
  call('ZADD', RANKS, points, member)
  local new = call(RANK, RANKS, member) + 1
  if old ~= new or old <= VISIBLE then
    tell(base, player, old, new, row)
  end
  return 'A'
end

local function remove(base, player, code, keep_as)
  if call('HGET', OUT, STEPS[base + 8]) ~= 'E' then
    call('HSET', OUT, STEPS[base + 8], code)
  end
  call('HDEL', NAMES, player)
  local row = row_of(player)
  if not row then
    return 'A'
  end
  local member = member_of(row, player, ASCENDING, HAS_SUB)
  local old = call(RANK, RANKS, member) + 1
  call('ZREM', RANKS, member)
  call('HDEL', ROWS, player)
  rows[player] = false
  changed_rows[player] = nil
  if keep_as then
    rows[keep_as] = row
    changed_rows[keep_as] = true
    call('ZADD', RANKS, row[1], member_of(row, keep_as, ASCENDING, HAS_SUB))
  else
    tell(base, player, old, false, row)
  end
  return 'A'
end

local EARN, ADJUST, JOIN, ERASE, DISQUALIFY, ERASE_KEEPING, MUST_JOIN = 1, 2, 3, 4, 5, 6, 10
local function applied(base)
  local op, player, mark = STEPS[base + 2], STEPS[base + 3], STEPS[base + 8]
  if is_duplicate(STEPS[base + 4], STEPS[base + 13], STEPS[base + 9]) then
    return 'D'
  end
  if op == ERASE then return remove(base, player, 'E', false) end
  if op == DISQUALIFY then return remove(base, player, 'Q', false) end
  if op == ERASE_KEEPING then return remove(base, player, 'E', STEPS[base + 7]) end
  local out = mark and call('HGET', OUT, mark)
  if out then
    return out
  end
  if op == JOIN then
    call('HSET', NAMES, player, STEPS[base + 7])
    return 'A'
  end
  if op > MUST_JOIN then
    if call('HEXISTS', NAMES, player) == 0 then
      return 'J'
    end
    op = op - MUST_JOIN
  end
  return score(base, player, op == ADJUST)
end

local WORDS = {D = 'duplicate', E = 'player_erased', Q = 'player_disqualified',
  J = 'not_joined'}
local codes, uncounted = {}, {}
for i = 1, steps do
  local base = (i - 1) * STRIDE
  if i < first then
    codes[i] = 'S'
  else
    local code = applied(base)
    codes[i] = code
    if code == 'A' then
      remember(STEPS[base + 4], STEPS[base + 13], STEPS[base + 9], i)
      sequence = math.max(sequence, STEPS[base + 1])
    elseif code == 'R' then
      refusals[#refusals + 1] = STEPS[base + 1]
      refusals[#refusals + 1] = 'score_out_of_range'
    else
      uncounted[#uncounted + 1] = STEPS[base + 1]
      uncounted[#uncounted + 1] = WORDS[code]
    end
  end
end

-- Write back what changed, the offset with it.
store_ids()
local fields = {}
for player in pairs(changed_rows) do
  local row = rows[player]
  fields[#fields + 1] = player
  fields[#fields + 1] = packed_row(row, HAS_SUB)
  if #fields >= CHUNK then
    call('HSET', ROWS, unpack(fields))
    fields = {}
  end
end
if #fields > 0 then call('HSET', ROWS, unpack(fields)) end
for source in pairs(changed_numbers) do
  call('HSET', NUMBERS, source, whole(numbers[source]))
end
local function told_of(decided, into)
  for i = 1, #decided, 2 do
    if decided[i] > before then
      into[#into + 1] = decided[i]
      into[#into + 1] = decided[i + 1]
    end
  end
end
told_of(REFUSED, refusals)
told_of(UNCOUNTED, uncounted)
if #uncounted > 0 then
  -- Who runs beside this from before these were told reads refusals alone, by their offsets: to
  -- them this is one of an event that never comes.
  refusals[#refusals + 1] = cmsgpack.pack(uncounted)
  refusals[#refusals + 1] = 'unknown_tournament'
end
if #changes > 0 or #refusals > 0 then
  call('RPUSH', OUTBOX, struct.pack('<d', LAST) .. cmsgpack.pack({changes, refusals}))
end
if TERMS then
  sequence = math.max(sequence, REVISION)
  put_terms(BOARD, LOG, TERMS, REVISION, ASCENDING, HAS_SUB)
end
local offset = math.max(before, LAST)
put_place(BOARD, offset, sequence)
if meta[5] then let_go(KEYS, meta[5]) end

-- What the caller holds already is not told again.
local from = 0
if TOLD then
  local chunk = call('LINDEX', OUTBOX, from)
  while chunk and struct.unpack('<d', chunk) <= TOLD do
    from = from + 1
    chunk = call('LINDEX', OUTBOX, from)
  end
end
return cmsgpack.pack({'ok', before, offset, sequence, table.concat(codes),
  call('LRANGE', OUTBOX, from, -1)})
