-- Puts a board that was loaded aside in place of the one that is there, if that one stands below
-- it: one atomic step, so that a reader sees the old or the new one.
--
-- Keys: the nine of the board, then ranks, rows, names, newer, older, numbers, out aside.
-- Arguments, one msgpack array: log, offset, sequence, revision, terms, whether small scores lead,
-- whether there are subscores, the try's own word, whether any board may be replaced, and how many
-- entries were loaded into each key aside.
local LOG, OFFSET, SEQUENCE, REVISION, TERMS, ASCENDING, HAS_SUB, TRY, FORCED, LOADED =
  unpack(cmsgpack.unpack(ARGV[1]))
local BOARD = KEYS[1]
local SIZES = {'ZCARD', 'HLEN', 'HLEN', 'SCARD', 'SCARD', 'HLEN', 'HLEN'}
local meta = redis.call('HMGET', BOARD, 'log', 'offset', 'restored')
if meta[1] and meta[1] ~= LOG then
  return {'foreign', meta[1]}
end
if meta[3] == TRY then
  return {'swapped'} -- asked again: the answer was lost
end
if meta[1] and not FORCED and tonumber(meta[2]) >= OFFSET then
  redis.call('UNLINK', unpack(KEYS, 10, 16))
  return {'stays'}
end
for i, size in ipairs(SIZES) do
  if redis.call(size, KEYS[9 + i]) ~= LOADED[i] then
    return {'lost', KEYS[9 + i]}
  end
end
-- UNLINK frees elsewhere what RENAME would free here, while everyone waits.
redis.call('UNLINK', unpack(KEYS, 1, 9))
for i = 1, #SIZES do
  if LOADED[i] > 0 then
    redis.call('RENAME', KEYS[9 + i], KEYS[1 + i])
    redis.call('PERSIST', KEYS[1 + i])
  end
end
put_terms(BOARD, LOG, TERMS, REVISION, ASCENDING, HAS_SUB)
put_place(BOARD, OFFSET, SEQUENCE)
redis.call('HSET', BOARD, 'restored', TRY)
return {'swapped'}
